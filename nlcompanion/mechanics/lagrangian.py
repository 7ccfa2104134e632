r"""Calculus on a Lagrangian ``L(t, q, v) -> scalar``.

The convention throughout is ``(t, q, v)``: time (a 0-d tensor), point and velocity (both of shape ``(n,)``), all
float64. Functions of a Lagrangian return functions of ``(t, q, v)``; functions of a path take a differentiable
``path(t) -> q``. Everything is built on :func:`torch.func.grad` and its relatives, so a Lagrangian must be written
in torch operations and must not keep state. It may branch on values except where a function says that it is
evaluated in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from scipy.integrate import quad_vec
from torch import Tensor
from torch.func import grad, jvp, vjp

from nlcompanion._arguments import as_time, function, state_of_motion, tensor_of, time_span

__all__ = [
    "Lagrangian",
    "acceleration",
    "action",
    "along",
    "energy",
    "euler_lagrange",
    "first_variation",
    "generalized_momentum",
    "lift",
]

Lagrangian = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function ``L(t, q, v)`` of time, position and velocity with a scalar value."""


def scalar_lagrangian(L: Lagrangian) -> Lagrangian:
    """``L`` with its result checked: a scalar, or an error that says what came instead."""
    function("L", L, "L(t, q, v) -> scalar", 3)

    def checked(t, q, v):
        value = L(t, q, v)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"a Lagrangian returns a scalar tensor, got {got}; sum over components inside L(t, q, v)")
        return value

    return checked


def differentiable_path(path: Callable[[Tensor], Tensor], name: str = "path") -> Callable[[Tensor], Tensor]:
    """A path with its result checked: a vector, or an error that says what came instead."""
    function(name, path, f"{name}(t) -> q", 1)

    def checked(t):
        q = tensor_of(f"{name}(t)", path(t))
        if q.ndim != 1:
            raise ValueError(f"{name}(t) must return shape (n,), got {tuple(q.shape)}; torch.stack the components")
        return q

    return checked


def generalized_momentum(L: Lagrangian) -> Callable[..., Tensor]:
    r"""The momentum conjugate to ``q``: :math:`p = \partial L / \partial v`.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.

    Returns:
        A function ``(t, q, v) -> p`` of shape ``(n,)``, in units of the Lagrangian over a velocity.

    Raises:
        TypeError: when called, if ``L`` does not return a scalar tensor.

    Source: TK Eq. 1 (the left-hand side's inner derivative).

    Example:
        >>> import torch
        >>> p = generalized_momentum(lambda t, q, v: 1.5 * v @ v)
        >>> p(0.0, torch.zeros(2).double(), torch.tensor([1.0, 2.0]).double()).tolist()
        [3.0, 6.0]
    """
    dL_dv = grad(scalar_lagrangian(L), argnums=2)
    return lambda t, q, v: dL_dv(*state_of_motion(t, q, v))


def energy(L: Lagrangian) -> Callable[..., Tensor]:
    r"""The energy :math:`E = \langle p, v\rangle - L`, conserved when ``L`` does not depend on time.

    The sign is the usual one of mechanics, kinetic plus potential. GU's Hamiltonian (after their Lemma 2) is its
    negative.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.

    Returns:
        A function ``(t, q, v) -> scalar``, in units of the Lagrangian.

    Source: GU Eq. 12 with :math:`\tau = -1, \xi = 0`; GU Example 5.

    Example:
        >>> import torch
        >>> E = energy(lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q)
        >>> E(0.0, torch.tensor([3.0]).double(), torch.tensor([4.0]).double()).item()
        12.5
    """
    p, L = generalized_momentum(L), scalar_lagrangian(L)

    def energy_at(t, q, v):
        t, q, v = state_of_motion(t, q, v)
        return p(t, q, v) @ v - L(t, q, v)

    return energy_at


