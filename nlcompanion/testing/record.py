"""What a layer was given and gave back, with the gradients of both; and the kinds of layer that have laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nlcompanion._arguments import described
from nlcompanion.testing.rounding import Balance, Precision

LARGE = 1 << 15  # numbers; the time of a check on fewer goes into calls


@dataclass
class Record:
    """Tensors by role (``x``, ``weight``, ``y``, ...), the loss's gradients by the same roles, and options.

    ``work`` is the dtype of the check's own arithmetic, and ``limits`` are what a law could not be held against, and
    why; a dictionary for its keys. ``read`` are the roles that the laws have asked for, of gradients with a d before.
    """

    values: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    work: torch.dtype = torch.float64
    limits: dict[str, None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def cast(self, tensor: Tensor) -> Tensor:
        """In the dtype of the check's own arithmetic."""
        return tensor.to(self.work)

    @property
    def worth_a_look(self) -> bool:
        """No tensor is finer than float32, which then loses little, and the largest are large enough to save time."""
        tensors = [*self.values.values(), *(g for g in self.gradients.values() if g is not None)]
        coarse = all(torch.finfo(t.dtype).eps >= torch.finfo(torch.float32).eps for t in tensors)
        return coarse and max(t.numel() for t in tensors) >= LARGE

    def value(self, role: str) -> Tensor:
        """In the dtype of the check, detached."""
        return self.cast(self.raw_value(role))

    def gradient(self, role: str) -> Tensor:
        """In the dtype of the check, detached."""
        return self.cast(self.raw_gradient(role))

    def raw_value(self, role: str) -> Tensor:
        """As it was given, detached."""
        if role not in self.values:
            raise ValueError(f"the law needs {role!r}, and only {', '.join(self.values)} were given; pass it too")
        self.read.add(role)
        return self.values[role].detach()

    def raw_gradient(self, role: str) -> Tensor:
        """As it was given, detached."""
        gradient = self.gradients.get(role)
        if gradient is None:
            raise ValueError(
                f"there is no gradient of {role!r}, so no law can be held against it; the backward pass must reach "
                f"{role!r} (requires_grad=True, and no detach on the way)"
            )
        self.read.add("d" + role)
        return gradient.detach()

    def has(self, *roles: str) -> bool:
        return all(self.gradients.get(role) is not None for role in roles)

    @property
    def precision(self) -> Precision:
        given = [gradient for gradient in self.gradients.values() if gradient is not None]
        return Precision.of(*self.values.values(), *given, dtype=self.dtype)

    def check(self) -> None:
        """Errors for what no verdict can be given on: integers, and shapes that do not fit."""
        for role, value in self.values.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                what = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{role} is {what}, which has no gradient; laws are for floating-point tensors")
            if not value.numel() or value.is_meta or value.layout != torch.strided:
                raise ValueError(f"{role} holds no plain numbers: {described(value)}; give values as in training")
            gradient = self.gradients.get(role)
            if gradient is not None and not (isinstance(gradient, Tensor) and gradient.is_floating_point()):
                raise TypeError(f"the gradient of {role} is {described(gradient)}, not a floating-point tensor")
            if gradient is not None and gradient.shape != value.shape:
                raise ValueError(
                    f"the gradient of {role} has shape {tuple(gradient.shape)} and {role} itself {tuple(value.shape)}; "
                    "they must be the same"
                )

    def check_finite(self, masked: tuple[str, ...] = (), *, but: Set[str] = frozenset()) -> None:
        """An error for values that are not finite; those of ``masked`` roles may be minus infinity.

        The roles in ``but`` are left out, as ``read`` has them.
        """
        for role, value in self.values.items():
            for own, name, tensor in (
                (role, role, value),
                ("d" + role, f"the gradient of {role}", self.gradients.get(role)),
            ):
                if tensor is None or own in but:
                    continue
                if tensor is value and role in masked:
                    tensor = tensor.masked_fill(tensor == -torch.inf, 0.0)
                if not _finite(tensor):
                    raise ValueError(
                        f"{name} holds {int((~torch.isfinite(tensor)).sum())} values that are not finite; no law says "
                        "anything about them, look for the overflow first"
                    )


def _finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms; only a sum that is not needs a closer look."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


@dataclass(frozen=True)
class Kind:
    """A kind of layer: its roles in the order in which a function takes them, its laws, and what may be masked."""

    name: str
    roles: tuple[str, ...]
    laws: Callable[[Record], list[Balance]]
    masked: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {}
MODULES: dict[type, Callable[[Any], tuple[str, Mapping[str, Any]] | None]] = {}


def register_kind(
    name: str, roles: tuple[str, ...], laws: Callable[[Record], list[Balance]], masked: tuple[str, ...] = ()
) -> None:
    """Make a kind known: ``laws(record)`` returns the balances of a call; ``masked`` roles may hold minus infinity."""
    KINDS[name] = Kind(name, roles, laws, masked)


def register_module(module: type, read: Callable[[Any], tuple[str, Mapping[str, Any]] | None]) -> None:
    """Say which kind a module is, and with which options; None where its settings leave no law."""
    MODULES[module] = read


def kind_of(name: str) -> Kind:
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"there is no kind {described(name)}; the kinds are {', '.join(sorted(KINDS))}")
    return KINDS[name]
