"""One watched step in numbers on the CPU: what alerts are judged on, and what is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nlcompanion.monitoring.watch.law_sums import LawFigures


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


@dataclass(frozen=True)
class Sample:
    r"""One step: squares and products of its tensors' rows, laws, and settings.

    Attributes:
        step: its number, from 1.
        names: of the tensors.
        settings: of each tensor.
        stepped: the tensors whose optimizer took part.
        counts: number of entries of each tensor.
        rows: for each tensor which of the rows are its own.
        weight, step_, gradient: squared lengths of each row of weights before the step, of the step, of the gradient.
        along_gradient, along_step: products of weights with gradient, and with step.
        laws: of all entries of all laws.
        skipped: whether an optimizer was called and moved nothing, as after an overflow.
    """

    step: int
    names: tuple[str, ...]
    settings: dict[str, Setting]
    stepped: frozenset[str]
    counts: np.ndarray
    rows: tuple[slice, ...]
    weight: np.ndarray
    step_: np.ndarray
    gradient: np.ndarray
    along_gradient: np.ndarray
    along_step: np.ndarray
    laws: LawFigures
    skipped: bool

    @cached_property
    def _starts(self) -> list[int]:
        return [rows.start for rows in self.rows]

    def of_tensors(self, rows: np.ndarray) -> np.ndarray:
        """Sums over the rows of each tensor."""
        return np.add.reduceat(rows, self._starts) if len(rows) else rows

    @cached_property
    def norms(self) -> np.ndarray:
        return np.sqrt(self.of_tensors(self.weight))

    @cached_property
    def step_norms(self) -> np.ndarray:
        return np.sqrt(self.of_tensors(self.step_))

    @cached_property
    def gradient_norms(self) -> np.ndarray:
        return np.sqrt(self.of_tensors(self.gradient))

    @cached_property
    def lrs(self) -> np.ndarray:
        return np.array([self.settings[name].lr for name in self.names])

    @cached_property
    def shrinking(self) -> np.ndarray:
        return np.array([self.settings[name].shrinks for name in self.names])

    @cached_property
    def has_gradient(self) -> np.ndarray:
        return np.array([self.settings[name].has_gradient for name in self.names])

    @cached_property
    def is_finite(self) -> np.ndarray:
        """Of each tensor, whether its gradient and its step are."""
        return np.isfinite(self.gradient_norms) & np.isfinite(self.step_norms)

    @cached_property
    def angles(self) -> np.ndarray:
        """By how much the step turns each tensor, in radians; root mean square over its rows."""
        squared = _squared_turns(self.weight, self.step_, self.along_step)
        finite = np.where(np.isfinite(squared), squared, 0.0)
        alive = self.of_tensors((np.isfinite(squared) & (self.weight > 0)).astype(float))
        return np.sqrt(self.of_tensors(finite) / np.maximum(alive, 1))

    @cached_property
    def effective_rates(self) -> np.ndarray:
        r"""Turn per gradient at unit length, ``angle / (|w| |g|)`` row by row: :math:`\eta/|w|^2` of plain SGD."""
        lengths = self.of_tensors(self.weight * self.gradient)
        turns = self.of_tensors(_squared_turns(self.weight, self.step_, self.along_step))
        return np.sqrt(np.divide(turns, lengths, out=np.full_like(turns, np.nan), where=lengths > 0))

    @cached_property
    def updates(self) -> np.ndarray:
        r"""Lengths of the updates ``u`` in ``W' = (1 - lr decay) W - lr u``; 0 at a rate of 0."""
        lr, k = self.lrs, self.shrinking
        ww, dd, wd = (self.of_tensors(x) for x in (self.weight, self.step_, self.along_step))
        squared = np.maximum(dd + 2 * k * wd + k**2 * ww, 0)
        return np.divide(np.sqrt(squared), lr, out=np.zeros_like(lr), where=lr > 0)

    @cached_property
    def alignments(self) -> np.ndarray:
        """Cosines of weights and updates ``u``."""
        lr, k = self.lrs, self.shrinking
        ww, wd = self.of_tensors(self.weight), self.of_tensors(self.along_step)
        lengths = np.sqrt(ww) * self.updates * lr
        return np.divide(-(wd + k * ww), lengths, out=np.zeros_like(lr), where=lengths > 0)


def _squared_turns(weight: np.ndarray, step: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Squared angles between rows before and after a step: exact for any size of it."""
    with np.errstate(all="ignore"):
        across = np.maximum(weight * step - along**2, 0)
        return np.arctan2(np.sqrt(across), weight + along) ** 2
