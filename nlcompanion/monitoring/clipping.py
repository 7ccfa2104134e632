"""Recognising that gradients are clipped by their whole norm, which keeps every law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlcompanion.monitoring.watch.sample import Sample

_SAMPLES = 5
_ALIKE = 1e-4


class Clipping:
    """Gradients that are clipped have one norm and none has a larger one, which nothing else does."""

    def __init__(self) -> None:
        self._norms: list[float] = []
        self._said = False

    def look(self, sample: Sample, say: Callable[[str], None]) -> None:
        total = float(np.sqrt(np.square(sample.gradient_norms[sample.has_gradient]).sum()))
        if self._said or sample.skipped or not np.isfinite(total) or total == 0:
            return
        self._norms = [*self._norms[-20:], total]
        largest = max(self._norms)
        alike = sum(norm >= largest * (1 - _ALIKE) for norm in self._norms)
        if alike >= _SAMPLES:
            self._said = True
            say(
                f"gradients are clipped by their whole norm at {largest:.4g} ({alike} of the last {len(self._norms)} "
                "watched steps): figures are those of the clipped gradient"
            )
