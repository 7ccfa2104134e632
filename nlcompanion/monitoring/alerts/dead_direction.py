"""What the loss does not depend on stays where it is, as a bias before a normalisation, whose gradient is rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlcompanion.monitoring.alerts.alert import Alert, RunView
from nlcompanion.monitoring.alerts.rounding import of_rounding, partners
from nlcompanion.monitoring.watch.sample import Sample

_SAMPLES = 5
_DRIFT = 0.02  # of the step of its module's weights, beyond which a dead tensor drifts


class DeadDirection:
    """Tensors whose gradient is the rounding of their module's and that move all the same.

    SGD leaves them where they are. An optimizer that divides by the gradient's own size (Adam) makes full steps of
    rounding, once that is larger than its ``eps``. Decoupled decay, which shrinks them lawfully, is taken off.
    """

    kind = "dead direction"

    def __init__(self) -> None:
        self._dead: dict[str, int] = {}  # in how many samples in a row
        self._drifts: dict[str, tuple[int, int, float]] = {}  # since, samples in a row, sum of relative steps
        self._told: set[str] = set()

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        if sample.skipped:
            return []
        alerts = []
        dead = of_rounding(sample, run)
        per_entry = np.sqrt(sample.counts)
        gradient = sample.gradient_norms / per_entry
        step = sample.updates / per_entry  # without the decay
        matrices = partners(sample.names, run.shapes)
        for k, name in enumerate(sample.names):
            partner = matrices.get(name)
            if partner is None or name not in sample.stepped:
                continue
            is_dead = name in dead
            self._dead[name] = self._dead.get(name, 0) + 1 if is_dead else 0
            relative = float(step[k] / step[partner]) if step[partner] > 0 else 0.0
            if not is_dead or not relative > _DRIFT:
                self._drifts.pop(name, None)
                continue
            since, times, total = self._drifts.get(name, (sample.step, 0, 0.0))
            self._drifts[name] = since, times + 1, total + relative
            if times + 1 >= _SAMPLES and name not in self._told:
                self._told.add(name)
                alerts.append(self._alert(name, sample, gradient[k] / gradient[partner], run))
        return alerts

    def _alert(self, name: str, sample: Sample, share: float, run: RunView) -> Alert:
        since, times, total = self._drifts[name]
        return Alert(
            self.kind,
            f"the loss does not depend on {name}, which stays where it is",
            (name,),
            total / times,
            _DRIFT,
            since,
            sample.step,
            f"the gradient of {name} is {share:.1g} of its module's, which is rounding: the loss does not depend on "
            f"it. {run.optimizer} moves it by {total / times:.2g} of what it moves the module's weights, step by step; "
            "leave the tensor out (bias=False before a normalisation), or raise the optimizer's eps",
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "dead": dict(self._dead),
            "drifts": {name: list(value) for name, value in self._drifts.items()},
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._dead, self._told = dict(state["dead"]), set(state["told"])
        self._drifts = {name: (int(a), int(b), float(c)) for name, (a, b, c) in state["drifts"].items()}
