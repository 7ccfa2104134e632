r"""Laws that a run's own first gradients obey: balances of a layer and the one that reads it, and free lengths.

For a neuron between two layers write ``a = <g, w>`` summed over all that writes to it, weight row and bias, and ``b``
for the column that reads it. A homogeneous activation of degree p has ``a = p b`` for every neuron and every batch;
other activations have no such relation. So what is proportional to rounding in several gradients is a law, with p read
off.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Squares, expression
from nlcompanion.monitoring.watch.cuts import Cut, axis_of

Along = Mapping[tuple[str, Cut], tuple[np.ndarray, np.ndarray]]  # <g, w> and |g| |w| of each slice

SAMPLES = 3
_CLOSE = 0.9  # cosine over neurons and gradients beyond which two sides are looked at
_HALF_DIGITS = 2e-3  # how near to a multiple of 1/2 a degree is taken for it
_CLEAR = 300.0  # how far above rounding the two sides must be
_FREE = 0.05  # of what unrelated weights and gradients have, where a length is free


@dataclass(frozen=True)
class FoundLaw:
    """A balance that the first gradients obey.

    Attributes:
        law: it.
        odd: the degree that was found, where it is none of a layer: then one side's gradient was scaled from the start.
    """

    law: Law
    odd: float | None = None


@dataclass(frozen=True)
class _Side:
    """The tensors that write to neurons, or the one that reads them, along one axis each."""

    names: tuple[str, ...]
    axis: int
    values: np.ndarray  # <g, w> by sample and neuron
    sizes: np.ndarray  # squared |g| |w|


def found_laws(along: Sequence[Along], shapes: Mapping[str, tuple[int, ...]], tolerance: float) -> list[FoundLaw]:
    """The balances in some gradients.

    Args:
        along: of each gradient.
        shapes: of the tensors.
        tolerance: what rounding makes of a vanishing sum, relative to ``|g| |w|``.
    """
    found = []
    for count, writers in _by_count(_writers(along, shapes)).items():
        readers = _by_count(_readers(along, shapes)).get(count, [])
        for writer, reader in _candidates(writers, readers):
            law = _balance(writer, reader, shapes, tolerance)
            if law is not None:
                found.append(law)
    return found


def free_rows(along: Sequence[Along], shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Tensors whose rows' lengths have no slope: weights before a normalisation."""
    free = set()
    for name, shape in shapes.items():
        if len(shape) < 2:
            continue
        cut = axis_of(shape, 0)
        values, sizes = _stacked([draw[name, cut] for draw in along])
        alive = sizes > 0
        inputs = int(np.prod(shape[1:]))
        if inputs < 2 or alive.sum() < SAMPLES:
            continue
        cosine = np.sqrt(np.mean((values[alive] / sizes[alive]) ** 2))
        if cosine <= _FREE / np.sqrt(inputs):
            free.add(name)
    return frozenset(free)


# --- the two sides of balances ------------------------------------------------------------------------------------


def _writers(along: Sequence[Along], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[_Side]:
    """Of each module all its tensors with one slice for each of its outputs."""
    modules: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        if shape and shape[0] > 1:
            modules[name.rpartition(".")[0], shape[0]].append(name)
    for names in modules.values():
        yield _side(along, names, 0, shapes)


def _readers(along: Sequence[Along], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[_Side]:
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[1] > 1:
            yield _side(along, [name], 1, shapes)


def _side(along: Sequence[Along], names: list[str], axis: int, shapes: Mapping[str, tuple[int, ...]]) -> _Side:
    parts = [_stacked([draw[name, axis_of(shapes[name], axis)] for draw in along]) for name in names]
    values = np.sum([x for x, _ in parts], axis=0)
    return _Side(tuple(names), axis, values, np.sum([size**2 for _, size in parts], axis=0))


def _stacked(draws: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    values, sizes = zip(*draws, strict=True)
    return np.stack(values), np.stack(sizes)


def _by_count(sides: Iterable[_Side]) -> dict[int, list[_Side]]:
    groups: dict[int, list[_Side]] = defaultdict(list)
    for side in sides:
        if np.isfinite(side.values).all() and (np.abs(side.values).max(1) > 0).all():
            groups[side.values.shape[1]].append(side)
    return groups


def _candidates(writers: list[_Side], readers: list[_Side]) -> list[tuple[_Side, _Side]]:
    if not writers or not readers:
        return []
    one, other = (np.stack([_unit(side.values) for side in sides]) for sides in (writers, readers))
    close = one @ other.T > _CLOSE
    pairs = itertools.product(range(len(writers)), range(len(readers)))
    chosen = [(writers[i], readers[j]) for i, j in pairs if close[i, j]]
    return [(writer, reader) for writer, reader in chosen if not set(reader.names) & set(writer.names)]


def _unit(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1)
    return flat / np.linalg.norm(flat)


# --- whether they balance -----------------------------------------------------------------------------------------


def _balance(writer: _Side, reader: _Side, shapes: Mapping[str, tuple[int, ...]], tolerance: float) -> FoundLaw | None:
    sizes = np.sqrt(writer.sizes + reader.sizes).max(0) + 1e-300  # the largest gradient so far, for each neuron
    share = np.sqrt(np.mean((writer.values / sizes) ** 2))
    if share < _CLEAR * tolerance:
        return None
    degree = float((writer.values * reader.values).sum() / (reader.values**2).sum())
    written = round(2 * degree) / 2
    if written > 0 and abs(degree - written) < _HALF_DIGITS:
        degree, odd = written, None
    else:
        odd = degree
    if np.abs((writer.values - degree * reader.values) / sizes).max() > tolerance:
        return None
    return FoundLaw(_law(writer, reader, shapes, degree if odd is None else max(written, 0.5)), odd)


def _law(writer: _Side, reader: _Side, shapes: Mapping[str, tuple[int, ...]], degree: float) -> Law:
    terms = tuple(
        Squares(name, slice(0, 0), shapes[name], coefficient, side.axis)
        for side, coefficient in ((writer, 1.0), (reader, -degree))
        for name in side.names
    )
    count = writer.values.shape[1]
    names = tuple(term.name for term in terms)
    return Law("homogeneous", names, f"{expression(terms)} = const for each of {count} neurons", (count,), terms, 0)
