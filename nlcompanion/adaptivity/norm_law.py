r"""The law of a weight's norm in steps, for any rate that changes on the way.

.. math:: y = |W|^p, \qquad y_{n+1} = e^{-p\kappa\eta_n}\,y_n + \eta_n^2\,G_n

SGD on a scale-invariant weight has :math:`p = 4` (TK Eq. 17), since its gradients shrink as the weight grows; an
optimiser whose updates are normalised has :math:`p = 2`. :math:`\kappa` is what decay takes from the logarithm of the
norm, for each unit of the rate; :math:`G`, the drive, is what gradients add.
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
class Intervals:
    """What the law needs of the steps between records, shape ``(T - 1,)`` each.

    Attributes:
        fades: logarithm of what decay leaves of ``y``, over the whole interval, with the sign changed.
        exposures: what a drive of 1 adds to ``y`` in the interval.
    """

    fades: Tensor
    exposures: Tensor

    def between(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """``left, exposure`` with ``y[last] = left * y[first] + exposure * drive``."""
        fades = self.fades[first:last]
        after = fades.flip(0).cumsum(0).flip(0) - fades  # what fades after each interval's own end
        return torch.exp(-fades.sum()), (torch.exp(-after) * self.exposures[first:last]).sum()


def intervals(law: NormLaw, rates: Tensor, lengths: Tensor) -> Intervals:
    """Of steps taken at constant rates: ``rates`` and the numbers of steps ``lengths``, shape ``(N,)`` both."""
    fades = law.fades(rates) * lengths
    whole = torch.where(fades > 1e-12, -torch.expm1(-fades) / fades.clamp(min=1e-300), torch.ones_like(fades))
    return Intervals(fades, rates.square() * lengths * whole)


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
