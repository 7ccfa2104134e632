"""Laws among parameters alone: a whole model's gradient as it lies in ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nlcompanion.testing.rounding import Balance, Precision


@runtime_checkable
class SlopeLaw(Protocol):
    """Anything that can say how much of a gradient lies along a symmetry."""

    def slope(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``<g, xi(theta)>``, one entry for each law of a stack, and the sum of its absolute terms."""
        ...


@dataclass(frozen=True)
class GainIntoLinear:
    r"""A norm's gain into linear layers: :math:`\gamma_j d\gamma_j + \beta_j d\beta_j = \sum_i W_{ij} dW_{ij}`.

    Args:
        gain: name of the gain, shape ``(d,)``.
        weights: names of every weight of shape ``(out, d)`` that reads the norm's output, and nothing else may read it.
        shift: name of the shift, if the norm has one.
    """

    gain: str
    weights: tuple[str, ...]
    shift: str | None = None

    @property
    def statement(self) -> str:
        return "γ dγ + β dβ = sum of W dW" if self.shift else "γ dγ = sum of W dW"

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.gain, *([self.shift] if self.shift else []), *self.weights)

    def slope(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        terms = {name: values[name] * gradients[name] for name in self.parameters}
        above = torch.stack([terms[name] for name in self.parameters if name not in self.weights])
        below = torch.cat([terms[name] for name in self.weights])
        return above.sum(0) - below.sum(0), above.abs().sum(0) + below.abs().sum(0)


def laws_of(laws) -> tuple:
    """A sequence of laws, or anything that has ``.laws``, as an audit has."""
    found = getattr(laws, "laws", laws)
    return tuple(found) if isinstance(found, Sequence) else (found,)


def parameter_balances(model: nn.Module, laws, dtype: torch.dtype | None = None) -> list[Balance]:
    """One balance for each law, with the gradients that lie in ``.grad``."""
    named = dict(model.named_parameters())
    values, gradients = {}, {}
    for name, parameter in named.items():
        values[name] = parameter.detach().double()
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().double()
            if not torch.isfinite(gradients[name]).all():
                raise ValueError(f"the gradient of {name} is not finite; no law says anything about it")
    precision = Precision.of(*named.values(), dtype=dtype)
    return [_balance(law, values, gradients, precision) for law in laws_of(laws)]


def _balance(law, values: dict, gradients: dict, precision: Precision) -> Balance:
    names = tuple(law.parameters)
    for name in names:
        if name not in values:
            raise ValueError(f"the law {law.statement!r} speaks of {name!r}, which the model lacks")
        if name not in gradients:
            raise ValueError(
                f"{name} has no gradient (.grad is None), and {law.statement!r} needs it; call this after backward() "
                "and before zero_grad()"
            )
    if isinstance(law, SlopeLaw):
        slope, size = law.slope(values, gradients)
        numbers = size
    else:
        slope, size, numbers = _of_form(law, values, gradients)
    count = max(gradients[name].numel() for name in names)
    unit = precision.stored + precision.sums * count**0.5
    difference, size, noise = slope.reshape(-1), size.reshape(-1), unit * numbers.reshape(-1)
    return Balance.whole(law.statement, ", ".join(names), difference, size, noise, size / 2)


def _of_form(law, values: dict, gradients: dict) -> tuple[Tensor, Tensor, Tensor]:
    """A law of this package, which has a bilinear form on flat vectors that list the trained parameters in order."""
    q = torch.cat([values[name].reshape(-1) for name in gradients])
    g = torch.cat([gradients[name].reshape(-1) for name in gradients])
    reads, writes = law.sides(g.abs(), q.abs())
    size = reads.abs() + writes.abs()
    return law.form(g, q), size, size
