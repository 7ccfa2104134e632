"""Gradients of a loss that are checked: finite, and of a scalar."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nlcompanion._arguments import function


class LossGradient:
    """The gradient of ``f`` at a float64 point, with ``f``'s value checked to be a finite scalar.

    Non-finite values make the gradient NaN: adaptive solvers then shorten the step, and callers can tell.

    A loss may offer a faster way than autograd, as an attribute ``value_and_gradient``: a function
    ``q -> (value, gradient)`` of a float and a float64 tensor, or None where it has none.
    """

    def __init__(self, f: Callable[[Tensor], Tensor]):
        self.f = function("f", f, "f(q) -> scalar tensor", 1)
        self.offered = getattr(f, "value_and_gradient", None)
        self.calls = 0

    def __call__(self, q: Tensor) -> Tensor:
        self.calls += 1
        if self.offered is not None:
            value, slope = self.offered(q)
            return slope if math.isfinite(value) else torch.full_like(slope, math.nan)
        q = q.detach().requires_grad_()
        value = self.f(q)
        self._check(value)
        (slope,) = torch.autograd.grad(value, q)
        if not math.isfinite(value.item()):
            return torch.full_like(slope, math.nan)
        return slope

    @staticmethod
    def _check(value) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1 or value.ndim > 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"the loss f(q) must be a scalar tensor, got {got}; reduce it with .mean() or .sum() inside f"
            )
        if not value.requires_grad:
            raise TypeError(
                "the loss f(q) does not depend on q through torch operations, so it has no gradient; "
                "avoid .item(), .numpy() and torch.tensor(...) inside f"
            )


def gradient_of(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """The gradient of a loss at one point; an error where it is not finite."""
    slope = LossGradient(f)(q)
    if not torch.isfinite(slope).all():
        raise ValueError(
            "the loss or its gradient is not finite at q; nothing can be said about its symmetries there: take a "
            "point inside its domain"
        )
    return slope
