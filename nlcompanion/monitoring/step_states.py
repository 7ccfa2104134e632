"""What is known between two steps, before a step, and of what a step moved."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nlcompanion.monitoring.step_settings import Settings

Versions = list[int]
Written = tuple[Tensor, Tensor]  # the change of the charges by what was written to the weights, and their scale


@dataclass(frozen=True)
class Rest:
    """The weights between two steps.

    Attributes:
        squares: the forms' pairings of the weights with themselves.
        weights, buffers: what tells that a weight or a momentum buffer was written to, or replaced.
        last: pairings of the last step with the weights, and the rates it was made with; None where it was not the
            buffer times the rate.
    """

    squares: Tensor
    weights: Versions
    buffers: list[tuple[int, int] | None]
    last: tuple[Tensor, dict[str, float]] | None


@dataclass(frozen=True)
class UsedGradient:
    """The gradient of one parameter after a step with it: which tensor, without keeping it alive, and its version."""

    parameter: nn.Parameter
    tensor: weakref.ref[Tensor]
    version: int

    def is_followed_by_another(self) -> bool:
        """Whether a backward pass has come since; a gradient that was cleared is none."""
        gradient = self.parameter.grad
        if gradient is None:
            return False
        if gradient is not self.tensor():
            return True
        return gradient._version != self.version and bool(gradient.any())


@dataclass
class Ahead:
    """What is known of a step before it is taken.

    Attributes:
        settings: of the optimizers.
        rest: the weights that it starts from.
        outside: what was written to the weights since the last step.
        memory: pairings of the buffers with the weights, each to be multiplied by a number; None without momentum.
        reads_gradients: whether the books need them.
        sources: of laws with a source, their ``form(gradient, point)``.
        buffers: SGD's momentum buffers.
        gradients: of each optimizer pairings of its gradients with the weights, and squared lengths, where needed.
        begun, stepped: which optimizers have begun their part of the step, and finished it.
        used: a gradient of each that has finished, as it was then.
        rescaled: whether a gradient scaler takes part, which may skip the step.
    """

    settings: Settings
    rest: Rest
    outside: Written | None
    memory: tuple[Tensor, dict[str, float]] | None
    reads_gradients: bool
    sources: Tensor | None
    buffers: list[Tensor | None]
    gradients: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    stepped: set[int] = field(default_factory=set)
    used: list[UsedGradient] = field(default_factory=list)
    rescaled: bool = False


@dataclass(frozen=True)
class Moving:
    """What a step moved; empty where it cannot but move all.

    Attributes:
        pairs: which of the forms' pairings belong to parameters that moved.
        whole: of which laws all parameters moved.
        skipped: whether nothing moved at all.
    """

    pairs: Tensor | None = None
    whole: Tensor | None = None
    skipped: Tensor | None = None

    def of(self, pairs: Tensor) -> Tensor:
        return pairs if self.pairs is None else torch.where(self.pairs, pairs, 0.0)