def acceleration(L: Lagrangian) -> Callable[..., Tensor]:
    r"""The Euler-Lagrange equation solved for the acceleration.

    .. math:: \frac{\partial^2 L}{\partial v^2}\, a = \frac{\partial L}{\partial q}
              - \frac{\partial^2 L}{\partial v\,\partial q}\, v - \frac{\partial^2 L}{\partial v\,\partial t}

    Costs ``n`` derivative sweeps and a dense solve: meant for few dimensions. Networks use the right-hand side of
    their learning rule instead, which :func:`nlcompanion.integrate` takes by itself.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar`` with an invertible mass matrix :math:`\partial^2 L/\partial v^2`.

    Returns:
        A function ``(t, q, v) -> a`` of shape ``(n,)``.

    Raises:
        ValueError: when called, if the mass matrix is singular: such a Lagrangian fixes no acceleration.

    Source: TK Eqs. 1 and 21.

    Example:
        >>> import torch
        >>> a = acceleration(lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q)
        >>> a(0.0, torch.tensor([2.0]).double(), torch.tensor([7.0]).double()).tolist()
        [-2.0]
    """
    slopes = grad(scalar_lagrangian(L), argnums=(1, 2))

    def solved(t, q, v):
        # one reverse sweep per component of the momentum gives its derivatives by t, q and v together
        t, q, v = state_of_motion(t, q, v)
        (force, p), pull = vjp(slopes, t, q, v)
        still = torch.zeros_like(force)
        return _solved(t, v, force, [pull((still, e)) for e in torch.eye(len(p)).to(p)])

    return solved


def acceleration_of_numbers(L: Lagrangian) -> Callable[..., Tensor]:
    """The same as :func:`acceleration`, at points that are numbers and nothing more.

    A solver's points are differentiated by nobody, so plain autograd does, at a third of the cost of transforms
    that nest.
    """
    L = scalar_lagrangian(L)

    def solved(t, q, v):
        state = [x.detach().requires_grad_() for x in state_of_motion(t, q, v)]
        with torch.enable_grad():
            force, p = _slopes(L(*state), state[1:], again=True)
            sweeps = [_slopes(component, state) for component in p]
        # numbers, also in torch 2.9, where second derivatives may remember what they come from
        return _solved(state[0].detach(), state[2].detach(), force.detach(), sweeps).detach()

    return solved


def _slopes(value: Tensor, places: Sequence[Tensor], again: bool = False) -> tuple[Tensor, ...]:
    """Derivatives of a scalar, which may depend on none of the places; ``again`` to differentiate them once more."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(place) for place in places)
    return torch.autograd.grad(value, places, retain_graph=True, create_graph=again, materialize_grads=True)


def _solved(t: Tensor, v: Tensor, force: Tensor, sweeps: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """The acceleration, from the force and from each momentum component's derivatives by t, q and v."""
    by_t, by_q, by_v = (torch.stack(rows) for rows in zip(*sweeps, strict=True))
    a, info = torch.linalg.solve_ex(by_v, force - by_t - by_q @ v)
    if info.item() or not torch.isfinite(a).all():
        raise ValueError(
            f"the mass matrix d2L/dv2 is singular at t = {float(t):.6g}; this Lagrangian fixes no "
            "acceleration there: give every coordinate kinetic energy, or remove the redundant ones"
        )
    return a


