"""What optimizers are set to, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch.optim import SGD, Optimizer

from nlcompanion.laws.under_optimizers import is_decoupled
from nlcompanion.monitoring.watch.tensors import Tensors


@dataclass(frozen=True)
class Setting:
    """What an optimizer makes of one tensor at a step.

    Attributes:
        optimizer: which, by its number.
        group: which of its groups.
        lr, weight_decay: of the group.
        momentum: of SGD; 0 for all other optimizers.
        is_sgd: whether its updates are linear in the gradient.
        decoupled: whether decay acts on the weight alone.
        asks: whether the tensor asks for a gradient.
        has_gradient: whether it had one.
    """

    optimizer: int
    group: int
    lr: float
    weight_decay: float
    momentum: float
    is_sgd: bool
    decoupled: bool
    asks: bool
    has_gradient: bool

    @property
    def shrinks(self) -> float:
        """The share of the weight that decoupled decay takes in a step."""
        return self.lr * self.weight_decay if self.decoupled else 0.0


class Settings(dict[str, Setting]):
    """Of all tensors by name; the arrays have one entry for each, in their order."""

    @cached_property
    def lrs(self) -> np.ndarray:
        return np.array([one.lr for one in self.values()])

    @cached_property
    def decays(self) -> np.ndarray:
        return np.array([one.weight_decay for one in self.values()])

    @cached_property
    def shrinking(self) -> np.ndarray:
        return np.array([one.shrinks for one in self.values()])

    @cached_property
    def has_gradient(self) -> np.ndarray:
        return np.array([one.has_gradient for one in self.values()], dtype=bool)


class SettingsReader:
    """Reads settings from the optimizers; where nothing has changed since the last time, those of the last time."""

    def __init__(self, tensors: Tensors, optimizers: Sequence[Optimizer]):
        self._tensors, self._optimizers = tensors, optimizers
        self._rates: list | None = None
        self._gradients: list | None = None
        self._last = Settings()

    def read(self, *, rates_only: bool = False) -> Settings:
        """The settings now.

        Args:
            rates_only: whether to trust that the same tensors ask for gradients, and have them, as the last time.
        """
        groups = [group for one in self._optimizers for group in one.param_groups]
        rates = [float(group.get(name) or 0.0) for group in groups for name in ("lr", "weight_decay", "momentum")]
        if rates_only and rates == self._rates:
            return self._last
        gradients = [(p.requires_grad, p.grad is None) for p in self._tensors.parameters.values()]
        if rates != self._rates or gradients != self._gradients:
            self._rates, self._gradients, self._last = rates, gradients, self._made()
        return self._last

    def _made(self) -> Settings:
        of_ids: dict[int, Setting] = {}
        for k, one in enumerate(self._optimizers):
            is_sgd = isinstance(one, SGD)
            for number, group in enumerate(one.param_groups):
                lr, decay, momentum = (float(group.get(x) or 0.0) for x in ("lr", "weight_decay", "momentum"))
                of_group = (k, number, lr, decay, momentum if is_sgd else 0.0, is_sgd, is_decoupled(one, group))
                of_ids |= {
                    id(p): Setting(*of_group, asks=p.requires_grad, has_gradient=p.grad is not None)
                    for p in group["params"]
                }
        # one that was just exchanged for another is noticed at the next judged step
        return Settings({name: of_ids.get(id(p)) or self._last[name] for name, p in self._tensors.parameters.items()})
