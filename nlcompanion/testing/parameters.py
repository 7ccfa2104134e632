"""Laws among parameters alone: a whole model's gradient as it lies in ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nlcompanion._arguments import described, instance, layer_input, names
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

    def __post_init__(self) -> None:
        instance("gain", self.gain, str, '"norm.weight"')
        object.__setattr__(self, "weights", names("weights", self.weights))
        if not self.weights:
            raise ValueError("weights names no weight, so nothing reads the gain; name every one that does")
        if self.shift is not None:
            instance("shift", self.shift, str, '"norm.bias"')

    @property
    def statement(self) -> str:
        return "γ dγ + β dβ = sum of W dW" if self.shift else "γ dγ = sum of W dW"

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.gain, *([self.shift] if self.shift else []), *self.weights)

    def slope(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        for what, tensors in (("values", values), ("gradients", gradients)):
            self._check_tensors(what, tensors)
        for name in self.parameters:
            if values[name].shape != gradients[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(values[name].shape)} and its gradient {tuple(gradients[name].shape)}"
                )
        terms = {name: values[name] * gradients[name] for name in self.parameters}
        above = torch.stack([terms[name] for name in self.parameters if name not in self.weights])
        below = torch.cat([terms[name] for name in self.weights])
        return above.sum(0) - below.sum(0), above.abs().sum(0) + below.abs().sum(0)

    def _check_tensors(self, what: str, tensors: dict[str, Tensor]) -> None:
        instance(what, tensors, dict, "{name: tensor}")
        if missing := [name for name in self.parameters if name not in tensors]:
            raise ValueError(f"{what} has no tensor for {', '.join(missing)}, which the law speaks of")
        width = len(layer_input(tensors[self.gain], "(d,)", f"{what}[{self.gain!r}]").reshape(-1))
        for name in self.parameters:
            tensor = layer_input(tensors[name], "(..., d)", f"{what}[{name!r}]")
            if not tensor.ndim or tensor.shape[-1] != width or tensor.ndim != (2 if name in self.weights else 1):
                raise ValueError(
                    f"{what}[{name!r}] has shape {tuple(tensor.shape)}, and the gain has {width} numbers; a gain and "
                    "a shift have shape (d,), the weights that read them (out, d)"
                )


LINEAR = ("accumulation", "loss scaling", "an all-reduce of all tensors", "clipping by the total norm")
ONE_TENSOR = "clipping tensor by tensor"


def laws_of(laws) -> tuple:
    """A sequence of laws, or anything that has ``.laws``, as an audit has, with its ``.identities``."""
    found = getattr(laws, "laws", laws)
    several = tuple(found) if isinstance(found, Sequence) and not isinstance(found, str) else (found,)
    if not several and found is laws:
        raise ValueError("there is no law to check; homogeneous_laws(f) finds those of a network")
    for law in several:
        if not hasattr(law, "parameters") or not (isinstance(law, SlopeLaw) or hasattr(law, "form")):
            raise TypeError(f"laws must be laws of parameters such as homogeneous_laws(f), got {described(law)}")
    return (*several, *getattr(laws, "identities", ()))


def survives(law) -> tuple[str, ...]:
    """What may be done to a whole model's gradient, after the backward pass, without breaking a law.

    All laws are linear in the gradient, so they survive whatever scales or averages all tensors alike. A law of one
    tensor survives what scales each tensor by itself. Clipping number by number turns a gradient, and a penalty or
    decay that is added to it breaks every law but by chance. Of a direction without gradient clipping leaves the
    rounding as it is and makes the rest small, so it is no longer told apart from a broken one.
    """
    alone = len(set(law.parameters)) == 1 or getattr(law, "kind", "") == "dead"
    return (*LINEAR, *([ONE_TENSOR] if alone else []))


def limits_of(laws) -> list[str]:
    """The laws that gradients alone cannot judge."""
    return [
        f"{law.statement}: its source is in the activations, where a Ledger reads it"
        for law in laws_of(laws)
        if getattr(law, "sources", ())
    ]


@dataclass(frozen=True)
class _Gradient:
    """A whole model's parameters and gradients, by name and flat."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor]

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Gradient and point, of the parameters that have a gradient."""
        return self._joined(self.gradients), self._joined(self.values)

    def _joined(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].reshape(-1) for name in self.gradients])

    @cached_property
    def largest(self) -> float:
        return max(float(gradient.abs().max()) for gradient in self.gradients.values())


def parameter_balances(model: nn.Module, laws, dtype: torch.dtype | None = None) -> list[Balance]:
    """One balance for each law, with the gradients that lie in ``.grad``."""
    instance("function", model, nn.Module, "the model whose .grad is checked")
    named = dict(model.named_parameters())
    values, gradients = {}, {}
    for name, parameter in named.items():
        values[name] = parameter.detach().double()
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().double()
            if not torch.isfinite(gradients[name]).all():
                raise ValueError(f"the gradient of {name} is not finite; no law says anything about it")
    precision = Precision.of(*named.values(), dtype=dtype)
    seen = _Gradient(values, gradients)
    return [_balance(law, seen, precision) for law in laws_of(laws) if not getattr(law, "sources", ())]


def _balance(law, seen: _Gradient, precision: Precision) -> Balance:
    names = tuple(law.parameters)
    for name in names:
        if name not in seen.values:
            raise ValueError(f"the law {law.statement!r} speaks of {name!r}, which the model lacks")
        if name not in seen.gradients:
            raise ValueError(
                f"{name} has no gradient (.grad is None), and {law.statement!r} needs it; call this after backward() "
                "and before zero_grad()"
            )
    if isinstance(law, SlopeLaw):
        slope, size = law.slope(seen.values, seen.gradients)
    elif getattr(law, "kind", "") == "dead":
        slope, size = _of_dead(law, seen)
    else:
        slope, size = _of_form(law, seen)
    count = max(seen.gradients[name].numel() for name in names)
    unit = precision.stored + precision.sums * count**0.5
    difference, size = slope.reshape(-1), size.reshape(-1)
    parts = law.statement, ", ".join(names), difference, size, unit * size, size / 2
    return replace(Balance.whole(*parts), survives=survives(law))


def _of_form(law, seen: _Gradient) -> tuple[Tensor, Tensor]:
    """A law of this package, which has a bilinear form on flat vectors that list the trained parameters in order."""
    g, q = seen.flat
    reads, writes = law.sides(g.abs(), q.abs())
    return law.form(g, q), reads.abs() + writes.abs()


def _of_dead(law, seen: _Gradient) -> tuple[Tensor, Tensor]:
    """The gradient along a dead direction, all of which is the rounding of larger ones."""
    lengths = [term.lengths(seen.gradients[term.name], seen.values[term.name])[0].reshape(-1) for term in law.terms]
    slope = torch.stack(lengths).sum(0).sqrt()
    return slope, torch.full_like(slope, seen.largest)