def along(path: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    r"""The state along a path: ``t -> (t, q, v)`` with :math:`v = dq/dt`, ready for any ``L(t, q, v)``.

    Args:
        path: differentiable ``path(t) -> q`` of shape ``(n,)``, in torch operations.

    Returns:
        A function ``t -> (t, q, v)``.

    Source: the composition in GU Eq. 2.

    Example:
        >>> import torch
        >>> t, q, v = along(lambda t: torch.stack([t**2, 3 * t]))(2.0)
        >>> q.tolist(), v.tolist()
        ([4.0, 6.0], [4.0, 3.0])
    """

    path = differentiable_path(path)

    def state(t):
        t = as_time(t)
        q, v = jvp(path, (t,), (torch.ones_like(t),))
        return t, q, v

    return state


def euler_lagrange(L: Lagrangian, path: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    r"""The Euler-Lagrange residual of ``L`` along a path; zero exactly on the motions.

    .. math:: t \mapsto \frac{d}{dt}\frac{\partial L}{\partial v} - \frac{\partial L}{\partial q}

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        path: twice differentiable ``path(t) -> q`` of shape ``(n,)``, in torch operations.

    Returns:
        A function ``t -> residual`` of shape ``(n,)``.

    Source: TK Eqs. 1 and 21; GU Eqs. 5 and 6, whose variational derivative is the negative of this.

    Example:
        >>> import torch
        >>> L = lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q
        >>> residual = euler_lagrange(L, lambda t: torch.stack([torch.cos(t)]))
        >>> bool(residual(0.3).abs() < 1e-15)
        True
    """
    L, state = scalar_lagrangian(L), along(path)

    def residual(t):
        t = as_time(t)
        _, p_dot = jvp(lambda t: grad(L, argnums=2)(*state(t)), (t,), (torch.ones_like(t),))
        return p_dot - grad(L, argnums=1)(*state(t))

    return residual


def lift(F: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    r"""Lift a coordinate map to velocities: ``F(t, q) -> Q`` becomes ``(t, q, v) -> (t, Q, V)``.

    .. math:: V = \frac{\partial F}{\partial t} + \frac{\partial F}{\partial q}\, v

    Composing, ``L(*lift(F)(t, q, v))`` is the Lagrangian in the coordinates that ``F`` maps from. With ``F`` a
    symmetry :math:`Q(q, s)` the same composition, differentiated by :math:`s` at 0, gives the Noether charge's rate.

    Args:
        F: coordinate map, ``(n,)`` to ``(m,)``, in torch operations.

    Returns:
        A function ``(t, q, v) -> (t, Q, V)``.

    Source: TK Eqs. 8 and 14 use it for symmetries and for polar coordinates.

    Example:
        >>> import torch
        >>> polar = lift(lambda t, x: torch.stack([x[0] * torch.cos(x[1]), x[0] * torch.sin(x[1])]))
        >>> t, Q, V = polar(0.0, torch.tensor([2.0, 0.0]).double(), torch.tensor([1.0, 3.0]).double())
        >>> V.tolist()
        [1.0, 6.0]
    """

    function("F", F, "F(t, q) -> Q", 2)

    def lifted(t, q, v):
        t, q, v = state_of_motion(t, q, v)
        Q, V = jvp(lambda t, q: tensor_of("F(t, q)", F(t, q)), (t, q), (torch.ones_like(t), v))
        return t, Q, V

    return lifted


def action(L: Lagrangian, path: Callable[[Tensor], Tensor], t_span: tuple[float, float]) -> float:
    r"""The action of a path, :math:`S = \int_{t_0}^{t_1} L(t, q, \dot q)\, dt`, by adaptive quadrature.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        path: differentiable ``path(t) -> q`` of shape ``(n,)``.
        t_span: ``(t0, t1)`` with ``t0 < t1``.

    Returns:
        The action, in units of the Lagrangian times time, to about 1e-12 relative for smooth paths.

    Source: GU Eq. 2; TK, supplement A.

    Example:
        >>> import torch
        >>> S = action(lambda t, q, v: 0.5 * v @ v, lambda t: torch.stack([3 * t]), (0.0, 2.0))
        >>> round(S, 12)
        9.0
    """
    L, state = scalar_lagrangian(L), along(path)
    value, _ = quad_vec(lambda t: L(*state(t)).item(), *time_span(t_span), epsabs=1e-13, epsrel=1e-12)
    return float(value)


def first_variation(L: Lagrangian, path: Callable, deformation: Callable, t_span: tuple[float, float]) -> float:
    r"""How fast the action changes when a path is deformed.

    .. math:: \delta S = \frac{d}{d\varepsilon} S[q + \varepsilon\,\delta q]\Big|_{\varepsilon = 0}
              = \int \left(\frac{\partial L}{\partial q}\,\delta q
              + \frac{\partial L}{\partial v}\,\delta \dot q\right) dt

    Obtained by lifting the map :math:`q \mapsto q + \varepsilon\,\delta q(t)` and differentiating the Lagrangian
    behind it, as a symmetry's effect is.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        path: differentiable ``path(t) -> q`` of shape ``(n,)``.
        deformation: differentiable ``deformation(t) -> delta q`` of shape ``(n,)``; it may move the ends.
        t_span: ``(t0, t1)`` with ``t0 < t1``.

    Returns:
        The slope of the action, in units of the action per unit of the deformation.

    Source: TK Eq. 19; GU Eq. 4.

    Example:
        >>> import torch
        >>> line = lambda t: torch.stack([t])
        >>> bump = lambda t: torch.stack([t * (1 - t)])
        >>> abs(first_variation(lambda t, q, v: 0.5 * v @ v, line, bump, (0.0, 1.0))) < 1e-14
        True
    """
    L, deformation = scalar_lagrangian(L), differentiable_path(deformation, "deformation")

    def density(t, q, v):
        bent = lambda e: L(*lift(lambda t, q: q + e * deformation(t))(t, q, v))  # noqa: E731
        zero = torch.zeros_like(t)
        return jvp(bent, (zero,), (torch.ones_like(zero),))[1]

    return action(density, path, t_span)
