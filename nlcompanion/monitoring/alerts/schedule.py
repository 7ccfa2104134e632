"""One schedule moves the rates of all groups: a group whose rate never changed while another's did was left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlcompanion.monitoring.alerts.alert import Alert, RunView, listed
from nlcompanion.monitoring.watch.sample import Sample

_CHANGED = 1.05  # factor by which another rate must have changed
_SAMPLES = 3  # in which it had another value than before


@dataclass
class _Group:
    """The rates of one group.

    Attributes:
        first, since: its rate when it was first seen, and the step.
        last: its rate now.
        changes: how often it had changed from sample to sample.
    """

    first: float
    since: int
    last: float
    changes: int = 0


class Schedule:
    """Compares the rates of groups. Exact: a rate that was never touched has the digits that it began with."""

    kind = "schedule"

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._others: dict[str, dict[str, tuple[float, int]]] = {}  # as they were when a group was first seen
        self._told: set[str] = set()

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        names = _names_by_group(sample)
        for key, tensors in names.items():
            self._note(key, sample.settings[tensors[0]].lr, sample.step)
        for key in names:
            if key not in self._others:
                self._others[key] = {k: (group.last, group.changes) for k, group in self._groups.items()}
        alerts = []
        for key, tensors in names.items():
            mine = self._groups[key]
            moving = [other for other in names if other != key and self._has_moved(other, key)]
            if moving and mine.changes == 0 and mine.last > 0 and key not in self._told:
                self._told.add(key)
                alerts.append(self._alert(key, moving[0], tensors, sample))
        return alerts

    def _note(self, key: str, lr: float, step: int) -> None:
        group = self._groups.setdefault(key, _Group(lr, step, lr))
        group.changes += lr != group.last
        group.last = lr

    def _has_moved(self, other: str, key: str) -> bool:
        """Whether the rate of another group has changed enough since a group was first seen."""
        group = self._groups[other]
        lr, changes = self._others[key].get(other, (group.first, 0))
        if group.changes - changes < _SAMPLES or lr == 0:
            return False
        return group.last == 0 or max(group.last / lr, lr / group.last) > _CHANGED

    def _alert(self, key: str, other: str, tensors: list[str], sample: Sample) -> Alert:
        mine, moving = self._groups[key], self._groups[other]
        then = self._others[key].get(other, (moving.first, 0))[0]
        return Alert(
            self.kind,
            "a schedule changes the rates of all groups",
            tuple(tensors),
            moving.last / then,
            1.0,
            mine.since,
            sample.step,
            f"the rate of {_text(key)} ({listed(tensors)}) is {mine.last:g} as it was at step {mine.since}, while that "
            f"of {_text(other)} went from {then:g} to {moving.last:g}; make the scheduler after all groups were added, "
            "and give each optimizer one",
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "groups": {key: [g.first, g.since, g.last, g.changes] for key, g in self._groups.items()},
            "others": {key: {k: list(v) for k, v in others.items()} for key, others in self._others.items()},
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._groups = {key: _Group(a, int(b), c, int(d)) for key, (a, b, c, d) in state["groups"].items()}
        self._others = {key: {k: (v[0], int(v[1])) for k, v in x.items()} for key, x in state["others"].items()}
        self._told = set(state["told"])


def _names_by_group(sample: Sample) -> dict[str, list[str]]:
    """The tensors of each group, by optimizer and number of the group."""
    names: dict[str, list[str]] = {}
    for name in sample.names:
        setting = sample.settings[name]
        names.setdefault(f"{setting.optimizer}.{setting.group}", []).append(name)
    return names


def _text(key: str) -> str:
    optimizer, _, group = key.partition(".")
    return f"group {group}" if optimizer == "0" else f"group {group} of optimizer {optimizer}"
