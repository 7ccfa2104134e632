"""A monitor's figure: norms, turns and gradients over the run, and the laws of its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.watch.figures import COLUMNS
from nlcompanion.monitoring.watch.record import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = {
    "norm": "norm |W|",
    "angle": "turn per step (rad)",
    "gradient_per_weight": "|g| / |W|",
}
_NAMED = 12  # tensors that get a label


def plot(entries: list[Entry], alerts: list[Alert]) -> Figure:
    """Draw what was recorded; alerts are dotted lines at the steps since when they stand."""
    if not entries:
        raise ValueError("nothing is recorded yet; run optimizer.step() before a plot")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (column, label) in zip(axes.flat, _PANELS.items(), strict=False):
        _tensors(axis, entries, COLUMNS.index(column))
        axis.set_ylabel(label)
        axis.set_yscale("log")
    _laws(axes.flat[3], entries)
    for axis in axes.flat:
        for since in sorted({alert.since for alert in alerts}):
            axis.axvline(since, color="0.3", linestyle=":")
    for axis in axes[1]:
        axis.set_xlabel("step")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def _tensors(axis: Any, entries: list[Entry], column: int) -> None:
    names = list(dict.fromkeys(name for entry in entries for name in entry.names))
    for k, name in enumerate(names):
        with_it = [entry for entry in entries if name in entry.names]
        steps = [entry.step for entry in with_it]
        values = np.array([entry.values[entry.names.index(name), column] for entry in with_it])
        values[~(values > 0)] = np.nan  # on a logarithmic axis
        axis.plot(steps, values, label=name if k < _NAMED else None, linewidth=1)


def _laws(axis: Any, entries: list[Entry]) -> None:
    laws = list(dict.fromkeys(law for entry in entries for law in entry.laws))
    for law in laws:
        with_it = [entry for entry in entries if law in entry.laws]
        defects = np.array([entry.of_laws[entry.laws.index(law), 1] for entry in with_it])
        axis.plot([entry.step for entry in with_it], np.maximum(defects, 1e-18), linewidth=1)
    axis.set_yscale("log")
    axis.set_ylabel("gradient along each law")
