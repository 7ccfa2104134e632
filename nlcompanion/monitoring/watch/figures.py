"""Figures of several watched steps at once, from the sums over rows."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from nlcompanion.monitoring.watch.settings import Settings

COLUMNS = (
    "norm",
    "update",
    "step_norm",
    "angle",
    "gradient",
    "gradient_per_weight",
    "effective_lr",
    "alignment",
    "lr",
    "weight_decay",
    "row_norm_min",
    "row_norm_median",
    "row_norm_max",
)


class Figures:
    r"""Of ``B`` samples and ``T`` tensors, all of shape ``(B, T)``.

    Args:
        sums: ``ww, gg, ee, ew`` of all rows, shape ``(B, 4, R)``; ``e`` is minus the step, and ``w`` in ``ew`` the
            weight after it.
        starts: the first row of each tensor.
        settings: of each sample.
    """

    def __init__(self, sums: np.ndarray, starts: np.ndarray, settings: list[Settings]):
        self._ww, self._gg, self._ee, ew = sums.transpose(1, 0, 2)
        self._wd = -(ew + self._ee)  # of the weight before the step, with the step
        self._starts, self._ends = starts, np.append(starts[1:], sums.shape[2])
        self._settings = settings

    def _of_tensors(self, rows: np.ndarray) -> np.ndarray:
        return np.add.reduceat(rows, self._starts, axis=1)

    @cached_property
    def squares(self) -> np.ndarray:
        return self._of_tensors(self._ww)

    @cached_property
    def norms(self) -> np.ndarray:
        return np.sqrt(self.squares)

    @cached_property
    def step_squares(self) -> np.ndarray:
        return self._of_tensors(self._ee)

    @cached_property
    def step_norms(self) -> np.ndarray:
        return np.sqrt(self.step_squares)

    @cached_property
    def gradient_norms(self) -> np.ndarray:
        return np.sqrt(self._of_tensors(self._gg))

    @cached_property
    def along(self) -> np.ndarray:
        return self._of_tensors(self._wd)

    @cached_property
    def lrs(self) -> np.ndarray:
        return np.stack([one.lrs for one in self._settings])

    @cached_property
    def _shrinking(self) -> np.ndarray:
        return np.stack([one.shrinking for one in self._settings])

    @cached_property
    def _squared_turns(self) -> np.ndarray:
        """Squared angles between rows before and after the step: exact for any size of it. Summed over the rows."""
        across = np.maximum(self._ww * self._ee - self._wd**2, 0)
        turns = np.arctan2(np.sqrt(across), self._ww + self._wd) ** 2
        return self._of_tensors(turns)

    @cached_property
    def angles(self) -> np.ndarray:
        """By how much a step turns each row, in radians, root mean square over the rows that are not 0."""
        return np.sqrt(self._squared_turns / self._of_tensors((self._ww > 0).astype(float)))

    @cached_property
    def effective_rates(self) -> np.ndarray:
        r"""Turn per gradient at unit length, ``angle / (|w| |g|)`` row by row: :math:`\eta/|w|^2` of plain SGD."""
        return np.sqrt(self._squared_turns / self._of_tensors(self._ww * self._gg))

    @cached_property
    def updates(self) -> np.ndarray:
        r"""Lengths of the updates ``u`` in ``W' = (1 - lr decay) W - lr u``."""
        k = self._shrinking
        squared = np.maximum(self.step_squares + 2 * k * self.along + k**2 * self.squares, 0)
        return np.sqrt(squared) / self.lrs

    @cached_property
    def alignments(self) -> np.ndarray:
        """Cosines of weights and updates ``u``."""
        return -(self.along + self._shrinking * self.squares) / (self.norms * self.updates * self.lrs)

    def columns(self) -> np.ndarray:
        """All columns, shape ``(B, T, COLUMNS)``; NaN where there is no figure."""
        has_gradient = np.stack([one.has_gradient for one in self._settings])
        gradients = np.where(has_gradient, self.gradient_norms, np.nan)
        columns = [
            self.norms,
            self.updates,
            self.step_norms,
            self.angles,
            gradients,
            gradients / self.norms,
            self.effective_rates,
            self.alignments,
            self.lrs,
            np.stack([one.decays for one in self._settings]),
            *self._rows(),
        ]
        table = np.stack(columns, axis=2)
        table[~np.isfinite(table)] = np.nan
        return table

    def _rows(self) -> list[np.ndarray]:
        """Least, median and largest norm of the rows of each tensor."""
        low, middle, high = (self.norms.copy() for _ in range(3))
        for k, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start > 1:
                rows = np.sort(self._ww[:, start:end], axis=1)
                low[:, k], high[:, k] = np.sqrt(rows[:, 0]), np.sqrt(rows[:, -1])
                middle[:, k] = np.sqrt(rows[:, (end - start) // 2])
        return [low, middle, high]
