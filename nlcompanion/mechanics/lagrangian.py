r"""Calculus on a Lagrangian ``L(t, q, v) -> scalar``.

The convention throughout is ``(t, q, v)``: time (a 0-d tensor), point and velocity (both of shape ``(n,)``), all
float64. Functions of a Lagrangian return functions of ``(t, q, v)``; functions of a path take a differentiable
``path(t) -> q``. Everything is built on :func:`torch.func.grad` and its relatives, so a Lagrangian must be written
in torch operations and must not keep state. It may branch on values except where a function says that it is
evaluated in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad_vec
from scipy.linalg import eigvals_banded, solve_banded
from scipy.optimize import minimize
from scipy.sparse import dia_array
from torch import Tensor
from torch.func import grad, hessian, jvp, vjp, vmap

__all__ = [
    "Lagrangian",
    "StationaryPath",
    "acceleration",
    "action",
    "along",
    "discrete_action",
    "energy",
    "euler_lagrange",
    "first_variation",
    "generalized_momentum",
    "lift",
    "stationary_path",
    "variational_derivative",
]

Lagrangian = Callable[[Tensor, Tensor, Tensor], Tensor]


def as_point(name: str, value) -> Tensor:
    """A float64 tensor of shape (n,) from array-like ``value``; complains by ``name`` otherwise."""
    if isinstance(value, Tensor) and value.dtype not in (torch.float64, torch.float32):
        raise TypeError(
            f"{name} has dtype {value.dtype}; laws of motion need real floating point: pass {name}.double()"
        )
    try:
        point = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is not a vector of numbers ({error}); pass a sequence of n floats") from error
    if point.ndim != 1 or point.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n,) with n > 0, got {tuple(point.shape)}; "
            "flatten network parameters with flat_loss, wrap a single number in a list"
        )
    if not torch.isfinite(point).all():
        raise ValueError(f"{name} holds NaN or infinity; a trajectory cannot start or pass there")
    return point


def as_time(t) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _scalar(L: Lagrangian) -> Lagrangian:
    """``L`` with its result checked: a scalar, or an error that says what came instead."""

    def checked(t, q, v):
        value = L(t, q, v)
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"a Lagrangian returns a scalar tensor, got {got}; sum over components inside L(t, q, v)")
        return value

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
    dL_dv = grad(_scalar(L), argnums=2)
    return lambda t, q, v: dL_dv(as_time(t), q, v)


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
    p = generalized_momentum(L)
    return lambda t, q, v: p(t, q, v) @ v - L(as_time(t), q, v)


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
    slopes = grad(_scalar(L), argnums=(1, 2))

    def solved(t, q, v):
        # one reverse sweep per component of the momentum gives its derivatives by t, q and v together
        (force, p), pull = vjp(slopes, as_time(t), q, v)
        still = torch.zeros_like(force)
        by_t, by_q, by_v = (
            torch.stack(rows) for rows in zip(*(pull((still, e)) for e in torch.eye(len(p)).to(p)), strict=True)
        )
        a, info = torch.linalg.solve_ex(by_v, force - by_t - by_q @ v)
        if info.item() or not torch.isfinite(a).all():
            raise ValueError(
                f"the mass matrix d2L/dv2 is singular at t = {float(t):.6g}; this Lagrangian fixes no "
                "acceleration there: give every coordinate kinetic energy, or remove the redundant ones"
            )
        return a

    return solved


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
    L, state = _scalar(L), along(path)

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

    def lifted(t, q, v):
        t = as_time(t)
        Q, V = jvp(F, (t, q), (torch.ones_like(t), v))
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
    L, state = _scalar(L), along(path)
    value, _ = quad_vec(lambda t: L(*state(t)).item(), *_span(t_span), epsabs=1e-13, epsrel=1e-12)
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

    def density(t, q, v):
        bent = lambda e: L(*lift(lambda t, q: q + e * deformation(t))(t, q, v))  # noqa: E731
        zero = torch.zeros_like(t)
        return jvp(bent, (zero,), (torch.ones_like(zero),))[1]

    return action(density, path, t_span)


def discrete_action(L: Lagrangian, t: Tensor, q: Tensor, *, midpoint: bool = False) -> Tensor:
    r"""The action of the broken line through ``q[0], ..., q[N]`` at evenly spaced times.

    .. math:: J = \sum_{i=0}^{N-1} L\!\left(t_i, x_i, \frac{x_{i+1} - x_i}{\Delta}\right) \Delta

    Evaluated in one batch, so ``L`` must not branch on values. Differentiable by ``q``.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        t: times of shape ``(N + 1,)``, evenly spaced.
        q: nodes of shape ``(N + 1, n)``.
        midpoint: evaluate ``L`` at the middle of each piece instead of its left end.

    Returns:
        A scalar tensor; converges to :func:`action` with order 1 in the spacing, with order 2 at midpoints.

    Source: GU Eq. 8.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 1, 5).double()
        >>> discrete_action(lambda t, q, v: 0.5 * v @ v, t, t[:, None] * 2).item()
        2.0
    """
    delta = _spacing(t, q)
    v = (q[1:] - q[:-1]) / delta
    at = ((t[1:] + t[:-1]) / 2, (q[1:] + q[:-1]) / 2) if midpoint else (t[:-1], q[:-1])
    return vmap(_scalar(L))(*at, v).sum() * delta


def variational_derivative(L: Lagrangian, t: Tensor, q: Tensor) -> Tensor:
    r"""The gradient of the discretised action per node and per unit of area.

    .. math:: \frac{1}{\Delta}\frac{\partial J}{\partial x_k} \longrightarrow
              \frac{\partial L}{\partial q} - \frac{d}{dt}\frac{\partial L}{\partial v}

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``, free of branches on values.
        t: times of shape ``(N + 1,)``, evenly spaced.
        q: nodes of shape ``(N + 1, n)``; the two ends are held fixed.

    Returns:
        Shape ``(N - 1, n)``, one row per inner node, in units of the Lagrangian over a length. The limit is reached
        with order 1 in the spacing, and it is the negative of :func:`euler_lagrange`.

    Source: GU Eq. 9; its limit is GU Eq. 5.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 1, 5).double()
        >>> free = variational_derivative(lambda t, q, v: 0.5 * v @ v, t, t[:, None] * 2)
        >>> bool(free.abs().max() < 1e-14)
        True
    """
    delta = _spacing(t, q)
    return grad(lambda x: discrete_action(L, t, x))(q)[1:-1] / delta


@dataclass(frozen=True)
class StationaryPath:
    """A path at which the discretised action does not change to first order.

    Attributes:
        t: times, shape ``(N + 1,)``.
        q: nodes, shape ``(N + 1, n)``, the ends as given.
        action: the discretised action there.
        index: how many independent deformations lower the action (Morse index); 0 for a minimum.
    """

    t: Tensor
    q: Tensor
    action: float
    index: int


def stationary_path(
    L: Lagrangian,
    q0,
    q1,
    t_span: tuple[float, float],
    *,
    segments: int = 100,
    method: str = "newton",
    guess: Tensor | None = None,
    max_iter: int = 100,
) -> StationaryPath:
    r"""The path between two points that makes the discretised action stationary.

    The sum is the midpoint one, order 2 in the spacing where GU Eq. 8 has order 1:

    .. math:: \sum_i L\!\left(t_{i+1/2}, \tfrac{x_i + x_{i+1}}{2}, \tfrac{x_{i+1}-x_i}{\Delta}\right)\Delta

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``, twice differentiable, free of branches on values.
        q0, q1: the fixed ends, array-like of shape ``(n,)``.
        t_span: ``(t0, t1)`` with ``t0 < t1``.
        segments: number of straight pieces.
        method: ``"newton"`` solves for a vanishing gradient and finds any stationary path, minimum or not;
            ``"minimize"`` descends on the action (SciPy's Newton-CG) and finds minima only.
        guess: nodes of shape ``(segments + 1, n)`` to start from; the straight line by default.
        max_iter: iterations allowed.

    Returns:
        A :class:`StationaryPath`; its ``index`` tells a minimum (0) from a saddle.

    Raises:
        ValueError: wrong shapes or an unknown method.
        RuntimeError: no stationary path was reached; with ``"minimize"`` this is what happens beyond the first
            conjugate point, where the action has no minimum.

    Source: GU Section 2.1; TK, supplement A. Least action is least only up to the first conjugate point.

    Example:
        >>> oscillator = lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q
        >>> stationary_path(oscillator, [0.0], [1.0], (0.0, 2.0)).index   # shorter than half a period
        0
        >>> stationary_path(oscillator, [0.0], [1.0], (0.0, 4.0)).index   # longer
        1
    """
    t0, t1 = _span(t_span)
    a, b = as_point("q0", q0), as_point("q1", q1)
    if a.shape != b.shape:
        raise ValueError(f"q0 has {len(a)} components and q1 has {len(b)}; both ends live in one space")
    if segments < 2:
        raise ValueError(f"segments = {segments} leaves no inner node to vary; use 2 or more")
    t = torch.linspace(t0, t1, segments + 1, dtype=torch.float64)
    x = guess if guess is not None else a + (b - a) * torch.linspace(0, 1, segments + 1).double()[:, None]
    if x.shape != (segments + 1, len(a)):
        raise ValueError(f"guess has shape {tuple(x.shape)}, expected {(segments + 1, len(a))}")
    problem = _MidpointAction(L, t, a, b)
    inner = x[1:-1].reshape(-1).numpy().copy()
    if method == "newton":
        inner = _newton(problem, inner, max_iter)
    elif method == "minimize":
        inner = _descend(problem, inner, max_iter)
    else:
        raise ValueError(f"method {method!r} is unknown; use 'newton' (any stationary path) or 'minimize'")
    bands = problem.hessian_bands(inner)
    negative = eigvals_banded(bands[: problem.width + 1], select="v", select_range=(-np.inf, 0.0))
    return StationaryPath(t, problem.nodes(inner), problem.value(inner), len(negative))


class _MidpointAction:
    """The midpoint action of the inner nodes, with gradient and banded Hessian as NumPy arrays."""

    def __init__(self, L: Lagrangian, t: Tensor, a: Tensor, b: Tensor):
        self.a, self.b, self.n = a, b, len(a)
        self._at, self._matrix = None, None
        self.width = 2 * self.n - 1  # a node couples to its neighbours only
        delta = (t[1] - t[0]).item()
        middle = (t[1:] + t[:-1]) / 2

        def piece(t, x, y):
            return _scalar(L)(t, (x + y) / 2, (y - x) / delta) * delta

        self._pieces = lambda x: vmap(piece)(middle, x[:-1], x[1:])
        self._blocks = lambda x: vmap(hessian(lambda t, z: piece(t, z[: self.n], z[self.n :]), argnums=1))(
            middle, torch.cat([x[:-1], x[1:]], dim=1)
        )

    def nodes(self, inner: np.ndarray) -> Tensor:
        return torch.cat([self.a[None], torch.from_numpy(inner).view(-1, self.n), self.b[None]])

    def value(self, inner: np.ndarray) -> float:
        return self._pieces(self.nodes(inner)).sum().item()

    def gradient(self, inner: np.ndarray) -> np.ndarray:
        return grad(lambda x: self._pieces(x).sum())(self.nodes(inner))[1:-1].reshape(-1).numpy()

    def hessian_bands(self, inner: np.ndarray) -> np.ndarray:
        """Upper form of SciPy's banded storage followed by the lower bands, as ``solve_banded`` wants."""
        n, size, width = self.n, len(inner), self.width
        blocks = self._blocks(self.nodes(inner)).numpy()
        bands = np.zeros((2 * width + 1, size))
        first = (np.arange(len(blocks)) - 1) * n  # row of each piece's left node among the inner nodes
        for r in range(2 * n):
            for c in range(2 * n):
                row, col = first + r, first + c
                inside = (np.minimum(row, col) >= 0) & (np.maximum(row, col) < size)
                np.add.at(bands, (width + row[inside] - col[inside], col[inside]), blocks[inside, r, c])
        return bands

    def hessian_times(self, inner: np.ndarray, p: np.ndarray) -> np.ndarray:
        if self._at is None or not np.array_equal(self._at, inner):  # one Hessian serves a whole inner CG run
            offsets = np.arange(self.width, -self.width - 1, -1)
            shape = (len(inner), len(inner))
            self._at, self._matrix = inner.copy(), dia_array((self.hessian_bands(inner), offsets), shape=shape)
        return self._matrix @ p


def _newton(problem: _MidpointAction, x: np.ndarray, max_iter: int) -> np.ndarray:
    for _ in range(max_iter):
        g = problem.gradient(x)
        step = solve_banded((problem.width, problem.width), problem.hessian_bands(x), -g)
        size = np.linalg.norm(step) / (1 + np.linalg.norm(x))
        if size <= 1e-13:
            return x + step
        scale, norm = 1.0, np.linalg.norm(g)
        # halve until the gradient shrinks: plain Newton overshoots on anharmonic potentials
        while scale > 1e-4 and not np.linalg.norm(problem.gradient(x + scale * step)) < norm:
            scale /= 2
        if scale <= 1e-4:
            if size <= 1e-9:  # nothing left but rounding
                return x
            break
        x = x + scale * step
    raise RuntimeError(
        f"no stationary path found: the gradient of the action is still {np.abs(problem.gradient(x)).max():.2g}; "
        "give a better guess, shorten t_span, or raise max_iter"
    )


def _descend(problem: _MidpointAction, x: np.ndarray, max_iter: int) -> np.ndarray:
    found = minimize(
        problem.value,
        x,
        jac=problem.gradient,
        hessp=problem.hessian_times,
        method="Newton-CG",
        options={"xtol": 1e-13, "maxiter": max_iter},
    )
    slope = np.abs(problem.gradient(found.x)).max() if np.isfinite(found.x).all() else np.inf
    if not np.isfinite(found.fun) or slope > 1e-8 * (1 + np.abs(found.x).max()):
        raise RuntimeError(
            f"the action has no minimum within reach: after {found.nit} iterations it is {found.fun:.3g} and "
            "still falling; beyond a conjugate point the motion is a saddle: use method='newton'"
        )
    return found.x


def _span(t_span) -> tuple[float, float]:
    t0, t1 = (float(t) for t in t_span)
    if not (np.isfinite(t0) and np.isfinite(t1) and t0 < t1):
        raise ValueError(f"t_span = ({t0}, {t1}) is no interval; give finite (t0, t1) with t0 < t1")
    return t0, t1


def _spacing(t: Tensor, q: Tensor) -> Tensor:
    if t.ndim != 1 or q.ndim != 2 or len(t) != len(q) or len(t) < 3:
        raise ValueError(
            f"t has shape {tuple(t.shape)} and q {tuple(q.shape)}; a broken line needs t of shape (N + 1,) and "
            "q of shape (N + 1, n) with N >= 2"
        )
    delta = t[1:] - t[:-1]
    if not torch.allclose(delta, delta[0].expand_as(delta), rtol=1e-9, atol=0.0):
        raise ValueError(
            "the times t are not evenly spaced, to 1e-9 of the spacing; make them with torch.linspace(t0, t1, N + 1, "
            "dtype=torch.float64), since .double() comes too late"
        )
    return delta[0]
