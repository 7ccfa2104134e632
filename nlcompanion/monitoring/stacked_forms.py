"""What the ledger computes with: the forms of many laws at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Shift, Squares, Term, key_of, pairing_size

Tensors = dict[str, Tensor]
Rates = Sequence[float] | Tensor  # one for each parameter


class Step(dict):
    """Tensors by name that are a difference of two points, or a gradient: translations tell them from points."""


class StackedForms:
    """The forms of several laws as one vector, law after law; what laws share of a tensor is computed once.

    Every entry of every law is a weighted sum over a few numbers of :meth:`pairs`, so that all laws together cost a
    handful of operations whatever their number.
    """

    def __init__(self, laws: tuple[Law, ...]):
        self.laws = laws
        self.terms = {term.name: term for law in laws for term in law.terms}  # one of each parameter
        self.places = _consecutive(math.prod(law.shape) for law in laws)
        self.keys = {key_of(term): term for law in laws for term in law.terms}
        ways: dict[str, dict[tuple, Term]] = {}
        for key, term in self.keys.items():
            ways.setdefault(term.name, {})[key] = term
        self._ways, self._scratch = ways, _Scratch()
        where = dict(zip(self.keys, _consecutive(pairing_size(term) for term in self.keys.values()), strict=True))
        self._where = where
        names, size, most = list(self.terms), self.places[-1].stop, max(len(law.terms) for law in laws)
        self._index = torch.zeros(size, most, dtype=torch.long)
        self._owner = torch.zeros(size, most, dtype=torch.long)  # which parameter
        self._coefficient = torch.zeros(size, most, dtype=torch.float64)
        for place, law in zip(self.places, laws, strict=True):
            for k, term in enumerate(law.terms):
                span = where[key_of(term)]
                self._index[place, k] = torch.arange(span.start, span.stop)
                self._owner[place, k] = names.index(term.name)
                self._coefficient[place, k] = term.coefficient
        self._shifts: dict[str, list[tuple]] = {}
        self._as_step = torch.ones(sum(map(pairing_size, self.keys.values())), dtype=torch.float64)
        for key, term in self.keys.items():
            if isinstance(term, Shift):
                self._shifts.setdefault(term.name, []).append(key)
                self._as_step[where[key]] = 0.5
        self.floor = 0.0  # what counts as a sizeable parameter where those of a translation all start at 0
        self._affine = [(place, law) for place, law in zip(self.places, laws, strict=True) if law.is_affine]
        owners = [torch.full((pairing_size(term),), names.index(term.name)) for term in self.keys.values()]
        self.owner_of_pairs = torch.cat(owners)  # which parameter each pairing belongs to
        self._sources = [(place, law) for place, law in zip(self.places, laws, strict=True) if law.sources]
        self._matrices = [(place, law) for place, law in zip(self.places, laws, strict=True) if law.is_matrix]

    @property
    def has_matrices(self) -> bool:
        return bool(self._matrices)

    @property
    def has_shifts(self) -> bool:
        return bool(self._shifts)

    @property
    def has_sources(self) -> bool:
        return bool(self._sources)

    def sources(self, sums: Mapping[tuple, Tensor]) -> Tensor:
        """What ``form(gradient, point)`` is of laws with a source, and 0 of the others; shape ``(size,)``.

        Args:
            sums: of each activation along an axis, by ``(source.key, source.axis)``.
        """
        total = torch.zeros(self.places[-1].stop, dtype=torch.float64, device=self._owner.device)
        for place, law in self._sources:
            for source in law.sources:
                index = torch.tensor(source.index, device=total.device)
                total[place] += source.coefficient * sums[source.key, source.axis][index].sum(1)
        return total

    def to(self, device: torch.device) -> None:
        for name in ("_index", "_owner", "_coefficient", "_as_step", "owner_of_pairs"):
            setattr(self, name, getattr(self, name).to(device))

    @property
    def gathering(self) -> tuple[Tensor, Tensor]:
        """Which pairings make up each entry of the laws, and how much of each: two of shape ``(size, most terms)``."""
        return self._index, self._coefficient

    def spans(self, name: str) -> list[tuple[Term, slice]]:
        """The ways in which a parameter is paired, each with its place among the pairings."""
        return [(term, self._where[key]) for key, term in self._ways[name].items()]

    def pairs(
        self,
        *stages: tuple[Tensors, Tensors] | tuple[Tensors, Tensors, Callable[[str], None]],
        names: Collection[str] | None = None,
    ) -> Tensor:
        """Every pairing of two points (or steps, gradients) that any law needs, in float64.

        Args:
            stages: pairs of points ``(x, y)``, each by name, or ``(x, y, first)`` with ``first(name)`` called before
                that parameter's turn. All stages of one parameter follow each other, while it is in the processor's
                cache: there several passes cost little more than one.
            names: pair these parameters only; of the others the pairings are 0.

        Returns:
            Shape ``(len(stages), m)``.
        """
        values: list[dict[tuple, Tensor]] = [{} for _ in stages]
        for name, terms in self._ways.items():
            if names is not None and name not in names:
                for value in values:
                    value.update((key, self._nothing(term)) for key, term in terms.items())
                continue
            for value, (x, y, *first) in zip(values, stages, strict=True):
                for prepare in first:
                    prepare(name)
                found = _pair(list(terms.values()), x[name], y[name], self._scratch)
                value.update(zip(terms, found, strict=True))
                for key in self._shifts.get(name, ()):
                    value[key] = value[key] * (2 - isinstance(x, Step) - isinstance(y, Step))
        flat = torch.cat([value[key].reshape(-1) for value in values for key in self.keys])
        return flat.double().view(len(stages), -1)

    def form(self, pairs: Tensor, rates: Rates | None = None) -> Tensor:
        """All laws' forms, shape ``(..., size)``, from ``pairs`` of shape ``(..., m)``; each parameter's share times
        its rate."""
        weight = self._coefficient
        if rates is not None:
            if not isinstance(rates, Tensor) and len(set(rates)) == 1:
                return rates[0] * self.form(pairs)
            weight = weight * self._each(rates)
        return (pairs[..., self._index] * weight).sum(-1)

    def as_steps(self, position: Tensor) -> Tensor:
        """The pairs of a point with itself as those of the step that decay takes, the point itself, with the point."""
        return position * self._as_step if self._shifts else position

    def excess(self, pairs: Tensor, rates: Rates, whole: Tensor | None = None) -> Tensor:
        """As :meth:`form`, with each rate less that of the law's first parameter.

        Args:
            pairs, rates: as for :meth:`form`.
            whole: where it is False nothing is taken off, shape ``(size,)``.
        """
        rate = self._each(rates)
        first = rate[:, :1] if whole is None else rate[:, :1] * whole[:, None]
        return (pairs[..., self._index] * self._coefficient * (rate - first)).sum(-1)

    def first_rates(self, rates: Rates) -> Tensor:
        """The rate of each law's first parameter, shape ``(size,)``."""
        return self._each(rates)[:, 0]

    def all_of(self, chosen: Tensor) -> Tensor:
        """Of which laws all parameters are chosen; shape ``(size,)`` from one truth for each parameter."""
        return torch.where(self._coefficient != 0, chosen[self._owner], True).all(-1)

    def _each(self, rates: Rates) -> Tensor:
        if not isinstance(rates, Tensor):
            rates = torch.tensor(rates, dtype=torch.float64, device=self._owner.device)
        return rates[self._owner]

    def _nothing(self, term: Term) -> Tensor:
        return torch.zeros(pairing_size(term), dtype=torch.float64, device=self._owner.device)

    def positions(self, names: Collection[str]) -> Tensor:
        """Which of the pairings belong to some parameters: a mask of shape ``(m,)``."""
        chosen = torch.tensor([name in names for name in self.terms], device=self.owner_of_pairs.device)
        return chosen[self.owner_of_pairs]

    def differ(self, rates: dict[str, float]) -> bool:
        """Whether parameters of one law have different rates."""
        return any(len({rates[term.name] for term in law.terms}) > 1 for law in self.laws)

    def scale(self, pairs: Tensor, x: Tensors) -> Tensor:
        """How large the parameters are of which each law speaks: squared lengths, shape ``(size,)``."""
        scale = (pairs[self._index] * self._coefficient.abs()).sum(-1)
        for place, law in self._matrices:  # one figure for all entries
            scale[place] = sum(torch.linalg.vector_norm(x[term.name]) ** 2 for term in law.terms)
        for place, law in self._affine:  # a sum may cancel: how large its terms are
            shares = [
                abs(term.coefficient)
                * (term.magnitude(x[term.name]) if isinstance(term, Shift) else term.pair(x[term.name], x[term.name]))
                for term in law.terms
            ]
            scale[place] = reduce(torch.add, shares).reshape(-1).double() + self.floor
        return scale

    def squared_lengths(self, g: Tensors, x: Tensors, names: Collection[str] | None = None) -> Tensor:
        """``(|g|^2, |generator|^2)`` of all laws, of each over its own parameters, or those of them that are named.

        Returns:
            Shape ``(2, size)``, in float64.
        """
        lengths = torch.zeros(2, self.places[-1].stop, dtype=torch.float64, device=self._owner.device)
        for place, law in zip(self.places, self.laws, strict=True):
            for term in law.terms:
                if names is None or term.name in names:
                    pair = term.lengths(g[term.name], x[term.name])
                    lengths[:, place] += torch.stack([part.reshape(-1).double() for part in pair])
        return lengths


