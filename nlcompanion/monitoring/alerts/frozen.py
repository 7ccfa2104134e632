"""What has a gradient and a rate moves: a tensor that moved with the others and no longer does was frozen."""

from __future__ import annotations

from typing import Any

from nlcompanion.monitoring.alerts.alert import Alert, RunView
from nlcompanion.monitoring.alerts.rounding import of_rounding
from nlcompanion.monitoring.watch.sample import Sample

_UNLIKELY = 1e-5  # for a run of steps at rest to be what it was before


class Frozen:
    """Counts, of each tensor, the watched steps in which it moved and in which it rested while others moved.

    A tensor that stopped asking for gradients is told at once. One that has rested for some watched steps in a row is
    told when that has a probability below 1e-5 at the share of steps in which it rested before: one that moved in each
    of 20 steps is after 4, and an expert or an embedding that is often at rest is not. A gradient of rounding, as of a
    bias before a normalisation, moves a weight or not as the last digits have it, and is no reason to move.
    """

    kind = "frozen"

    def __init__(self) -> None:
        self._moved: dict[str, int] = {}
        self._rested: dict[str, int] = {}  # not counting the present rest
        self._resting: dict[str, tuple[int, int]] = {}  # since which step, for how many watched steps
        self._told: set[str] = set()

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        if sample.skipped or not (sample.step_norms > 0).any():
            return []
        alerts = []
        dead = of_rounding(sample, run) if (sample.step_norms == 0).any() else frozenset()
        for k, name in enumerate(sample.names):
            if name not in sample.stepped:
                continue
            if sample.step_norms[k] > 0 or sample.settings[name].lr == 0:
                self._note_motion(name)
                continue
            if name not in self._moved:  # at rest from the start: meant so, or without use
                continue
            if name in dead and sample.gradient_norms[k] > 0:
                continue
            since, times = self._resting.get(name, (sample.step, 0))
            self._resting[name] = since, times + 1
            if name not in self._told and self._is_certain(name, sample):
                self._told.add(name)
                alerts.append(self._alert(name, k, sample))
        return alerts

    def _note_motion(self, name: str) -> None:
        _, times = self._resting.pop(name, (0, 0))
        self._rested[name] = self._rested.get(name, 0) + times
        self._moved[name] = self._moved.get(name, 0) + 1
        self._told.discard(name)

    def _chance(self, name: str) -> float:
        """Of the present rest, at the share of steps in which the tensor rested before it."""
        rested, moved = self._rested.get(name, 0), self._moved[name]
        return ((rested + 1) / (rested + moved + 2)) ** self._resting[name][1]

    def _is_certain(self, name: str, sample: Sample) -> bool:
        return not sample.settings[name].asks or self._chance(name) < _UNLIKELY

    def _alert(self, name: str, k: int, sample: Sample) -> Alert:
        since, times = self._resting[name]
        setting = sample.settings[name]
        if not setting.asks:
            why = "requires_grad was turned off; take it out of the optimizer too if that is meant"
        elif not setting.has_gradient:
            why = "it gets no gradient any more: look for a detach() or a branch that no longer takes part in the loss"
        elif sample.gradient_norms[k] == 0:
            why = "every entry of its gradient is 0: look for a detach(), a dead layer or weights of 0 behind it"
        else:
            why = (
                f"its gradient has a norm of {sample.gradient_norms[k]:.2g} and the optimizer does not move it: its "
                "weights are written back, or the rate is below the weights' rounding"
            )
        last = "in this watched step" if times == 1 else f"in {times} watched steps in a row"
        return Alert(
            self.kind,
            "what has a gradient and a learning rate moves in every step",
            (name,),
            float(times),
            0.0 if not setting.asks else _UNLIKELY,
            since,
            sample.step,
            f"{name} moved in {self._moved[name]} watched steps and rested {last}, while other tensors moved; {why}",
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "moved": dict(self._moved),
            "rested": dict(self._rested),
            "resting": {name: list(value) for name, value in self._resting.items()},
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._moved, self._rested = dict(state["moved"]), dict(state["rested"])
        self._resting = {name: (int(since), int(times)) for name, (since, times) in state["resting"].items()}
        self._told = set(state["told"])
