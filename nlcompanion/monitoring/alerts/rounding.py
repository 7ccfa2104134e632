"""Gradients that are nothing but rounding, told by those of their module's weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlcompanion.monitoring.alerts.alert import RunView
from nlcompanion.monitoring.watch.sample import Sample

_ROUNDING = 300.0  # units in the last place, that a gradient of rounding has of its module's
_CLEAR = 1e-3  # share of a module's gradient below which rounding must lie for this to be told at all


def of_rounding(sample: Sample, run: RunView) -> frozenset[str]:
    """The vectors whose gradient is rounding beside their module's, entry by entry; none where rounding is coarse."""
    if _ROUNDING * run.eps > _CLEAR:
        return frozenset()
    gradient = sample.gradient_norms / np.sqrt(sample.counts)
    places = {name: k for k, name in enumerate(sample.names)}
    return frozenset(
        name
        for name, partner in partners(sample.names, run.shapes).items()
        if sample.has_gradient[places[name]] and gradient[places[name]] <= _ROUNDING * run.eps * gradient[partner]
    )


def partners(names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """For each vector of a module the place of its matrix or filters."""
    matrices: dict[str, int] = {}
    for k, name in enumerate(names):
        if len(shapes[name]) > 1:
            matrices.setdefault(name.rpartition(".")[0], k)
    of_vectors = {name: name.rpartition(".")[0] for name in names if len(shapes[name]) == 1}
    return {name: matrices[module] for name, module in of_vectors.items() if module in matrices}