def _consecutive(sizes: Iterable[int]) -> list[slice]:
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


class _Scratch:
    """Room for a product, kept from step to step: to ask for it anew costs more than the product itself."""

    def __init__(self) -> None:
        self.room: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        if (
            self.room is None
            or self.room.numel() < x.numel()
            or (self.room.dtype, self.room.device) != (x.dtype, x.device)
        ):
            self.room = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        return self.room[: x.numel()].view(x.shape)


def _pair(terms: list[Term], x: Tensor, y: Tensor, scratch: _Scratch) -> list[Tensor]:
    """A tensor's pairings in all the ways asked for. Speed is in not writing products that a kernel can do without."""
    axes = [term.axis if isinstance(term, Squares) and term.index is None else None for term in terms]
    if x.ndim == 2 and x is y and axes == [0]:
        return [torch.linalg.vector_norm(x, dim=1).square()]
    stacked = any(axis is not None for axis in axes)
    product = torch.mul(x, y, out=scratch.like(x)) if stacked else x
    values = []
    for term, axis in zip(terms, axes, strict=True):
        if axis is not None:
            others = [k for k in range(x.ndim) if k != axis]
            values.append(product.sum(others) if others else product.clone())
        elif isinstance(term, Squares) and term.index is None:
            values.append(torch.dot(x.reshape(-1), y.reshape(-1)))
        else:
            values.append(term.pair(x, y))
    return values
