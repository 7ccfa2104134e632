r"""What the polar equations of TK Section 4 leave over, added up along a motion over a dial.

The dial is a loss in the plane that reads the direction of :math:`q` like a clock hand. A residual is integrated from
start to end, momentum at the end minus the start against integrals, so that no acceleration has to be differenced.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.integrate import romb
from torch import Tensor
from torch.func import grad, vmap

import nlcompanion as nl

FRICTION = 1.0
_SAMPLES = 513  # Romberg's rule wants a power of two, plus one


def dial(q: Tensor) -> Tensor:
    """The loss: a cubic of the cosine of the hand's angle."""
    cosine = q[0] / q.norm()
    return 1.4 + 0.2 * cosine - 1.6 * cosine**3


class Residuals(NamedTuple):
    r"""Norms of the integrated residuals, in units of momentum, at one mass and decay.

    Attributes:
        eq15: TK Eq. 15 as an equation between vectors.
        eq15_tangential: its part tangent to the sphere, a signed number.
        angular: the angular equation with the two terms put back that Eqs. 15 and 28 drop.
        radial: TK Eq. 27.
        radial_whole_speed: the same with :math:`|\dot q|` for :math:`|\dot{\hat q}|`, a misreading.
        squared: the motion of :math:`r^2`, without approximation.
        eq16: TK Eq. 16.
        eq32: TK Eq. 32, without inertia.
        no_push: what gradient flow says of :math:`r^2`: decay alone.
    """

    eq15: float
    eq15_tangential: float
    angular: float
    radial: float
    radial_whole_speed: float
    squared: float
    eq16: float
    eq32: float
    no_push: float


def residuals(mass: float, decay: float, time: float = 1.0) -> Residuals:
    """Integrate the motion in Cartesian coordinates and add up what every equation leaves over.

    Example:
        >>> found = residuals(0.1, 0.05)
        >>> found.squared < 1e-9 < found.eq16
        True
    """

    def potential(q: Tensor) -> Tensor:
        return dial(q) + decay / 2 * q @ q

    def left_over(momentum: Tensor, rest: Tensor) -> Tensor:
        integral = torch.as_tensor(romb(rest.numpy(), time / (_SAMPLES - 1), axis=0))
        return mass * (momentum[-1] - momentum[0]) + integral

    start = torch.tensor([-0.8, 0.6], dtype=torch.float64)
    times = torch.linspace(0, time, _SAMPLES, dtype=torch.float64)
    path = nl.integrate(
        nl.damped(mass, FRICTION), potential, start, -grad(potential)(start),
        t_span=(0, time), t_eval=times, rtol=1e-12, atol=1e-14,
    )  # fmt: skip
    r, unit, fall, turning = nl.polar(path.q, path.v)
    slope = vmap(grad(dial))(unit)
    across = torch.stack([-unit[:, 1], unit[:, 0]], dim=1)
    column = r[:, None] ** 2

    eq15 = FRICTION * turning + slope / column
    dropped = 2 * mass * (fall / r)[:, None] * turning + mass * (turning**2).sum(1, keepdim=True) * unit
    tangential = left_over((across * turning).sum(1), (across * eq15).sum(1))

    def radial(speed_squared: Tensor) -> Tensor:
        return left_over(fall, FRICTION * fall - (mass * speed_squared - decay) * r)

    r_squared, rate = r**2, 2 * r * fall
    decayed = FRICTION * rate + 2 * decay * r_squared
    pushed = decayed - 2 * mass * slope.square().sum(1) / (FRICTION**2 * r_squared)
    eq16 = left_over(rate, pushed)
    return Residuals(
        eq15=left_over(turning, eq15).norm().item(),
        eq15_tangential=tangential.item(),
        angular=left_over(turning, eq15 + dropped).norm().item(),
        radial=radial(turning.square().sum(1)).abs().item(),
        radial_whole_speed=radial(path.v.square().sum(1)).abs().item(),
        squared=left_over(rate, decayed - 2 * mass * path.v.square().sum(1)).abs().item(),
        eq16=eq16.abs().item(),
        eq32=(eq16 - mass * (rate[-1] - rate[0])).abs().item(),
        no_push=left_over(rate, decayed).abs().item(),
    )
