r"""Normalisation as an adaptive optimiser: how the length of a scale-invariant weight follows its gradients.

A weight in front of a normalisation layer can be stretched without anybody noticing, :math:`f(q) = f(\hat q)` with
:math:`q = r\hat q`. Its length is then the denominator of its step size, and training moves it (TK Section 4):

.. math:: \frac{d}{dt} r^4 = -\frac{4k}{1-\beta}\, r^4 + \frac{2\eta(1+\beta)}{(1-\beta)^3}\, P\, |\nabla f(\hat q)|^2 .

TK's equations are the case :math:`P = 1`, a gradient that persists from step to step. In general

.. math:: P = \frac{\langle|\bar g|^2\rangle}{\langle|\hat g|^2\rangle}
            = \frac{1-\beta}{1+\beta}\Big(1 + 2\sum_{l\ge1}\beta^l\rho_l\Big), \qquad
          \bar g_n = (1-\beta)\sum_{l\ge0}\beta^l \hat g_{n-l},

is the part of the gradient :math:`\hat g = \nabla f(\hat q) = r\,\nabla f(q)` that survives the averaging of the
momentum, with :math:`\rho_l` the gradient's autocorrelation at a distance of :math:`l` steps. Gradients that are
independent at every step have :math:`P = (1-\beta)/(1+\beta)`.

Two clocks: times are :math:`t = \eta n` after :math:`n` steps, as everywhere in this package; what is counted in steps
says so in its name or its first line.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nlcompanion._arguments import (
    as_tensor,
    at_least_zero,
    broadcast,
    known,
    positive,
    positive_number,
    real_number,
    times,
)
from nlcompanion.adaptivity.settings import settings

__all__ = [
    "Polar",
    "polar",
    "radius_gain",
    "radius_squared",
    "radius_squared_of_steps",
    "rmsprop_accumulator",
]

# --- the length from the gradients --------------------------------------------------------------------------------


def radius_squared(
    t,
    grad_norm_squared,
    r0_squared,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    persistence=1.0,
) -> Tensor:
    r"""The squared length of a scale-invariant weight, from the gradients it has met (TK Eq. 17).

    .. math:: r^4(t) = \frac{2\eta(1+\beta)}{(1-\beta)^3}\int_0^t e^{-\lambda(t-\tau)}
              P\,|\nabla f(\hat q(\tau))|^2 d\tau + e^{-\lambda t} r^4(0), \qquad \lambda = \frac{4k}{1-\beta}

    The integral is exact where :math:`P|\nabla f|^2` is linear between the given times. It is computed by a recursion
    that only ever decays, so no run is too long for it. The formula itself is of leading order in :math:`\eta` and
    :math:`k`, and needs a weight that changes little within one memory of the momentum, :math:`1/(1-\beta)` steps.

    Args:
        t: times :math:`\eta n`, shape ``(T,)``, increasing, in any spacing.
        grad_norm_squared: :math:`|\nabla f(\hat q)|^2 = r^2|\nabla f(q)|^2` at these times, shape ``(T,)`` or
            ``(T, ...)`` for many weights at once. Of the gradient that the steps use, the mini-batch's. Give
            :math:`|\bar g|^2` of :func:`momentum_average` instead, and no ``persistence`` is needed.
        r0_squared: :math:`r^2` at ``t[0]``, positive, a number or one for each weight.
        lr: step size :math:`\eta > 0`, in units of time.
        momentum: :math:`\beta` in [0, 1), PyTorch's convention.
        weight_decay: :math:`k \ge 0`, in 1 / time, coupled to the gradient as in ``torch.optim.SGD``.
        persistence: :math:`P \ge 0` (dimensionless), a number or an array that broadcasts with
            ``grad_norm_squared``. 1 is TK's formula; :func:`gradient_persistence` measures it.

    Returns:
        :math:`r^2`, in the shape of ``grad_norm_squared``, float64.

    Raises:
        ValueError: shapes that do not fit, times that do not increase, negative or non-finite values, settings out of
            their range.

    Source: TK Eqs. 17 and 33; with ``persistence``, new as far as we know.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 40, 5, dtype=torch.float64)
        >>> radius_squared(t, torch.ones(5), 1.0, lr=0.1, momentum=0.9, weight_decay=0.005).round(decimals=3).tolist()
        [1.0, 40.534, 43.188, 43.535, 43.582]
    """
    lr, momentum, weight_decay = settings(lr, momentum, weight_decay)
    push = 2 * lr * (1 + momentum) / (1 - momentum) ** 3
    squared = _remembered(
        t,
        grad_norm_squared,
        positive("r0_squared", r0_squared) ** 2,
        4 * weight_decay / (1 - momentum),
        push,
        persistence,
    )
    return squared.sqrt()


def radius_gain(t, r_squared, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Tensor:
    r"""What gradients have added to :math:`r^4` since the first time: its motion without what decay alone does.

    .. math:: r^4(t) - e^{-\lambda(t - t_0)}\, r^4(t_0), \qquad \lambda = \frac{4k}{1-\beta}

    This is the integral term of TK Eq. 17. A law of the length is to be judged by it: of a length that hardly moved,
    or that only shrank, every law predicts most.

    Args:
        t: times :math:`\eta n`, shape ``(T,)``, increasing.
        r_squared: :math:`r^2` at these times, measured or predicted, shape ``(T,)`` or ``(T, ...)``.
        momentum, weight_decay: as in ``torch.optim.SGD``.

    Returns:
        Shape of ``r_squared``, float64; 0 at the first time.

    Raises:
        ValueError: shapes that do not fit, times that do not increase, lengths that are not positive, settings.

    Source: TK Eq. 17.

    Example:
        >>> radius_gain([0.0, 1.0], [1.0, 1.0], weight_decay=0.25).round(decimals=3).tolist()
        [0.0, 0.632]
    """
    _, momentum, weight_decay = settings(1.0, momentum, weight_decay)
    t, fourth = times(t), positive("r_squared", r_squared) ** 2
    if fourth.ndim == 0 or len(fourth) != len(t):
        raise ValueError(f"{len(t)} times and r_squared of shape {tuple(fourth.shape)}; give one for each time")
    fade = torch.exp(-4 * weight_decay / (1 - momentum) * (t - t[0]))
    return fourth - fade.reshape(-1, *[1] * (fourth.ndim - 1)) * fourth[0]


def rmsprop_accumulator(t, grad_norm_squared, g0, *, lr: float, rho: float) -> Tensor:
    r"""RMSProp's running mean of squared gradients in continuous time (TK Eq. 18, without the square root).

    .. math:: G(t) = \lambda\int_0^t e^{-\lambda(t-\tau)}|\nabla f|^2 d\tau + e^{-\lambda t}G(0),
              \qquad \lambda = \frac{1-\rho}{\eta}

    It follows :math:`G_{n+1} = \rho G_n + (1-\rho)|\nabla f|^2` with an error of order 1 in :math:`1-\rho`, and is
    exact for gradient norms that are linear between the given times.

    Args:
        t: times :math:`\eta n`, shape ``(T,)``, increasing.
        grad_norm_squared: shape ``(T,)`` or ``(T, ...)``. In ``torch.optim.RMSprop`` each component has its own.
        g0: :math:`G` at ``t[0]``, not negative.
        lr: step size :math:`\eta > 0`.
        rho: in (0, 1); ``alpha`` of ``torch.optim.RMSprop``.

    Returns:
        :math:`G`, in the shape of ``grad_norm_squared``, float64.

    Raises:
        ValueError: as :func:`radius_squared`.

    Source: TK Eq. 18.

    Example:
        >>> rmsprop_accumulator([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], 0.0, lr=0.1, rho=0.9).round(decimals=3).tolist()
        [0.0, 0.632, 0.865]
    """
    lr, rho = positive_number("lr", lr), real_number("rho", rho)
    if not 0 < rho < 1:
        raise ValueError(f"rho must be in (0, 1), got {rho}; at 1 the accumulator never moves, at 0 it has no memory")
    rate = (1 - rho) / lr
    return _remembered(t, grad_norm_squared, at_least_zero("g0", g0), rate, rate, 1.0)


def _remembered(t, source, start: Tensor, rate: float, gain: float, factor) -> Tensor:
    """``gain * integral of exp(-rate (t - s)) factor source(s) ds + exp(-rate t) start``, for a broken-line source."""
    t, source = times(t), at_least_zero("grad_norm_squared", source)
    if source.ndim == 0 or len(source) != len(t):
        raise ValueError(
            f"{len(t)} times and grad_norm_squared of shape {tuple(source.shape)}; its first dimension "
            "runs over the times"
        )
    source = broadcast("persistence", at_least_zero("persistence", factor), source) * source
    start = broadcast("the value at t[0]", start, source[0])
    h = t.diff().reshape(-1, *[1] * (source.ndim - 1))
    z = rate * h
    left, right = _weights(z)
    pieces = gain * h * (left * source[:-1] + right * source[1:])
    return _scan(torch.exp(-z).expand_as(pieces), torch.cat([start[None], pieces]))


def _weights(z: Tensor) -> tuple[Tensor, Tensor]:
    """Integrals of exp(-z (1 - s)) times (1 - s) and times s over [0, 1]; a series where they would cancel."""
    small = z < 0.02
    safe = torch.where(small, torch.ones_like(z), z)
    whole = torch.where(small, _series(z, 1), -torch.expm1(-safe) / safe)
    right = torch.where(small, _series(z, 2), (safe + torch.expm1(-safe)) / safe**2)
    return whole - right, right


def _series(z: Tensor, first: int) -> Tensor:
    return sum(((-z) ** j / math.factorial(j + first) for j in range(7)), torch.zeros_like(z))


def _scan(decay: Tensor, pieces: Tensor) -> Tensor:
    """``y[i+1] = decay[i] y[i] + pieces[i+1]`` for all ``i`` by doubling: sums of positive numbers, nothing grows."""
    a, y, reach = decay.clone(), pieces.clone(), 1
    while reach < len(y):
        y[reach:] = y[reach:] + a[reach - 1 :] * y[:-reach]
        a[reach:] = a[reach:] * a[:-reach]
        reach *= 2
    return y


# --- exact equations ----------------------------------------------------------------------------------------------


class Polar(NamedTuple):
    r"""A motion in polar coordinates; made by :func:`polar`.

    Attributes:
        r: length, shape ``(...)``.
        direction: :math:`\hat q = q/r`, shape ``(..., n)``.
        radial_velocity: :math:`\dot r`, shape ``(...)``.
        angular_velocity: :math:`\dot{\hat q}`, shape ``(..., n)``, at right angles to the direction; its norm is in
            radians per time.
    """

    r: Tensor
    direction: Tensor
    radial_velocity: Tensor
    angular_velocity: Tensor


def polar(q: Tensor, v: Tensor) -> Polar:
    r"""Length and direction of a moving point, and how fast each changes.

    .. math:: q = r\hat q, \qquad \dot r = \langle\hat q, \dot q\rangle, \qquad
              \dot{\hat q} = \frac{\dot q - \dot r\,\hat q}{r}

    Args:
        q: points, shape ``(n,)`` or ``(T, n)``, none of them 0.
        v: velocities, same shape.

    Returns:
        A :class:`Polar`, to be unpacked: ``r, direction, radial_velocity, angular_velocity``.

    Raises:
        ValueError: shapes that differ, or a point of length 0, which has no direction.

    Source: TK supplement C.1.

    Example:
        >>> import torch
        >>> r, u, dr, du = polar(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0]))
        >>> r.item(), dr.item(), du.tolist()
        (2.0, 1.0, [0.0, 1.5])
    """
    q, v = as_tensor("q", q), as_tensor("v", v)
    if q.shape != v.shape or q.ndim == 0 or not q.numel():
        raise ValueError(f"q has shape {tuple(q.shape)} and v {tuple(v.shape)}; a velocity has the shape of its point")
    for name, x in (("q", q), ("v", v)):
        if known(~torch.isfinite(x).all()):
            raise ValueError(f"{name} holds NaN or infinity, which has no direction; cut the run where it diverged")
    r = q.norm(dim=-1, keepdim=True)
    if not (r > 0).all():
        raise ValueError("a point of length 0 has no direction; stay away from the origin")
    u = q / r
    rate = (u * v).sum(-1, keepdim=True)
    return Polar(r[..., 0], u, rate[..., 0], (v - rate * u) / r)


def radius_squared_of_steps(
    step_norm_squared, r0_squared, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> Tensor:
    r"""The squared length after every step of heavy ball, exactly, from how long the steps were.

    .. math:: r_{n+1}^2 - r_n^2 = \beta\,(r_n^2 - r_{n-1}^2) + |d_n|^2 + \beta|d_{n-1}|^2 - 2\eta k\, r_n^2

    with :math:`d_n = q_{n+1} - q_n`, an empty buffer at the start, and no approximation: it holds to rounding on every
    mini-batch, because a gradient of a scale-invariant loss is at right angles to the weight.

    Args:
        step_norm_squared: :math:`|d_n|^2` of the steps 0 to ``N - 1``, shape ``(N,)`` or ``(N, ...)``.
        r0_squared: :math:`r_0^2`, positive.
        lr, momentum, weight_decay: as in ``torch.optim.SGD``; constant during the run.

    Returns:
        :math:`r_n^2` for ``n = 0 .. N``, shape ``(N + 1, ...)``, float64.

    Raises:
        ValueError: settings out of range, negative or non-finite values.

    Source: Noether's learning dynamics (TK Eq. 11) in discrete time; Wan et al. (arXiv 2006.08419) use its balance.

    Example:
        >>> radius_squared_of_steps([1.0, 0.0], 4.0, lr=0.1, momentum=0.5).tolist()
        [4.0, 5.0, 6.0]
    """
    lr, momentum, weight_decay = settings(lr, momentum, weight_decay)
    steps = at_least_zero("step_norm_squared", step_norm_squared)
    if steps.ndim == 0:
        raise ValueError("step_norm_squared is a single number; give one for each step, shape (N,)")
    now = broadcast("r0_squared", positive("r0_squared", r0_squared), torch.zeros(steps.shape[1:])).clone()
    rates = steps + momentum * torch.cat([torch.zeros_like(steps[:1]), steps[:-1]])
    path, gain = [now], torch.zeros_like(now)
    for rate in rates:
        gain = momentum * gain + rate - 2 * lr * weight_decay * now
        now = now + gain
        path.append(now)
    return torch.stack(path)
