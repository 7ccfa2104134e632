"""One judged step in numbers on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlcompanion.monitoring.watch.law_sums import LawFigures
from nlcompanion.monitoring.watch.settings import Settings


@dataclass(frozen=True)
class Sample:
    r"""What alerts are judged on. Arrays have one entry for each tensor.

    Attributes:
        step: its number, from 1.
        names: of the tensors.
        settings: of the tensors.
        stepped: the tensors whose optimizer took part.
        counts: number of entries.
        squares: squared norms of the weights before the step.
        gradient_norms, step_norms: of gradient and step.
        updates: :math:`|u|` with ``W' = (1 - lr decay) W - lr u``, times the rate.
        laws: of all entries of all laws.
        skipped: whether an optimizer was called and moved nothing, as after an overflow.
    """

    step: int
    names: tuple[str, ...]
    settings: Settings
    stepped: frozenset[str]
    counts: np.ndarray
    squares: np.ndarray
    gradient_norms: np.ndarray
    step_norms: np.ndarray
    updates: np.ndarray
    laws: LawFigures
    skipped: bool

    @property
    def has_gradient(self) -> np.ndarray:
        return self.settings.has_gradient

    @property
    def is_finite(self) -> np.ndarray:
        """Of each tensor, whether its gradient and its step are."""
        return np.isfinite(self.gradient_norms) & np.isfinite(self.step_norms)
