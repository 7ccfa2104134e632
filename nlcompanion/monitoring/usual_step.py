"""The step that nearly every run takes nearly always, booked in one pass and a handful of operations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion.laws.terms import Squares
from nlcompanion.laws.under_optimizers import CAUSES
from nlcompanion.monitoring.stacked_forms import StackedForms, Tensors, pairing_size
from nlcompanion.monitoring.usual_parts import parts_of

_SQUARE, _PRODUCT, _WEIGHTS, _LAST = range(4)  # rows of the pairings
_TINY = 1e-300  # neurons of nothing but zeros have an excess of 0
_DENSE = 1024  # entries up to which a matrix product is cheaper than gathering


class UsualStep:
    """Steps on a CPU of one SGD with one setting for all, whose laws compare squares; made by :meth:`of`.

    All that is booked is linear in four rows of pairings: of the step with itself, of the step with the new weights, of
    the weights before it with themselves, and of the step before with these. The buffer of a heavy ball is that step
    over its rate, so no buffer is read; nothing is asked for anew, and every tensor is passed through once while it is
    in the processor's cache. What is small is NumPy's, whose calls cost a third of PyTorch's.

    Attributes:
        squares: pairings of the weights with themselves, as of the last step.
        last: pairings of the last step, negative, with the weights.
        sums: of the change and of its causes since they were last set to 0, shape ``(1 + len(CAUSES), size)``.
        ratio: what is left of the last step, relative to what it is compared with, shape ``(size,)``.
        worst: the largest of it since it was last set to 0.
    """

    def __init__(self, forms: StackedForms, parameters: Mapping[str, nn.Parameter], before: Tensors):
        first = next(iter(parameters.values()))
        pairs = sum(pairing_size(term) for term in forms.keys.values())
        raw = torch.empty(2, pairs, dtype=first.dtype)
        self._raw, self._rows = raw.numpy(), np.zeros((4, pairs))
        rows = torch.from_numpy(self._rows)
        self.squares, self.last = rows[_WEIGHTS], rows[_LAST]
        self._gather = _Gather(forms, pairs)
        size = len(forms.gathering[0])
        self.sums, self.worst, self.ratio = np.zeros((1 + len(CAUSES), size)), np.zeros(size), np.zeros(size)
        self._rates: tuple[float, float] | None = None
        self._causes = np.zeros((2 + len(CAUSES), 4))
        self._parts = parts_of(forms, parameters, before, raw)

    @classmethod
    def of(cls, forms: StackedForms, parameters: Mapping[str, nn.Parameter], before: Tensors) -> UsualStep | None:
        """None on another device, and where a law compares something else than squares or a tensor is no plain one."""
        plain = all(isinstance(term, Squares) and term.index is None for term in forms.keys.values())
        if not plain or not all(p.is_contiguous() and p.device.type == "cpu" for p in parameters.values()):
            return None
        return cls(forms, parameters, before)

    @np.errstate(all="ignore")  # what is not finite is a finding, and told as one
    def book(self, squares: Tensor, last: Tensor | None, memory: float, decay: float) -> float:
        """Compare the weights with those before the step, which become its negative.

        Args:
            squares: pairings of the weights before it.
            last: pairings of the step before it, or of the buffer, with these; None without momentum.
            memory: how much of ``last`` the step takes away.
            decay: how much of the weights it takes away.

        Returns:
            The largest ratio.
        """
        for part in self._parts:
            part.compare()
        rows = self._rows
        rows[:2] = self._raw
        if squares is not self.squares:
            self.squares.copy_(squares)
        if last is not self.last:
            self.last.copy_(self.last.new_zeros(()) if last is None else last)
        forms, sizes = self._gather(rows)
        sums = self._matrix(memory, decay).dot(forms)
        self.sums += sums[:-1]
        ratio = np.abs(sums[-1], out=self.ratio)
        ratio /= np.maximum(*sizes) + _TINY
        np.maximum(self.worst, ratio, out=self.worst)  # NaN must not pass
        return float(ratio.max())

    @np.errstate(all="ignore")
    def go_on(self) -> None:
        """Bring the pairings to the weights after the step."""
        square, product, weights, last = self._rows
        weights -= square
        weights -= product
        weights -= product
        last[:] = product
        for part in self._parts:
            part.go_on()

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums, the worst and the last ratio; the first two begin again."""
        taken = self.sums, self.worst
        self.sums, self.worst = np.zeros_like(self.sums), np.zeros_like(self.worst)
        return torch.from_numpy(taken[0]), torch.from_numpy(taken[1]), torch.from_numpy(self.ratio.copy())

    def _matrix(self, memory: float, decay: float) -> np.ndarray:
        """The change, its causes and what is left, each as a sum over the four rows."""
        if self._rates != (memory, decay):
            self._rates = memory, decay
            rows = {name: [0.0] * 4 for name in ("change", *CAUSES, "residual")}
            rows["change"] = [-1.0, -2.0, 0.0, 0.0]
            rows["finite_step"] = [1.0, 0.0, 0.0, 0.0]
            rows["momentum"] = [0.0, 0.0, 0.0, -2 * memory]
            rows["decay"] = [0.0, 0.0, -2 * decay, 0.0]
            rows["residual"] = [-2.0, -2.0, 2 * decay, 2 * memory]
            self._causes[:] = list(rows.values())
        return self._causes


class _Gather:
    """From rows of pairings to the laws' forms, and to the squares that these compare."""

    def __init__(self, forms: StackedForms, pairs: int):
        index, coefficient = (x.cpu().numpy() for x in forms.gathering)
        size, most = index.shape
        self._dense: np.ndarray | None = None
        if pairs * size <= _DENSE:
            self._dense = np.zeros((pairs, 2 * size))
            for entry, (places, weights) in enumerate(zip(index, coefficient, strict=True)):
                np.add.at(self._dense, (places, entry), weights)
                np.add.at(self._dense, (places, size + entry), np.abs(weights))
        self._index, self._coefficient = index.T.ravel(), coefficient.T.ravel()  # all first terms, all second ones, ...
        self._shares = np.empty((4, most, size))
        self._flat, self._squares = self._shares.reshape(4, -1), self._shares[[_SQUARE, _WEIGHTS]]
        self._forms, self._sizes = np.empty((4, size)), np.empty((2, size))

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Forms of all rows, and the sums of the terms' sizes of the two that are squares; overwritten by the next."""
        if self._dense is not None:
            both = rows.dot(self._dense)
            half = both.shape[1] // 2
            return both[:, :half], both[_SQUARE : _WEIGHTS + 1 : _WEIGHTS, half:]
        rows.take(self._index, axis=1, out=self._flat, mode="clip")
        np.multiply(self._flat, self._coefficient, out=self._flat)
        np.add.reduce(self._shares, 1, out=self._forms)
        np.abs(self._shares[_SQUARE : _WEIGHTS + 1 : _WEIGHTS], out=self._squares)
        np.add.reduce(self._squares, 1, out=self._sizes)
        return self._forms, self._sizes
