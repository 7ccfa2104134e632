"""``<g, A q> = 0``: every gradient is at right angles to the symmetries of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlcompanion._arguments import counted
from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Shift
from nlcompanion.monitoring.alerts.alert import Alert, RunView, listed
from nlcompanion.monitoring.cause import Cause
from nlcompanion.monitoring.diagnosis import undiagnosed
from nlcompanion.monitoring.scaled_gradients import cleared_by
from nlcompanion.monitoring.watch.sample import Sample

Evidence = tuple[Law, Cause] | None  # a law, and the cause that the gradients and the step give

_FIRST = 5  # samples that show how large rounding is in this run
_ABOVE = 10.0  # how far above that a gradient may be
_MOST = 100.0  # of the dtype's tolerance, that may count as rounding
_FREE_MOST, _FREE_ABOVE = 0.3, 30.0  # of lengths before a normalisation, whose eps is larger than rounding
_NOISE = 8  # units in the last place of the largest gradient of any law
_TWICE, _PATIENCE = 2, 6  # samples in which a law must be left, and that its evidence may take to come


class BrokenGradient:
    """Judges the gradient's component along each symmetry, relative to the largest gradient so far.

    What rounding makes of it is measured in the run's first samples, within bounds that the dtype sets. A law must be
    left in two samples. A law that was found and not given is taken back where only some neurons leave it, or where the
    gradients and the step give no evidence of a cause: an activation may have left its linear range.
    """

    kind = "broken gradient"

    def __init__(self) -> None:
        self._largest: np.ndarray | None = None
        self._level: np.ndarray | None = None
        self._first_weights: np.ndarray | None = None
        self._seen = 0
        self._suspects: dict[str, tuple[int, int]] = {}  # law: first step, how many samples
        self._told: set[str] = set()
        self._laws: tuple[str, ...] = ()
        self.defects = np.zeros(0)  # of each law, in the last sample

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        alerts = self._odd_from_the_start(sample, run)
        self.defects = np.full(len(run.laws), np.nan)
        if not run.laws or run.tolerance is None or sample.skipped:
            return alerts
        self._begin_with(run)
        ratio = self._ratios(sample, run)
        judged = [self._takes_part(law, sample) for law in run.laws]
        worst = np.array(
            [np.nanmax(ratio[at]) if part else np.nan for at, part in zip(run.places, judged, strict=True)]
        )
        self.defects = worst
        limits = self._limits(sample, run, worst)
        broken = [k for k in range(len(run.laws)) if worst[k] > limits[k]]
        self._learn(worst, limits)
        return alerts + self._judge(broken, ratio, worst, limits, sample, run)

    def _begin_with(self, run: RunView) -> None:
        laws = tuple(law.statement for law in run.laws)
        if laws != self._laws:
            self._laws, self._largest, self._level, self._first_weights, self._seen = laws, None, None, None, 0

    def _ratios(self, sample: Sample, run: RunView) -> np.ndarray:
        figures = sample.laws
        finite = np.isfinite(figures.form) & np.isfinite(figures.gradient)
        gradient = np.where(finite, figures.gradient, 0.0)
        self._largest = gradient if self._largest is None else np.maximum(self._largest, gradient)
        of_all = float(self._largest.max(initial=0.0))
        noise = _NOISE * run.eps * of_all * figures.generator
        reference = self._largest * figures.generator
        for at, law in zip(run.places, run.laws, strict=True):
            if law.kind == "dead":  # all of its gradient is rounding of larger ones
                reference[at] = of_all * figures.generator[at]
        form = np.where(finite & (np.abs(figures.form) > noise), np.abs(figures.form), 0.0)
        return np.divide(form, reference, out=np.zeros_like(form), where=reference > 0)

    def _limits(self, sample: Sample, run: RunView, worst: np.ndarray) -> np.ndarray:
        assert run.tolerance is not None
        if self._first_weights is None:
            self._first_weights = sample.laws.generator.copy()
        level = np.zeros(len(worst)) if self._level is None else self._level
        limits = np.zeros(len(worst))
        for k, (law, at) in enumerate(zip(run.laws, run.places, strict=True)):
            if _is_free_length(law):  # eps is a larger share of smaller weights
                shrunk = np.nanmax(self._first_weights[at] / (sample.laws.generator[at] + 1e-300)) ** 2
                calm = self._seen < _FIRST
                limits[k] = _FREE_MOST if calm else min(_FREE_MOST, _FREE_ABOVE * level[k] * max(1.0, shrunk))
                limits[k] = max(limits[k], run.tolerance)
            else:
                limits[k] = min(max(run.tolerance, _ABOVE * level[k]), _MOST * run.tolerance)
                if self._seen < _FIRST:
                    limits[k] = _MOST * run.tolerance
        return limits

    def _learn(self, worst: np.ndarray, limits: np.ndarray) -> None:
        if self._seen < _FIRST:
            known = np.zeros(len(worst)) if self._level is None else self._level
            calm = np.where(worst <= limits, worst, 0.0)
            self._level = np.maximum(known, np.where(np.isnan(calm), 0.0, calm))
        self._seen += 1

    def _takes_part(self, law: Law, sample: Sample) -> bool:
        names = set(law.parameters)
        return not names - {n for n in sample.names if n in sample.stepped and sample.settings[n].has_gradient}

    def _judge(
        self,
        broken: list[int],
        ratio: np.ndarray,
        worst: np.ndarray,
        limits: np.ndarray,
        sample: Sample,
        run: RunView,
    ) -> list[Alert]:
        certain = []
        evidence = run.diagnose(_cleared(broken, worst, limits, run)) if broken else None
        for k in broken:
            law, at = run.laws[k], run.places[k]
            alive = sample.laws.gradient[at] > 0
            if run.found[k] and (ratio[at][alive] > limits[k]).mean() < 0.5:
                some = int((ratio[at] > limits[k]).sum())
                reason = f"{some} of {int(alive.sum())} neurons left it at step {sample.step}: they left a linear range"
                run.withdraw(law, reason)
                continue
            first, times = self._suspects.get(law.statement, (sample.step, 0))
            self._suspects[law.statement] = first, times + 1
            if law.statement in self._told:
                continue
            cause = _cause(law, evidence)
            if times + 1 < _TWICE or (cause is None and times + 1 < _PATIENCE):  # the evidence may be on its way
                run.ask_evidence(law)
            elif run.found[k] and (cause is None or not cause.is_evident):
                run.withdraw(law, f"gradients left it at step {first}, and what was measured names no cause")
            else:
                certain.append(k)
        return [self._alert(certain, worst, limits, sample, run, evidence)] if certain else []

    def _alert(
        self,
        certain: list[int],
        worst: np.ndarray,
        limits: np.ndarray,
        sample: Sample,
        run: RunView,
        evidence: Evidence,
    ) -> Alert:
        """One alert for all laws that one fault breaks."""
        k = max(certain, key=lambda k: worst[k] / limits[k])
        cause = Cause(f"possible causes: {undiagnosed(run.laws[k], run.optimizer)}")
        if evidence is not None:
            k = next((j for j in certain if run.laws[j] is evidence[0]), k)
            cause = evidence[1]
        law = run.laws[k]
        self._told |= {run.laws[j].statement for j in certain}
        first = min(self._suspects[run.laws[j].statement][0] for j in certain)
        tensors = _tensors([run.laws[j] for j in certain], law, cause.blamed)
        more = f" (and {counted(len(certain) - 1, 'more law')})" if len(certain) > 1 else ""
        return Alert(
            self.kind,
            law.statement,
            tensors,
            float(worst[k]),
            float(limits[k]),
            first,
            sample.step,
            f"the gradient of {listed(tensors)} has a component of {worst[k]:.2g} along the symmetry of "
            f"{law.statement!r}{more}, where rounding allows {limits[k]:.2g}; {cause.text}",
        )

    def _odd_from_the_start(self, sample: Sample, run: RunView) -> list[Alert]:
        alerts = []
        for law, degree in run.odd:
            if law.statement not in self._told:
                self._told.add(law.statement)
                alerts.append(_odd_alert(self.kind, law, degree, sample.step, run))
        return alerts

    def state_dict(self) -> dict[str, Any]:
        arrays = {"largest": self._largest, "level": self._level, "first_weights": self._first_weights}
        return {
            **{name: None if x is None else x.tolist() for name, x in arrays.items()},
            "seen": self._seen,
            "laws": list(self._laws),
            "suspects": {law: list(value) for law, value in self._suspects.items()},
            "told": sorted(self._told),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        arrays = [None if state[x] is None else np.array(state[x]) for x in ("largest", "level", "first_weights")]
        self._largest, self._level, self._first_weights = arrays
        self._seen, self._laws, self._told = int(state["seen"]), tuple(state["laws"]), set(state["told"])
        self._suspects = {law: (int(first), int(times)) for law, (first, times) in state["suspects"].items()}


def _cause(law: Law, evidence: Evidence) -> Cause | None:
    """What the evidence says, if it is there and of one of the law's tensors."""
    if evidence is None or not set(evidence[0].parameters) & set(law.parameters):
        return None
    return evidence[1]


