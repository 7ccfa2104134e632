"""The gain of a normalisation is one side of a balance, and decay on it acts on the product with its reader twice."""

from __future__ import annotations

import math
from typing import Any

from nlcompanion.monitoring.alerts.alert import Alert, RunView, listed
from nlcompanion.monitoring.watch.sample import Sample
from nlcompanion.monitoring.watch.settings import Setting


class Decay:
    """Weight decay that reaches the gains and offsets of normalisations. Exact: it is read off the optimizers."""

    kind = "decay"

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        new = [
            name
            for name in sample.names
            if name in run.gains and name not in self._told and sample.settings[name].asks
            and name in sample.stepped and _shrinks(sample.settings[name]) > 0
        ]  # fmt: skip
        if not new:
            return []
        self._told |= set(new)
        share = max(_shrinks(sample.settings[name]) for name in new)
        decay = max(sample.settings[name].weight_decay for name in new)
        steps = math.log(2) / share
        it = "It" if len(new) == 1 else "They"
        return [
            Alert(
                self.kind,
                "|gain|² - |what reads it|² = const under the gradient alone",
                tuple(new),
                share,
                0.0,
                sample.step,
                sample.step,
                f"weight_decay = {decay:g} acts on {listed(new)} of normalisations. {it} would halve in {steps:.3g} "
                "steps without a gradient; the decay of the next layer's weights acts on the same product. Put gains "
                "and offsets of normalisations into a group with weight_decay=0",
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._told = set(state["told"])


def _shrinks(setting: Setting) -> float:
    """The share that decay takes of a weight in a step, in the long run."""
    memory = 1.0 if setting.decoupled else 1 - setting.momentum
    return setting.lr * setting.weight_decay / memory
