"""What gradients and a step tell of a broken law, kept when an alert asks for it."""

from __future__ import annotations

import torch

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.cause import Cause
from nlcompanion.monitoring.diagnosis import Moved, diagnosis
from nlcompanion.monitoring.evidence import evidence
from nlcompanion.monitoring.precision import GradientPrecision
from nlcompanion.monitoring.step_hooks import steps_as_torch_does
from nlcompanion.monitoring.watch.steps import WatchedSteps


class GradientEvidence:
    """Keeps the evidence of one law at a time.

    Args:
        watch: measures the steps.
        precision: of the gradients.
        optimizer: its name.
    """

    def __init__(self, watch: WatchedSteps, precision: GradientPrecision, optimizer: str):
        self._watch, self._precision, self._optimizer = watch, precision, optimizer
        self._wanted: Law | None = None
        self._kept: tuple[Law, dict[str, Moved]] | None = None

    def ask(self, law: Law) -> None:
        """At the next watched step keep what it tells of a law, unless that is known."""
        if self._wanted is None and (self._kept is None or not set(self._kept[0].parameters) & set(law.parameters)):
            self._wanted, self._kept = law, None

    def gather(self) -> None:
        """While gradients and step of a watched step are there: keep them, if somebody asked for evidence."""
        law, layout, tensors = self._wanted, self._watch.layout, self._watch.tensors
        assert layout is not None
        if law is None or not set(law.parameters) <= set(tensors.parameters):
            return
        self._wanted = None
        with torch.no_grad():
            moved = {}
            for name in law.parameters:
                p, optimizer = tensors.parameters[name], self._watch.optimizers[tensors.owners[name]]
                group = next(g for g in optimizer.param_groups if any(x is p for x in g["params"]))
                one = evidence(p, layout.step_of(name), optimizer, group, None)
                kept = None if one.gradient is None else one.gradient.clone()
                moved[name] = Moved(one.before, one.step, kept, one.expected, one.idle)
        self._kept = law, moved

    def cause(self, cleared: frozenset[str]) -> tuple[Law, Cause] | None:
        """The law whose evidence is there, and the cause that it gives.

        Args:
            cleared: tensors that other laws clear.
        """
        if self._kept is None:
            return None
        law, moved = self._kept
        for name, one in moved.items():
            self._precision.look_at(name, one.gradient)
        half = self._precision.latest() if self._precision.dtype is None else None
        own_step = not all(map(steps_as_torch_does, self._watch.optimizers))
        cause = diagnosis(law, moved, optimizer=self._optimizer, own_step=own_step, half=half, cleared=cleared)
        return law, cause
