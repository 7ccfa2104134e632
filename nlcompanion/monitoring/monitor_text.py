"""The report of a monitor, in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.watch.figures import COLUMNS
from nlcompanion.monitoring.watch.record import Entry

_SHOWN = ("norm", "angle", "gradient_per_weight", "effective_lr", "lr")
_HEADERS = ["tensor", "norm", "turn per step", "|g|/|W|", "effective rate", "lr"]
_MOST = 40  # rows of a table


def report(title: str, alerts: Sequence[Alert], notes: Sequence[str], entry: Entry | None) -> str:
    """Alerts first, then what was noted, then the figures of the latest entry."""
    parts = [title]
    parts.append("\n".join(f"ALERT {alert}" for alert in alerts) if alerts else "no alerts")
    if notes:
        parts.append("\n".join(["noted", *(f"- {note}" for note in notes)]))
    if entry is not None:
        parts.append(_tensors(entry))
        if entry.laws:
            parts.append(_laws(entry))
    return "\n\n".join(parts)


def _tensors(entry: Entry) -> str:
    columns = [COLUMNS.index(name) for name in _SHOWN]
    rows = [
        [name, *(_figure(values[k]) for k in columns)] for name, values in zip(entry.names, entry.values, strict=True)
    ]
    return _cut(rows, _HEADERS, f"at step {entry.step}", "tensors")


def _laws(entry: Entry) -> str:
    rows = [
        [law, _figure(charge), _figure(defect)] for law, (charge, defect) in zip(entry.laws, entry.of_laws, strict=True)
    ]
    return _cut(rows, ["law", "charge", "gradient along it"], "", "laws")


def _cut(rows: list[list[str]], headers: list[str], title: str, what: str) -> str:
    table = tabulate(rows[:_MOST], headers, tablefmt="simple", disable_numparse=True)
    more = [f"... and {len(rows) - _MOST} more {what}; records() has them all"] if len(rows) > _MOST else []
    return "\n".join([*([title] if title else []), table, *more])


def _figure(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.3g}"
