"""Gradients and steps are numbers."""

from __future__ import annotations

from typing import Any

from nlcompanion.monitoring.alerts.alert import Alert, RunView, listed
from nlcompanion.monitoring.watch.sample import Sample


class NotFinite:
    """NaN or infinity in a gradient that reached the weights. A step that left itself out is a note and no alert."""

    kind = "not finite"

    def __init__(self) -> None:
        self._told = False
        self._noted = False

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        bad = [name for name, fine in zip(sample.names, sample.is_finite, strict=True) if not fine]
        if not bad:
            self._told = False
            return []
        if not (sample.step_norms != 0).any():  # NaN is not 0
            if not self._noted:
                self._noted = True
                run.say(f"step {sample.step} had a gradient that is not finite ({listed(bad)}) and moved nothing")
            return []
        if self._told:
            return []
        self._told = True
        return [
            Alert(
                self.kind,
                "gradients and steps are finite",
                tuple(bad),
                float("inf"),
                0.0,
                sample.step,
                sample.step,
                f"the gradient or the step of {listed(bad)} is not finite; look for what overflowed (a learning rate "
                "too large, the logarithm of 0), or let a GradScaler leave such steps out",
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"told": self._told, "noted": self._noted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._told, self._noted = bool(state["told"]), bool(state["noted"])
