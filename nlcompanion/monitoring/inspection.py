"""What is made of a run's samples: its laws are found, its alerts judged, and what happened on the way is noted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import nn

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.alerts import (
    Alert,
    BrokenGradient,
    DeadDirection,
    Decay,
    Frozen,
    NotFinite,
    Replicas,
    Rule,
    RunView,
    Schedule,
)
from nlcompanion.monitoring.clipping import Clipping
from nlcompanion.monitoring.gradient_evidence import GradientEvidence
from nlcompanion.monitoring.precision import TOLERANCES, GradientPrecision, telling
from nlcompanion.monitoring.watch.layout import Layout, shape_of
from nlcompanion.monitoring.watch.run_laws import (
    LawSearch,
    law_as_state,
    law_of_state,
    normalization_gains,
    rounding_unit,
)
from nlcompanion.monitoring.watch.sample import Sample
from nlcompanion.monitoring.watch.steps import WatchedSteps
from nlcompanion.monitoring.watch.tensors import Tensors

_DECIDE = 3  # samples after which the gradients' precision is known


class Inspection:
    """Judges samples.

    Args:
        model: that is trained.
        watch: measures its steps.
        laws: given laws in the names of the tensors; None to find them.
        ranks: of processes whose weights should be equal.
        ignore: kinds of alerts that are not asked for.
        tell: takes an alert.
        say: takes a note.
    """

    def __init__(
        self,
        model: nn.Module,
        watch: WatchedSteps,
        laws: tuple[Law, ...] | None,
        ranks: list[int],
        ignore: Collection[str],
        tell: Callable[[Alert], None],
        say: Callable[[str], None],
    ):
        self._model, self._watch, self._tell, self._say = model, watch, tell, say
        self.given = laws is not None
        self.laws: tuple[Law, ...] = laws or ()
        self._odd: list[tuple[Law, float]] = []
        self.free: frozenset[str] = frozenset()  # tensors whose rows have a free length
        self._search: LawSearch | None = None if self.given else LawSearch()
        self._gradient_rule = BrokenGradient()
        rules: list[Rule] = [
            self._gradient_rule,
            Frozen(),
            Decay(),
            Schedule(),
            DeadDirection(),
            NotFinite(),
            Replicas(ranks),
        ]
        self._rules = [rule for rule in rules if rule.kind not in ignore]
        self._clipping = Clipping()
        self._seen = 0
        self._precision, self._decided = self._precision_of(), False
        self._evidence = GradientEvidence(watch, self._precision, self.optimizer)
        self._run: RunView | None = None
        self._use_laws()

    @property
    def handles(self) -> list:
        return self._precision.handles

    def gather(self) -> None:
        """At the end of a watched step, while its gradients are there."""
        self._evidence.gather()

    def _precision_of(self) -> GradientPrecision:
        parameters = self._tensors.parameters
        names = {name for law in self.laws for name in law.parameters} if self.given else set(parameters)
        return GradientPrecision(telling({name: p for name, p in parameters.items() if name in names}, parameters))

    @property
    def _tensors(self) -> Tensors:
        return self._watch.tensors

    def _use_laws(self) -> None:
        self._watch.use(self.laws, every_axis=self._search is not None)

    @property
    def tolerance(self) -> float | None:
        """Of gradients along symmetries; None where they are not judged (yet)."""
        if not self._decided:
            return None
        if self._precision.tolerance is not None:
            return self._precision.tolerance
        dtypes = {self._tensors.parameters[name].dtype for law in self.laws for name in law.parameters}
        dtypes = dtypes or {p.dtype for p in self._tensors.parameters.values()}
        if not dtypes <= set(TOLERANCES):
            return None
        return max(TOLERANCES[dtype] for dtype in dtypes)

    @property
    def defects(self) -> np.ndarray:
        """Of each law, in the last sample."""
        return self._gradient_rule.defects

    # --- a sample ---------------------------------------------------------------------------------------------------

    def look(self, sample: Sample, layout: Layout, values: np.ndarray) -> np.ndarray:
        """Judge a sample; returns charge and defect of each law, shape ``(laws, 2)``."""
        if sample.names != tuple(self._tensors.parameters):
            return np.zeros((0, 2))  # of before a change of the groups
        self._seen += 1
        self._decide_precision()
        self._clipping.look(sample, self._say)
        run = self._view(layout)
        for rule in self._rules:
            for alert in rule.look(sample, run):
                self._tell(alert)
        self._odd = []
        figures = self._figures(sample, run)
        if self._search is not None:
            enough = self._search.add(sample, layout, values)
            if enough and self._decided:
                self._end_search()
        return figures

    def _figures(self, sample: Sample, run: RunView) -> np.ndarray:
        charges = [_size(law, sample.laws.charge[at]) for law, at in zip(run.laws, run.places, strict=True)]
        defects = self.defects if len(self.defects) == len(charges) else np.full(len(charges), np.nan)
        return np.stack([np.array(charges), defects], 1) if charges else np.zeros((0, 2))

    def _decide_precision(self) -> None:
        if self._decided or self._seen < _DECIDE:
            return
        self._decided = True
        self._precision.decide()
        for handle in self._precision.handles:
            handle.remove()
        if self._precision.dtype is not None:
            short = str(self._precision.dtype).removeprefix("torch.")
            self._say(f"the gradients carry the digits of {short}: laws are judged at {self._precision.tolerance:.3g}")
        if self.tolerance is None:
            self._say(
                "weights in half precision: rounding is larger than faults of gradients, whose laws are not judged"
            )

    def _end_search(self) -> None:
        assert self._search is not None
        whole = self._precision.tolerance is None  # half precision takes near laws for laws
        found, self.free = self._search.result(self._tensors, self.tolerance if whole else None)
        self._search = None
        self.laws = tuple(one.law for one in found if one.odd is None)
        self._odd = [(one.law, one.odd) for one in found if one.odd is not None]
        if not whole or self.tolerance is None:
            self._say(
                "laws are not sought in gradients of half precision, where near laws look like laws; give an audit's"
            )
        elif not self.laws and not self._odd:
            self._say(
                "no balance between layers was found in the gradients, so a scaled gradient would go unseen; an "
                "audit's laws may tell more: Monitor(model, optimizer, laws=audit(...))"
            )
        self._use_laws()

    def _view(self, layout: Layout) -> RunView:
        if self._run is None:
            self._run = RunView(
                laws=(),
                places=[],
                found=(),
                tolerance=None,
                eps=rounding_unit(self._tensors),
                gains=normalization_gains(self._model, self._tensors),
                optimizer=self.optimizer,
                shapes={name: shape_of(p) for name, p in self._tensors.parameters.items()},
                say=self._say,
                ask_evidence=self._evidence.ask,
                withdraw=self._withdraw,
                diagnose=self._evidence.cause,
            )
        run = self._run
        run.laws, run.places = layout.laws, layout.places  # those that were measured, in its order
        run.found = (not self.given,) * len(layout.laws)
        run.tolerance, run.odd = self.tolerance, self._odd
        return run

    @property
    def optimizer(self) -> str:
        return " and ".join(dict.fromkeys(type(one).__name__ for one in self._watch.optimizers))

    def _withdraw(self, law: Law, reason: str) -> None:
        self._say(f"{law.statement!r} is no law of this run: {reason}")
        self.laws = tuple(one for one in self.laws if one is not law)
        self._use_laws()

    # --- what changes -----------------------------------------------------------------------------------------------

    def changed(self, before: Tensors, now: Tensors) -> None:
        """Groups or layers are others than before."""
        self._run = None
        came, went = set(now.parameters) - set(before.parameters), set(before.parameters) - set(now.parameters)
        names = set(now.parameters)
        self.laws = tuple(law for law in self.laws if set(law.parameters) <= names)
        if not self.given and (came or went):
            self._search = LawSearch()
        self._use_laws()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rules": {rule.kind: rule.state_dict() for rule in self._rules},
            "found": None if self.given or self._search is not None else [law_as_state(law) for law in self.laws],
            "free": sorted(self.free),
            "decided": self._decided,
            "half": None if self._precision.dtype is None else str(self._precision.dtype).removeprefix("torch."),
        }

    def load_state_dict(self, state: dict[str, Any], *, rules: bool) -> None:
        """Go on where another monitor was; ``rules`` whether what they remember is of the same tensors."""
        if not rules:
            return
        for rule in self._rules:
            if rule.kind in state["rules"]:
                rule.load_state_dict(state["rules"][rule.kind])
        if state["decided"]:
            self._decided = True
            self._precision.assume(None if state["half"] is None else getattr(torch, state["half"]))
            for handle in self._precision.handles:
                handle.remove()
        if not self.given and state["found"] is not None:
            self.laws, self._search = tuple(law_of_state(law) for law in state["found"]), None
            self.free = frozenset(state["free"])
            self._use_laws()


def _size(law: Law, charge: np.ndarray) -> float:
    """One figure of a law's charges: their sum, or a matrix's norm."""
    return float(np.linalg.norm(charge)) if law.is_matrix else float(charge.sum())
