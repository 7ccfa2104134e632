"""The step that nearly every run takes nearly always, booked in one pass and a handful of operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlcompanion.laws.terms import Squares, Term
from nlcompanion.laws.under_optimizers import CAUSES
from nlcompanion.monitoring.stacked_forms import StackedForms, Tensors, pairing_size

_SQUARE, _PRODUCT, _WEIGHTS, _LAST = range(4)  # rows of the pairings
_TINY = 1e-300  # neurons of nothing but zeros have an excess of 0


@dataclass(frozen=True)
class Booked:
    """What came of a step.

    Attributes:
        sums: the change of every charge and its causes in their order, shape ``(1 + len(CAUSES), size)``.
        charges: before the step.
        ratio: what is left, relative to what it is compared with.
    """

    sums: Tensor
    charges: Tensor
    ratio: Tensor


class UsualStep:
    """Steps of one SGD with one setting for all, whose laws compare squares; made by :meth:`of`.

    All that is booked is linear in four rows of pairings: of the step with itself, of the step with the new weights, of
    the weights before it with themselves, and of the step before with these. The buffer of a heavy ball is that step
    over its rate, so no buffer is read; nothing is asked for anew, and every tensor is passed through once while it is
    in the processor's cache.

    Attributes:
        squares: pairings of the weights with themselves, as of the last step.
        last: pairings of the last step, negative, with the weights.
    """

    def __init__(self, forms: StackedForms, parameters: Mapping[str, nn.Parameter], before: Tensors):
        first = next(iter(parameters.values()))
        pairs = sum(pairing_size(term) for term in forms.keys.values())
        raw = first.new_empty(2, pairs, requires_grad=False)
        self._raw, self._rows = raw, torch.zeros(4, pairs, dtype=torch.float64, device=first.device)
        self.squares, self.last = self._rows[_WEIGHTS], self._rows[_LAST]
        index, coefficient = forms.gathering
        self._index, self._shape = index.reshape(-1), (4, *index.shape)
        self._coefficient, self._size = coefficient, coefficient.abs()
        self._rates: tuple[float, float] | None = None
        self._causes = torch.zeros(len(CAUSES) + 2, 4, dtype=torch.float64, device=first.device)
        room = first.new_empty(max(p.numel() for p in parameters.values()), requires_grad=False)
        self._parts = [
            _Part(before[name], parameters[name], room, list(_ways(forms, name, raw))) for name in parameters
        ]
        self._before, self._weights = [part.before for part in self._parts], [part.weight for part in self._parts]

    @classmethod
    def of(cls, forms: StackedForms, parameters: Mapping[str, nn.Parameter], before: Tensors) -> UsualStep | None:
        """None where a law compares something else than squares, or a tensor's entries do not lie in a row."""
        plain = all(isinstance(term, Squares) and term.index is None for term in forms.keys.values())
        if not plain or not all(p.is_contiguous() for p in parameters.values()):
            return None
        return cls(forms, parameters, before)

    def is_in_place(self) -> bool:
        """Whether the weights still lie where they lay."""
        return all(part.is_in_place() for part in self._parts)

    def book(self, squares: Tensor, last: Tensor | None, memory: float, decay: float) -> Booked:
        """Compare the weights with those before the step, which become its negative.

        Args:
            squares: pairings of the weights before it.
            last: pairings of the step before it, or of the buffer, with these; None without momentum.
            memory: how much of ``last`` the step takes away.
            decay: how much of the weights it takes away.
        """
        for part in self._parts:
            part.compare()
        rows = self._rows
        rows[:2].copy_(self._raw)
        if squares is not self.squares:
            self.squares.copy_(squares)
        if last is None:
            self.last.zero_()
        elif last is not self.last:
            self.last.copy_(last)
        gathered = rows.index_select(1, self._index).view(self._shape)
        forms = (gathered * self._coefficient).sum(-1)
        sizes = (gathered[_SQUARE::_WEIGHTS] * self._size).sum(-1)  # of the step and of the weights
        sums = self._matrix(memory, decay) @ forms
        ratio = sums[-1].abs_() / (sizes.amax(0).add_(_TINY))
        return Booked(sums[:-1], forms[_WEIGHTS], ratio)

    def go_on(self) -> None:
        """Bring the pairings to the weights after the step."""
        square, product, squares, last = self._rows
        squares.sub_(square).sub_(product, alpha=2.0)
        last.copy_(product)
        torch._foreach_copy_(self._before, self._weights)

    def _matrix(self, memory: float, decay: float) -> Tensor:
        """The change, its causes and what is left, each as a sum over the four rows."""
        if self._rates != (memory, decay):
            self._rates = memory, decay
            rows = {name: [0.0] * 4 for name in ("change", *CAUSES, "residual")}
            rows["change"] = [-1.0, -2.0, 0.0, 0.0]
            rows["finite_step"] = [1.0, 0.0, 0.0, 0.0]
            rows["momentum"] = [0.0, 0.0, 0.0, -2 * memory]
            rows["decay"] = [0.0, 0.0, -2 * decay, 0.0]
            rows["residual"] = [-2.0, -2.0, 2 * decay, 2 * memory]
            self._causes.copy_(torch.tensor(list(rows.values()), dtype=torch.float64))
        return self._causes


def _ways(forms: StackedForms, name: str, raw: Tensor):
    """How a parameter's products are summed, and where the sums go: ``(dims, of the step, with the weights)``."""
    for term, place in forms.spans(name):
        yield _dims(term), raw[0, place], raw[1, place]


def _dims(term: Term) -> list[int] | None:
    """Over which dimensions a product is summed; None for all."""
    assert isinstance(term, Squares)
    return None if term.axis is None else [k for k in range(len(term.shape)) if k != term.axis]


class _Part:
    """One parameter: its step, and the step's pairings with itself and with the weights."""

    def __init__(self, before: Tensor, parameter: nn.Parameter, room: Tensor, ways: list):
        self.parameter, self.weight, self.before = parameter, parameter.detach(), before
        self.address = parameter.data_ptr()
        self.flat = self.weight.view(-1), before.view(-1)
        self.product = room[: before.numel()].view(before.shape)
        self.dots = [(one.view(()), other.view(())) for dims, one, other in ways if dims is None]
        self.sums = [(dims, one, other) for dims, one, other in ways if dims]
        self.entries = [(one, other) for dims, one, other in ways if dims == []]

    def is_in_place(self) -> bool:
        return self.parameter.data_ptr() == self.address

    def compare(self) -> None:
        before, weight = self.before, self.weight
        before.sub_(weight)
        for square, product in self.dots:
            flat_weight, step = self.flat
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
