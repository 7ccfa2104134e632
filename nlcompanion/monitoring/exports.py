"""Handing figures on: rows for pandas, TensorBoard's ``SummaryWriter``, wandb's ``log``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nlcompanion._arguments import described
from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.watch.figures import COLUMNS
from nlcompanion.monitoring.watch.record import Entry

_SHOWN = ("norm", "angle", "gradient_per_weight", "effective_lr")
Log = Callable[[dict[str, float], int], Any]


def rows_of_tensors(entries: list[Entry]) -> list[dict[str, Any]]:
    """A row for each tensor and step."""
    return [
        {"step": entry.step, "tensor": name, **dict(zip(COLUMNS, map(float, values), strict=True))}
        for entry in entries
        for name, values in zip(entry.names, entry.values, strict=True)
    ]


def rows_of_laws(entries: list[Entry]) -> list[dict[str, Any]]:
    """A row for each law and step."""
    return [
        {"step": entry.step, "law": law, "charge": float(charge), "defect": float(defect)}
        for entry in entries
        for law, (charge, defect) in zip(entry.laws, entry.of_laws, strict=True)
    ]


def scalars(entry: Entry) -> dict[str, float]:
    """What a dashboard shows of an entry, by its tag."""
    found = {
        f"monitor/{figure}/{name}": float(values[COLUMNS.index(figure)])
        for name, values in zip(entry.names, entry.values, strict=True)
        for figure in _SHOWN
    }
    for law, (charge, defect) in zip(entry.laws, entry.of_laws, strict=True):
        found[f"monitor/charge/{law}"], found[f"monitor/defect/{law}"] = float(charge), float(defect)
    return {tag: value for tag, value in found.items() if value == value}


class Target:
    """A dashboard.

    Args:
        target: a ``SummaryWriter``; something with ``log(dict, step=...)``, as a run of wandb or the module itself; or
            a function ``f(dict, step)``.

    Raises:
        TypeError: for anything else.
    """

    def __init__(self, target: Any):
        self._target = target
        is_no_target = isinstance(target, type | torch.Tensor)
        if is_no_target or not (_has(target, "add_scalar") or _has(target, "log") or callable(target)):
            raise TypeError(
                "a target is a SummaryWriter, a wandb run (anything with log(dict, step=...)), or a function "
                f"f(dict, step), got {described(target)}"
            )

    def write(self, entry: Entry) -> None:
        values = scalars(entry)
        if _has(self._target, "add_scalar"):
            for tag, value in values.items():
                self._target.add_scalar(tag, value, entry.step)
        elif _has(self._target, "log"):
            self._target.log(values, step=entry.step)
        else:
            self._target(values, entry.step)

    def alert(self, alert: Alert) -> None:
        """Dashboards that take text get the alert too."""
        if _has(self._target, "add_text"):
            self._target.add_text("monitor/alerts", str(alert), alert.seen)


def _has(target: Any, method: str) -> bool:
    return callable(getattr(target, method, None))
