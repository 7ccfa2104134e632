"""Noether's theorem with generators of time and space; the public names are in ``noether``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from nlcompanion._arguments import (
    as_parameter,
    as_time,
    function,
    known,
    real_number,
    state_of_motion,
    tensor_of,
    vector,
)
from nlcompanion.mechanics.lagrangian import Lagrangian, generalized_momentum, lift, scalar_lagrangian
from nlcompanion.symmetries.states import at_each, state

SpaceTimeMap = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class RundTrautmann(NamedTuple):
    r"""The two sides of Noether's theorem, functions of ``(t, q, v)``; unpacks as ``identity, charge``.

    Attributes:
        identity: the left-hand side of GU Eq. 11, zero everywhere if the action is invariant.
        charge: GU Eq. 12, constant along motions if it is.
    """

    identity: Callable[..., Tensor]
    charge: Callable[..., Tensor]


def transformed(L: Lagrangian, transformation: SpaceTimeMap) -> Callable[..., Tensor]:
    r"""A Lagrangian after a transformation of time and space.

    .. math:: L'(t, q, v;\, s) = L\!\left(T,\, Q,\, \frac{dQ}{dT}\right)\frac{dT}{dt}

    by :func:`nlcompanion.lift` of the map on the extended point ``(t, q)``. The transformation leaves the action
    alone if :math:`L' = L`, which is a check at finite ``s``.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        transformation: ``(t, q, s) -> (T, Q)``, a 0-d tensor and shape ``(n,)``; the identity at ``s = 0``.

    Returns:
        A function ``(t, q, v, s) -> scalar``, in units of the Lagrangian.

    Raises:
        TypeError: when called, if the transformation does not return a pair ``(T, Q)``.

    Source: GU Definition 1.

    Example:
        >>> import torch
        >>> free = lambda t, q, v: 0.5 * v @ v
        >>> dilation = lambda t, q, s: (torch.exp(2 * s) * t, torch.exp(s) * q)
        >>> q, v = torch.tensor([1.0]).double(), torch.tensor([3.0]).double()
        >>> round(transformed(free, dilation)(0.5, q, v, 0.3).item(), 12)
        4.5
    """
    L = scalar_lagrangian(L)
    function("transformation", transformation, "(t, q, s) -> (T, Q)", 3)

    def composed(t, q, v, s):
        t, q, v = state_of_motion(t, q, v)
        s = as_parameter("s", s, t)

        def extended(_, x):
            return _joined(transformation(x[0], x[1:], s), x)

        x, x_dot = torch.cat([t[None], q]), torch.cat([torch.ones_like(t)[None], v])
        _, X, X_dot = lift(extended)(t, x, x_dot)
        if known(~(torch.isfinite(X).all() & torch.isfinite(X_dot).all())):
            raise ValueError("the transformation leads to infinity or NaN at this s; take a smaller one")
        return L(X[0], X[1:], X_dot[1:] / X_dot[0]) * X_dot[0]

    return composed


def spacetime_generators(transformation: SpaceTimeMap) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    r"""The generators of a transformation of time and space, by differentiating it at :math:`s = 0`.

    .. math:: T = t + \tau(t, q)\, s + O(s^2), \qquad Q = q + \xi(t, q)\, s + O(s^2)

    Args:
        transformation: ``(t, q, s) -> (T, Q)``.

    Returns:
        ``(xi, tau)``, functions of ``(t, q)`` as :func:`rund_trautmann` takes them.

    Raises:
        ValueError: when called, if the transformation is not the identity at ``s = 0``.

    Source: GU Eq. 10.

    Example:
        >>> import torch
        >>> xi, tau = spacetime_generators(lambda t, q, s: (t / (1 - s * t), q / (1 - s * t)))
        >>> q = torch.tensor([5.0]).double()
        >>> tau(2.0, q).item(), xi(2.0, q).tolist()
        (4.0, [10.0])
    """

    function("transformation", transformation, "(t, q, s) -> (T, Q)", 3)

    def both(t, q):
        t, q, zero = as_time(t), vector("q", q), torch.zeros((), dtype=torch.float64)
        x = torch.cat([t[None], q])
        X, tangent = jvp(lambda s: _joined(transformation(t, q, s), x), (zero,), (torch.ones_like(zero),))
        distance = (X - x).abs().max()
        if known(~(distance <= 1e-12 * x.abs().max())):
            raise ValueError(
                f"the transformation is not the identity at s = 0: it moves (t, q) by {float(distance):.3g} there; "
                "re-scale its parameter until (T, Q) = (t, q) at s = 0"
            )
        return tangent

    return lambda t, q: both(t, q)[1:], lambda t, q: both(t, q)[0]


def rund_trautmann(
    L: Lagrangian,
    xi: Callable[[Tensor, Tensor], Tensor] | None = None,
    tau: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    gauge: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> RundTrautmann:
    r"""Noether's theorem with generators of space and time: the Rund-Trautmann identity and its charge.

    .. math:: \Big\langle\frac{\partial L}{\partial q}, \xi\Big\rangle
              + \Big\langle\frac{\partial L}{\partial v}, \dot\xi\Big\rangle + \frac{\partial L}{\partial t}\tau
              + \Big(L - \Big\langle v, \frac{\partial L}{\partial v}\Big\rangle\Big)\dot\tau = \dot K,
              \qquad
              C = \Big\langle\frac{\partial L}{\partial v}, \xi\Big\rangle
              + \Big(L - \Big\langle v, \frac{\partial L}{\partial v}\Big\rangle\Big)\tau - K

    The left-hand side is :math:`\partial_s L'` of :func:`transformed`, and so it is computed. If it vanishes, ``C`` is
    conserved. With :math:`\tau = 1` alone, ``C`` is *minus* the usual energy of :func:`nlcompanion.energy`.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        xi: generator in space, ``(t, q) -> (n,)``; zero when None.
        tau: generator in time, ``(t, q) -> scalar``; zero when None.
        gauge: :math:`K(t, q)`, for a transformation that changes the Lagrangian by a total derivative only; zero when
            None, as in GU.

    Returns:
        A :class:`RundTrautmann`: functions ``identity(t, q, v)`` and ``charge(t, q, v)`` of a point (scalar) or of a
        trajectory (shape ``(T,)``), in units of the Lagrangian times those of ``s`` and ``s`` times time.

    Raises:
        ValueError: if both generators are None.
        TypeError: when called, if ``L`` is not scalar.

    Source: GU Eqs. 11 and 12, Lemmas 1 and 2; the gauge term is Bessel-Hagen's.

    Example:
        >>> import torch
        >>> L = lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q
        >>> identity, charge = rund_trautmann(L, tau=lambda t, q: 1.0)
        >>> q, v = torch.tensor([3.0]).double(), torch.tensor([4.0]).double()
        >>> identity(0.0, q, v).item(), charge(0.0, q, v).item()
        (0.0, -12.5)
    """
    if xi is None and tau is None:
        raise ValueError("rund_trautmann needs a generator: xi(t, q) of space, tau(t, q) of time, or both")
    for name, given in (("xi", xi), ("tau", tau), ("gauge", gauge)):
        if given is not None:
            function(name, given, f"{name}(t, q)", 2)
    momentum = generalized_momentum(L)

    def space(t, q):
        return torch.zeros_like(q) if xi is None else tensor_of("xi(t, q)", xi(t, q), q.shape)

    def time(t, q):
        return _number("tau", tau, t, q)

    def first_order(t, q, s):
        return t + s * time(t, q), q + s * space(t, q)

    def identity(t, q, v):
        zero = torch.zeros_like(t)
        moved = transformed(L, first_order)
        change = jvp(lambda s: moved(t, q, v, s), (zero,), (torch.ones_like(t),))[1]
        return change - lift(lambda t, q: _number("gauge", gauge, t, q))(t, q, v)[2]

    def charge(t, q, v):
        p = momentum(t, q, v)
        return p @ space(t, q) + (L(t, q, v) - v @ p) * time(t, q) - _number("gauge", gauge, t, q)

    return RundTrautmann(_of_state(identity), _of_state(charge))


def _of_state(side: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda t, q, v: at_each(side, *state(None, None, t, q, v))


def _joined(pair, like: Tensor) -> Tensor:
    if not (isinstance(pair, tuple) and len(pair) == 2):
        raise TypeError(f"a transformation of (t, q) returns the pair (T, Q), got {type(pair).__name__}")
    T, Q = pair
    T = T if isinstance(T, Tensor) else torch.tensor(real_number("T", T), dtype=like.dtype)
    return torch.cat([tensor_of("T", T, torch.Size([])).reshape(1), tensor_of("Q", Q, like[1:].shape)])


def _number(name: str, of_point, t: Tensor, q: Tensor) -> Tensor:
    """A scalar function of (t, q), which may come as None (zero) or return a float."""
    value = 0.0 if of_point is None else of_point(t, q)
    if not isinstance(value, Tensor):
        return real_number(f"{name}(t, q)", value) + 0.0 * t
    if value.ndim != 0:
        raise TypeError(f"{name}(t, q) must be a scalar, got shape {tuple(value.shape)}")
    return value + 0.0 * t
