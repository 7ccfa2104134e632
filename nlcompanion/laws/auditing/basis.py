"""Null spaces that say how sure they are, and readable bases of them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

TOLERANCE = 1e-9  # singular values below it, relative to the largest, count as zero
NEEDED_GAP = 1e4  # between the smallest that is not zero and the largest that is


@dataclass(frozen=True)
class NullSpace:
    """An orthonormal basis as columns, and the singular values on both sides of the line."""

    basis: np.ndarray
    above: float
    below: float

    @property
    def gap(self) -> float:
        return self.above / max(self.below, 1e-17)

    @property
    def is_clear(self) -> bool:
        return self.gap >= NEEDED_GAP


def null_space(matrix: np.ndarray) -> NullSpace:
    """What the rows of ``matrix`` annihilate; columns are brought to one size and back."""
    columns = matrix.shape[1]
    size = np.sqrt(np.mean(matrix**2, axis=0))
    size[size == 0] = 1.0
    scaled = matrix / size
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled, lengths = scaled[lengths[:, 0] > 0], lengths[lengths[:, 0] > 0]
    if len(lengths):  # a row far below the others is rounding, and stays small
        scaled = scaled / np.maximum(lengths, 1e-4 * np.median(lengths))
    if not len(scaled):
        return NullSpace(np.eye(columns), 1.0, 0.0)
    if len(scaled) > 2 * columns:
        scaled = np.linalg.qr(scaled, mode="r")
    _, sigma, right = np.linalg.svd(scaled, full_matrices=True)
    sigma = np.concatenate([sigma, np.zeros(columns - len(sigma))]) / sigma[0]
    is_null = sigma < TOLERANCE
    above = float(sigma[~is_null].min()) if (~is_null).any() else 1.0
    below = float(sigma[is_null].max()) if is_null.any() else 1e-17
    basis = right[is_null].T / size[:, None]
    if basis.shape[1]:
        basis, _ = np.linalg.qr(basis)
    return NullSpace(basis, above, below)


def readable_basis(basis: np.ndarray, known: np.ndarray | None = None) -> list[np.ndarray]:
    """Vectors of few entries that span the columns of ``basis`` together with those of ``known``.

    Each candidate minimises the sum of absolute values with one entry held at 1; they are taken by the number of their
    entries as long as each adds to what is spanned.
    """
    if not basis.shape[1]:
        return []
    spanned = np.zeros((len(basis), 0)) if known is None else known
    rank = _rank(spanned)
    wanted = _rank(np.concatenate([spanned, basis], axis=1))
    if wanted == rank:
        return []
    candidates = []
    for part in _components(basis):
        candidates += _candidates(basis, part)
    candidates.sort(key=lambda v: (np.count_nonzero(v), (-np.flatnonzero(v)).tolist(), -np.abs(v).sum()))
    found = []
    for vector in [*candidates, *basis.T]:
        if rank == wanted:
            break
        trial = np.concatenate([spanned, vector[:, None] / np.linalg.norm(vector)], axis=1)
        if _rank(trial) > rank:
            spanned, rank = trial, rank + 1
            found.append(vector)
    return found


def _rank(vectors: np.ndarray) -> int:
    if not vectors.shape[1]:
        return 0
    sizes = np.linalg.norm(vectors, axis=0)
    return int(np.linalg.matrix_rank(vectors[:, sizes > 0] / sizes[sizes > 0], tol=1e-7))


def _components(basis: np.ndarray) -> list[np.ndarray]:
    """Sets of entries that no null vector joins."""
    projector = np.abs(basis @ basis.T) > 1e-8
    left, parts = set(np.flatnonzero(projector.diagonal()).tolist()), []
    while left:
        part, front = set(), {min(left)}
        while front:
            part |= front
            front = set(np.flatnonzero(projector[sorted(front)].any(0)).tolist()) - part
        parts.append(np.array(sorted(part)))
        left -= part
    return parts


def _candidates(basis: np.ndarray, part: np.ndarray) -> list[np.ndarray]:
    inside = basis[part]
    left, sigma, _ = np.linalg.svd(inside, full_matrices=False)
    inside = left[:, sigma > 1e-8 * sigma[0]]
    size, rank = inside.shape
    found = []
    if rank == 1:
        found = [inside[:, 0] / np.abs(inside[:, 0]).max()]
    else:
        equal = np.concatenate([inside, -np.eye(size), np.eye(size)], axis=1)
        # of equals the later: a layer's output projection names its law before a projection inside
        each = 1 - 1e-3 * np.arange(size) / size
        cost = np.concatenate([np.zeros(rank), each, each])
        bounds = [(None, None)] * rank + [(0, None)] * (2 * size)
        for entry in range(size):
            fixed = np.zeros((1, rank + 2 * size))
            fixed[0, :rank] = inside[entry]
            result = linprog(
                cost,
                A_eq=np.concatenate([equal, fixed]),
                b_eq=np.concatenate([np.zeros(size), [1.0]]),
                bounds=bounds,
                method="highs",
            )
            if result.success:
                found.append(_polished(inside, inside @ result.x[:rank]))
    vectors = []
    for short in found:
        vector = np.zeros(len(basis))
        vector[part] = np.where(np.abs(short) > 1e-7 * np.abs(short).max(), short, 0.0)
        vectors.append(vector)
    return vectors


def _polished(inside: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The null vector of the same support, to full precision (a linear program stops at 1e-9 or so)."""
    support = np.abs(vector) > 1e-6 * np.abs(vector).max()
    if support.all():
        return vector
    outside = inside[~support]
    _, sigma, right = np.linalg.svd(outside, full_matrices=True)
    rank = int((sigma > 1e-6 * max(sigma[0], 1e-300)).sum()) if len(sigma) else 0
    freedom = inside @ right[rank:].T
    if not freedom.shape[1]:
        return vector
    exact = freedom @ np.linalg.lstsq(freedom, vector, rcond=None)[0]
    exact[~support] = 0.0
    return exact


def simple(vector: np.ndarray) -> np.ndarray:
    """The vector with its smallest entry at 1, and fractions where it has some."""
    entries = np.abs(vector[vector != 0])
    scaled = vector / entries.min()
    if vector[np.flatnonzero(vector)[0]] < 0:
        scaled = -scaled
    for k, value in enumerate(scaled):
        near = Fraction(float(value)).limit_denominator(24)
        if abs(float(near) - value) < 1e-9 * max(1.0, abs(value)):
            scaled[k] = float(near)
    return scaled
