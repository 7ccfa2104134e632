r"""The law of a weight's norm in steps, for any rate that changes on the way.

.. math:: y = |W|^p, \qquad y_{n+1} = e^{-p\kappa\eta_n}\,y_n + \eta_n^2\,G + \eta_n F

SGD on a scale-invariant weight has :math:`p = 4` (TK Eq. 17), since its gradients shrink as the weight grows; an
optimiser whose updates are normalised has :math:`p = 2`. :math:`\kappa` is what decay takes from the logarithm of the
norm, for each unit of the rate. What gradients add, the drive, has two parts: :math:`G` of updates that forget one
another, and :math:`F` of a pull along the weight that lasts, which no scale-invariant weight knows under SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SGD, NORMALIZED = "sgd", "normalized"


@dataclass(frozen=True)
class NormLaw:
    r"""Which power of the norm obeys the law, and what decay does to the norm.

    Attributes:
        power: :math:`p`, 4 under SGD and 2 under a normalised optimiser.
        fading: :math:`\kappa`, in 1 / time: :math:`\lambda` for decay that acts on the weight alone,
            :math:`\lambda/(1-\beta)` for decay that passes through the momentum.
    """

    power: int
    fading: float

    def fades(self, rates: Tensor) -> Tensor:
        """What decay takes from the logarithm of ``y`` in steps at these rates."""
        return self.power * self.fading * rates


def law_of(rule: str, weight_decay: float, momentum: float, decoupled: bool) -> NormLaw:
    """The law of a rule's own power and decay."""
    through_momentum = rule == SGD and not decoupled
    return NormLaw(4 if rule == SGD else 2, weight_decay / (1 - momentum) if through_momentum else weight_decay)


@dataclass(frozen=True)
class Passage:
    """What the law makes of ``y`` between two records: ``y_last = left * y_first + of_noise * G + of_force * F``."""

    left: Tensor
    of_noise: Tensor
    of_force: Tensor

    def gain(self, drive: Drive) -> Tensor:
        """What the drive adds to ``y`` on the way."""
        return self.of_noise * drive.noise + self.of_force * drive.force

    def size(self, drive: Drive) -> Tensor:
        """The same without signs, so that parts which cancel still have a size."""
        return self.of_noise * drive.noise.abs() + self.of_force * drive.force.abs()


@dataclass(frozen=True)
class Drive:
    """What gradients add to ``y``, ``G`` of the law and ``F``, shape ``(N,)`` each."""

    noise: Tensor
    force: Tensor

    @property
    def outward(self) -> Drive:
        """The parts that lengthen the weight."""
        return Drive(self.noise.clamp(min=0), self.force.clamp(min=0))

    @property
    def inward(self) -> Drive:
        """The parts that shorten it, negative."""
        return Drive(self.noise.clamp(max=0), self.force.clamp(max=0))


@dataclass(frozen=True)
class Intervals:
    """What decay and rate do in each of some intervals of steps, shape ``(T,)`` each.

    Attributes:
        fades: logarithm of what decay leaves of ``y``, with the sign changed.
        of_noise, of_force: what a ``G`` or an ``F`` of 1 adds to ``y``.
    """

    fades: Tensor
    of_noise: Tensor
    of_force: Tensor

    def between(self, first: int, last: int) -> Passage:
        """All intervals from one record to another together."""
        fades = self.fades[first:last]
        after = torch.exp(fades - fades.flip(0).cumsum(0).flip(0))  # what is left at the end of what came in each
        noise, force = after * self.of_noise[first:last], after * self.of_force[first:last]
        return Passage(torch.exp(-fades.sum()), noise.sum(), force.sum())


def intervals(law: NormLaw, rates: Tensor, lengths: Tensor) -> Intervals:
    """Of steps taken at constant rates: ``rates`` and the numbers of steps ``lengths``, shape ``(T,)`` both."""
    fades = law.fades(rates) * lengths
    whole = torch.where(fades > 1e-12, -torch.expm1(-fades) / fades.clamp(min=1e-300), torch.ones_like(fades))
    return Intervals(fades, rates.square() * lengths * whole, rates * lengths * whole)


def sgd_drive(grad_norms: Tensor, norms: Tensor, persistence: Tensor, momentum: float) -> Tensor:
    r""":math:`\frac{2(1+\beta)}{(1-\beta)^3}\,P\,|\hat g|^2`, of the gradient :math:`\hat g = r g`."""
    return 2 * (1 + momentum) / (1 - momentum) ** 3 * persistence * (grad_norms * norms).square()


def normalized_drive(update_norms: Tensor, memory: Tensor) -> Tensor:
    """``|u|^2 S``: what updates of this length and memory add to the squared norm."""
    return update_norms.square() * memory


def steps_until(distance_now: Tensor, tolerance: Tensor, fade_per_step: float) -> Tensor:
    """Steps in which a distance that decays falls to its tolerance; 0 where it is there."""
    ratio = (distance_now.abs() / tolerance).clamp(min=1.0)
    return (ratio.log() / fade_per_step).ceil() if fade_per_step > 0 else torch.full_like(ratio, math.inf)
