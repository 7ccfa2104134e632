"""How far a step may leave its law: its residual, or the gradient's component along the symmetry."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from nlcompanion.monitoring.precision import TOLERANCES, GradientPrecision
from nlcompanion.monitoring.stacked_forms import StackedForms
from nlcompanion.monitoring.step_states import Ahead, Moving

_TINY = 1e-300  # neurons of nothing but zeros have an excess of 0
_OF_ROUNDING = 8  # units in the last place of the largest gradient of any law


class StepJudge:
    """Judges steps, beside the largest steps and gradients so far.

    Args:
        forms: of the laws.
        dtype: of the weights.
        exact: which entries of the laws have a formula for their steps; of the others the gradients are judged.
        precision: of the gradients.
    """

    def __init__(self, forms: StackedForms, dtype: torch.dtype, exact: Tensor, precision: GradientPrecision):
        self._forms, self._dtype, self._precision = forms, dtype, precision
        self._exact, self._is_exact = exact, bool(exact.all())
        self._is_mixed = bool(exact.any()) and not self._is_exact
        self._largest: Tensor | None = None  # gradient so far, as the scale of what is left of later ones
        self._longest: Tensor | None = None  # step so far, times the weights, likewise

    def judge(
        self, ahead: Ahead, along: Tensor | None, moving: Moving, excess: Tensor, allowed: Tensor, area: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What is left of a step, relative to what may be, and the cosine of gradient and generator where it was read.

        Args:
            ahead, along, moving: the step.
            excess: its residual.
            allowed: the squares of the weights, which the residual is compared with.
            area: length of the step times length of the weights, which it is compared with in half precision.
        """
        ratio = excess / (allowed + _TINY)
        if self._precision.dtype is not None:  # the gradients' rounding is that of the step, not that of the weights
            self._longest = area if self._longest is None else torch.maximum(self._longest, area)
            floor = TOLERANCES[self._dtype] * allowed
            ratio = (excess - floor).clamp_min(0.0) / (self._longest + _TINY)
        if self._is_exact or along is None:
            return ratio, None
        squared = reduce(torch.add, [lengths for _, lengths in ahead.gradients.values()])
        slope, generator = squared.sqrt()
        of_gradient = self._forms.form(along)
        if ahead.sources is not None:
            of_gradient = of_gradient - ahead.sources
        relative, cosine = self._of_slopes(of_gradient, slope, generator, moving.whole)
        return (torch.where(self._exact, ratio, relative) if self._is_mixed else relative), cosine

    def _of_slopes(
        self, along: Tensor, slope: Tensor, generator: Tensor, whole: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The gradient's part along the generator, against the largest gradient so far and as a cosine.

        Near a minimum the gradient is a small difference of large terms, and its own rounding is relative to those.
        """
        zero = torch.zeros_like(along)
        if whole is not None:  # of a step that was left out, or was taken by some of the optimizers only
            along, slope = torch.where(whole, along, zero), torch.where(whole, slope, zero)
        self._largest = slope if self._largest is None else torch.maximum(self._largest, slope)
        reference, lengths = self._largest * generator, slope * generator
        # of a direction without effect all of the gradient is the rounding of larger ones
        noise = _OF_ROUNDING * torch.finfo(self._dtype).eps * self._largest.max() * generator
        along = torch.where((along.abs() <= noise) & noise.isfinite(), zero, along)
        relative = torch.where(reference > 0, along.abs() / reference, along.abs())
        return relative, torch.where(lengths > 0, along / lengths, zero)
