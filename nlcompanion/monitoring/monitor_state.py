"""A monitor's state, to save and to go on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nlcompanion._arguments import described
from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.inspection import Inspection
from nlcompanion.monitoring.watch.layout import shape_of
from nlcompanion.monitoring.watch.record import Record
from nlcompanion.monitoring.watch.steps import WatchedSteps

VERSION = 1
_PARTS = {"version", "steps", "early", "optimizers", "tensors", "record", "inspection", "alerts", "notes", "skipped"}


@dataclass(frozen=True)
class Restored:
    """What a monitor takes over beside its parts' own states."""

    alerts: list[Alert]
    notes: list[str]
    skipped: int


def state_of(
    watch: WatchedSteps,
    record: Record,
    inspection: Inspection,
    alerts: Sequence[Alert],
    notes: Sequence[str],
    skipped: int,
) -> dict[str, Any]:
    """Numbers, texts and tensors, which ``torch.load(..., weights_only=True)`` reads."""
    return {
        "version": VERSION,
        "steps": watch.steps,
        "early": watch.early,
        "optimizers": _optimizers(watch),
        "tensors": _shapes(watch),
        "record": record.state_dict(),
        "inspection": inspection.state_dict(),
        "alerts": [{**asdict(alert), "tensors": list(alert.tensors)} for alert in alerts],
        "notes": list(notes),
        "skipped": skipped,
    }


def restored(
    state: Any, watch: WatchedSteps, record: Record, inspection: Inspection, say: Callable[[str], None]
) -> Restored:
    """Take a state over.

    Raises:
        TypeError, ValueError: if it is none, or one of another version.
    """
    if not isinstance(state, dict) or not set(state) >= _PARTS:
        raise TypeError(f"state must be what Monitor.state_dict() returned, got {described(state)}")
    if state["version"] != VERSION:
        raise ValueError(f"this state has version {state['version']}, and {VERSION} is read; make a new monitor")
    step, same = int(state["steps"]), True
    if state["optimizers"] != _optimizers(watch):
        was, now = " and ".join(state["optimizers"]), " and ".join(_optimizers(watch))
        say(f"after step {step} the run was resumed with {now}, and had {was} before: its laws begin anew")
        same = False
    shapes = _shapes(watch)
    if state["tensors"] != shapes:
        names = sorted(name for name in {*state["tensors"], *shapes} if state["tensors"].get(name) != shapes.get(name))
        say(f"after step {step} the run was resumed with other tensors: {', '.join(names)}; its laws begin anew")
        same = False
    watch.steps = step
    if same:
        watch.early = int(state["early"])
    record.load_state_dict(state["record"])
    inspection.load_state_dict(state["inspection"], rules=same)
    alerts = [Alert(**{**one, "tensors": tuple(one["tensors"])}) for one in state["alerts"]]
    return Restored(alerts, list(state["notes"]), int(state["skipped"]))


def _optimizers(watch: WatchedSteps) -> list[str]:
    return [type(one).__name__ for one in watch.optimizers]


def _shapes(watch: WatchedSteps) -> dict[str, list[int]]:
    return {name: list(shape_of(p)) for name, p in watch.tensors.parameters.items()}
