"""The laws of a run: those that were given, in the names of its tensors, or those that its first gradients obey."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nlcompanion._arguments import counted, described
from nlcompanion.laws.auditing.report import Audit
from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Squares
from nlcompanion.monitoring.find_parameters import find_parameters
from nlcompanion.monitoring.watch.cuts import Cut
from nlcompanion.monitoring.watch.found_laws import SAMPLES, FoundLaw, found_laws, free_rows
from nlcompanion.monitoring.watch.law_sums import is_of_slices
from nlcompanion.monitoring.watch.layout import Layout, shape_of
from nlcompanion.monitoring.watch.sample import Sample
from nlcompanion.monitoring.watch.tensors import Tensors

_MOST_TENSORS = 2000  # in a search


def laws_argument(laws: Any) -> tuple[Law, ...] | None:
    """The laws that were handed over; None where they are to be found."""
    if laws is None:
        return None
    if isinstance(laws, Audit):
        return laws.laws
    if isinstance(laws, Law):
        return (laws,)
    if not isinstance(laws, list | tuple) or not all(isinstance(law, Law) for law in laws):
        raise TypeError(
            f"laws must be an audit, its laws, or None to find them in the run's gradients, got {described(laws)}"
        )
    return tuple(laws)


def given_laws(
    laws: Iterable[Law], model: nn.Module, tensors: Tensors, optimizers: int, say: Callable[[str], None]
) -> tuple[Law, ...]:
    """The given laws in the names of the watched tensors, without those that cannot be judged, which are told.

    Raises:
        ValueError: laws of another model.
    """
    laws = tuple(laws)
    with_source = [law for law in laws if law.sources]
    if with_source:
        say(f"not watched: {counted(len(with_source), 'law')} with a source; a Ledger books such")
    laws = tuple(law for law in laws if not law.sources)
    if not laws:
        return ()
    terms = {term.name: term for law in laws for term in law.terms}
    found = find_parameters(model, terms, {id(p) for p in tensors.parameters.values()}, any_dtype=True)
    names = {id(p): name for name, p in tensors.parameters.items()}
    spelled = {name: names[id(p)] for name, p in found.items() if id(p) in names}
    held = tuple(law for law in laws if set(law.parameters) <= set(spelled))
    if len(held) < len(laws):
        say(f"not watched: {counted(len(laws) - len(held), 'law')} of which no optimizer moves all tensors")
    if optimizers > 1 and not all(map(is_of_slices, held)):
        say("laws of matrices and translations are not watched beside several optimizers; a Ledger books them")
        held = tuple(law for law in held if is_of_slices(law))
    return tuple(_respelled(law, spelled) for law in held)


def _respelled(law: Law, spelled: dict[str, str]) -> Law:
    if all(spelled[name] == name for name in law.parameters):
        return law
    terms = tuple(replace(term, name=spelled[term.name]) for term in law.terms)
    statement = law.statement
    for name in sorted(law.parameters, key=len, reverse=True):
        statement = statement.replace(name, spelled[name])
    return replace(law, parameters=tuple(spelled[name] for name in law.parameters), terms=terms, statement=statement)


class LawSearch:
    """Collects the first gradients of a run until there are enough to tell its laws."""

    def __init__(self) -> None:
        self._along: list[dict[tuple[str, Cut], tuple[np.ndarray, np.ndarray]]] = []
        self._names: tuple[str, ...] = ()

    def add(self, sample: Sample, layout: Layout, values: np.ndarray) -> bool:
        """Take in a sample; returns whether there are enough."""
        if sample.skipped or not sample.is_finite.all() or not sample.has_gradient.any():
            return False
        if sample.names != self._names:
            self._along, self._names = [], sample.names
        self._along.append(layout.along_axes(values))
        return len(self._along) >= SAMPLES

    def result(self, tensors: Tensors, tolerance: float | None) -> tuple[list[FoundLaw], frozenset[str]]:
        """The balances that were found, and the tensors whose rows have a free length."""
        shapes = {name: shape_of(p) for name, p in tensors.parameters.items()}
        free = free_rows(self._along, shapes)
        if tolerance is None or len(shapes) > _MOST_TENSORS:
            return [], free
        return found_laws(self._along, shapes, tolerance), free


def law_as_state(law: Law) -> dict[str, Any]:
    """A found law in numbers and texts."""
    terms = [
        [term.name, list(term.shape), term.coefficient, term.axis] for term in law.terms if isinstance(term, Squares)
    ]
    return {"statement": law.statement, "shape": list(law.shape), "terms": terms}


def law_of_state(state: dict[str, Any]) -> Law:
    terms = tuple(Squares(name, slice(0, 0), tuple(shape), float(c), axis) for name, shape, c, axis in state["terms"])
    names = tuple(term.name for term in terms)
    return Law("homogeneous", names, state["statement"], tuple(state["shape"]), terms, 0)


def normalization_gains(model: nn.Module, tensors: Tensors) -> frozenset[str]:
    """Gains and offsets of normalisations, told by the class of their module."""
    names = {id(p): name for name, p in tensors.parameters.items()}
    known = (
        nn.modules.batchnorm._NormBase,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
    )
    gains = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, known) or ("norm" in type(module).__name__.lower() and all(p.ndim == 1 for p in own)):
            gains |= {names[id(p)] for p in own if id(p) in names}
    return frozenset(gains)


def rounding_unit(tensors: Tensors) -> float:
    """The coarsest of the weights."""
    floating = [p.dtype for p in tensors.parameters.values() if p.dtype.is_floating_point or p.dtype.is_complex]
    return max((torch.finfo(dtype).eps for dtype in floating), default=torch.finfo(torch.float32).eps)
