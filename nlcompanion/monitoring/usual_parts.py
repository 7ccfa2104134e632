"""The pairings of one step, parameter by parameter: each tensor is passed through while it is in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion.laws.terms import Squares, Term
from nlcompanion.monitoring.stacked_forms import StackedForms, Tensors

_SMALL = 32768  # entries beyond which PyTorch shares out its work among threads

Way = tuple[tuple[int, ...] | None, Tensor, Tensor]  # how a product is summed, and where its two sums go


def parts_of(
    forms: StackedForms, parameters: Mapping[str, nn.Parameter], before: Tensors, raw: Tensor
) -> list[Part | SmallPart]:
    """All parameters, each as its size wants it.

    Args:
        forms: of the laws.
        parameters: by name.
        before: copies of them from before a step.
        raw: the pairings of the step with itself and with the weights, shape ``(2, pairs)``, which are written to.
    """
    most = max(parameters.values(), key=lambda p: p.numel())
    room = torch.empty(most.numel(), dtype=most.dtype)
    parts: list[Part | SmallPart] = []
    for name, p in parameters.items():
        kind = SmallPart if p.numel() <= _SMALL else Part
        parts.append(kind(before[name], p.detach(), room, list(_ways(forms, name, raw))))
    return parts


def _ways(forms: StackedForms, name: str, raw: Tensor) -> Iterator[Way]:
    """How a parameter's products are summed, and where the sums go: ``(dims, of the step, with the weights)``."""
    for term, place in forms.spans(name):
        yield _dims(term), raw[0, place], raw[1, place]


def _dims(term: Term) -> tuple[int, ...] | None:
    """Over which dimensions a product is summed; None for all."""
    assert isinstance(term, Squares)
    return None if term.axis is None else tuple(k for k in range(len(term.shape)) if k != term.axis)


class Part:
    """One parameter: its step, and the step's pairings with itself and with the weights."""

    def __init__(self, before: Tensor, weight: Tensor, room: Tensor, ways: list[Way]):
        self.before, self.weight = before, weight
        self.flat = before.view(-1), weight.view(-1)
        self.product = room[: before.numel()].view(before.shape)
        self.dots = [(one.view(()), other.view(())) for dims, one, other in ways if dims is None]
        self.sums = [(dims, one, other) for dims, one, other in ways if dims]
        self.entries = [(one, other) for dims, one, other in ways if dims == ()]

    def compare(self) -> None:
        before, weight = self.before, self.weight
        before.sub_(weight)
        for square, product in self.dots:
            step, flat_weight = self.flat
            torch.dot(step, step, out=square)
            torch.dot(step, flat_weight, out=product)
        for square, product in self.entries:
            torch.mul(before, before, out=square)
            torch.mul(before, weight, out=product)
        if self.sums:
            room = torch.mul(before, before, out=self.product)
            for dims, square, _ in self.sums:
                torch.sum(room, dims, out=square)
            torch.mul(before, weight, out=room)
            for dims, _, product in self.sums:
                torch.sum(room, dims, out=product)

    def go_on(self) -> None:
        self.before.copy_(self.weight)


class SmallPart:
    """The same of a parameter so small that what counts is how long a call takes to begin: NumPy's do sooner."""

    def __init__(self, before: Tensor, weight: Tensor, room: Tensor, ways: list[Way]):
        self.before, self.weight = before.numpy(), weight.numpy()
        self.flat = before.view(-1).numpy(), weight.view(-1).numpy()
        self.product = room[: before.numel()].view(before.shape).numpy()
        self.dots = [(one.numpy(), other.numpy()) for dims, one, other in ways if dims is None]
        self.sums = [(dims, one.numpy(), other.numpy()) for dims, one, other in ways if dims]
        self.entries = [(one.numpy(), other.numpy()) for dims, one, other in ways if dims == ()]

    def compare(self) -> None:
        before, weight = self.before, self.weight
        np.subtract(before, weight, out=before)
        for square, product in self.dots:
            step, flat_weight = self.flat
            square[0] = step.dot(step)
            product[0] = step.dot(flat_weight)
        for square, product in self.entries:
            np.multiply(before, before, out=square)
            np.multiply(before, weight, out=product)
        if self.sums:
            room = np.multiply(before, before, out=self.product)
            for dims, square, _ in self.sums:
                np.add.reduce(room, dims, out=square)
            np.multiply(before, weight, out=room)
            for dims, _, product in self.sums:
                np.add.reduce(room, dims, out=product)

    def go_on(self) -> None:
        np.copyto(self.before, self.weight)
