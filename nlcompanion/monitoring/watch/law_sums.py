"""Laws of gradients from sums over slices: ``form(g, q)``, what it is compared with, and the charges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Shift, Slices, Squares
from nlcompanion.monitoring.stacked_forms import StackedForms, Step
from nlcompanion.monitoring.watch.cuts import Cut, Cuts


@dataclass(frozen=True)
class LawFigures:
    """Of all entries of all laws, each of shape ``(entries,)``.

    Attributes:
        form: the gradient's component along the symmetry, ``form(g, q)``; the law says 0.
        gradient, generator: lengths of what it is made of; ``form`` over their product is a cosine.
        charge: what gradient flow conserves.
    """

    form: np.ndarray
    gradient: np.ndarray
    generator: np.ndarray
    charge: np.ndarray

    def joined(self, other: LawFigures) -> LawFigures:
        names = ("form", "gradient", "generator", "charge")
        return LawFigures(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})


def is_of_slices(law: Law) -> bool:
    """Whether sums over slices tell it; the laws of matrices and of translations need the tensors themselves."""
    return len(terms_of(law)) == len(law.terms)


def terms_of(law: Law) -> list[Squares | Slices]:
    """The terms of a law that are sums of squares over slices."""
    slices = [term for term in law.terms if isinstance(term, Squares | Slices)]
    return [term for term in slices if isinstance(term, Squares) or not (isinstance(term, Shift) or term.matrix)]


def cut_of(term: Squares | Slices) -> Cut:
    if isinstance(term, Squares):
        return Cut(term.shape, () if term.axis is None else (term.axis,))
    return Cut(term.view, term.keep)


def cuts_of(laws: Iterable[Law]) -> list[tuple[str, Cut]]:
    """The slices that laws speak of."""
    return [(term.name, cut_of(term)) for law in laws for term in terms_of(law)]


class LawSums:
    """The laws of slices among the sums of a measurement.

    Args:
        laws: all of slices.
        cuts: of all tensors, in which those of the laws are.
    """

    def __init__(self, laws: tuple[Law, ...], cuts: Cuts):
        self.laws = laws
        entries: list[int] = []
        positions: list[int] = []
        coefficients: list[float] = []
        self.places: list[slice] = []
        first = 0
        for law in laws:
            self.places.append(slice(first, first + math.prod(law.shape)))
            for term in terms_of(law):
                start = cuts.place[term.name, cut_of(term)].start
                for entry, slices in enumerate(_slices_of(term)):
                    entries += [first + entry] * len(slices)
                    positions += [start + k for k in slices]
                    coefficients += [term.coefficient] * len(slices)
            first += math.prod(law.shape)
        self.size = first
        self._entries, self._positions = np.array(entries, dtype=int), np.array(positions, dtype=int)
        self._coefficients = np.array(coefficients)

    def figures(self, ww: np.ndarray, gg: np.ndarray, gw: np.ndarray) -> LawFigures:
        c, at = self._coefficients, self._positions
        return LawFigures(
            form=self._added(c * gw[at]),
            gradient=np.sqrt(self._added(gg[at])),
            generator=np.sqrt(self._added(c**2 * ww[at])),
            charge=self._added(c * ww[at]),
        )

    def _added(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._entries, values, minlength=self.size)


def _slices_of(term: Squares | Slices) -> list[tuple[int, ...]]:
    """For each entry of the law the slices that its term sums over."""
    if isinstance(term, Slices):
        return list(term.index)
    if term.axis is None:
        return [(0,)]
    if term.index is not None:
        return [(term.index,)]
    return [(k,) for k in range(term.shape[term.axis])]


class TensorLaws:
    """Laws that sums over slices do not tell: of matrices, and of translations. Measured on the tensors themselves."""

    def __init__(self, laws: tuple[Law, ...], parameters: Mapping[str, Tensor]):
        self.laws = laws
        self.parameters = {term.name: parameters[term.name] for law in laws for term in law.terms}
        self._forms = StackedForms(laws)
        self._forms.to(next(iter(self.parameters.values())).device)
        self.places, self.size = self._forms.places, self._forms.places[-1].stop

    @torch.no_grad()
    def measure(self, scale: Tensor | None) -> Tensor:
        """``form(g, q)``, squared lengths of gradient and generator, and charges; shape ``(4 * size,)``."""
        weights = {name: p.detach() for name, p in self.parameters.items()}
        gradients = Step({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self.parameters.items()})
        along, squares = self._forms.pairs((gradients, weights), (weights, weights))
        forms, charges = self._forms.form(torch.stack([along, squares]))
        lengths = self._forms.squared_lengths(gradients, weights)
        factor = 1.0 if scale is None else scale
        return torch.cat([forms / factor, lengths[0] / factor**2, lengths[1], charges])

    def figures(self, values: np.ndarray) -> LawFigures:
        form, gradient, generator, charge = values.reshape(4, -1)
        return LawFigures(form, np.sqrt(gradient), np.sqrt(generator), charge)