def _cleared(broken: list[int], worst: np.ndarray, limits: np.ndarray, run: RunView) -> frozenset[str]:
    """Tensors of the broken laws that keep another one."""
    least = min(broken, key=lambda k: worst[k])
    figures = zip(run.laws, worst / limits, strict=True)
    return cleared_by(figures, float(worst[least] / limits[least]), 1.0)


def _is_free_length(law: Law) -> bool:
    """Whether a law is that of a length before a normalisation: all of it grows, nothing shrinks."""
    return all(term.coefficient > 0 and not isinstance(term, Shift) for term in law.terms) and not law.is_matrix


def _tensors(laws: list[Law], worst: Law, blamed: tuple[str, ...]) -> tuple[str, ...]:
    """Where the fault is: in what the evidence names, or in what all broken laws have.

    One law of two tensors cannot tell which of them was scaled; where no other law does, both are named.
    """
    common = tuple(name for name in worst.parameters if all(name in law.parameters for law in laws))
    if len(common) == 1:
        return common
    named = tuple(name for name in worst.parameters if name in blamed)
    return named or common or worst.parameters


def _odd_alert(kind: str, law: Law, degree: float, step: int, run: RunView) -> Alert:
    reader = law.terms[-1].name
    written = max(round(2 * degree) / 2, 0.5)
    return Alert(
        kind,
        law.statement,
        law.parameters,
        abs(degree / written - 1),
        float(run.tolerance or 0.0),
        1,
        step,
        f"from the start the gradients of {listed([term.name for term in law.terms[:-1]])} are {degree / written:.6g} "
        f"times what belongs to that of {reader}, the same for all neurons: one side was scaled by itself (a hook, "
        f"clipping or a gradient rule for one tensor), or the layers have a degree of {degree:.6g}",
    )
