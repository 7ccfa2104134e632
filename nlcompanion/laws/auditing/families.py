"""Families of laws, as they are found: one generator for each of ``n`` aligned neurons, channels or heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.equations import Equations, relative
from nlcompanion.laws.auditing.slices import SCALE, SHEAR, SHIFT, SOURCE, Atom, Layout
from nlcompanion.laws.terms import affine_flow


@dataclass(frozen=True)
class Family:
    """``sum of coefficient * atom`` is a symmetry for each ``i`` of ``n``.

    ``blocks`` are sets of neurons that mix: within one, every matrix and not only the diagonal is a symmetry. ``pairs``
    are neurons turned into each other (a rotation), where the family is of that kind. ``gap`` says how clearly the
    equations told zero from not zero.
    """

    atoms: tuple[tuple[Atom, float], ...]
    gap: float
    dead: bool = False
    blocks: tuple[np.ndarray, ...] = ()
    pairs: np.ndarray | None = None
    defect: float = 0.0
    moved: float = 0.0  # relative change of the loss at a finite distance
    seen_in_outputs: bool | None = None  # whether the model's outputs move, though the loss does not

    @property
    def n(self) -> int:
        return len(self.atoms[0][0].index)

    def generators(self, layout: Layout) -> int:
        """How many directions the family leaves the loss alone in."""
        if self.dead:  # every weight moves by itself
            return sum(atom.index.size * layout.axes[atom.axis].weights_per_slice for atom, _ in self.atoms)
        if self.is_rotation:
            return len(self.planes)
        return self.n + sum(len(block) * (len(block) - 1) for block in self.blocks)

    @property
    def has_source(self) -> bool:
        return any(atom.kind == SOURCE for atom, _ in self.atoms)

    @property
    def is_rotation(self) -> bool:
        return self.pairs is not None

    @property
    def planes(self) -> np.ndarray:
        """The pairs of neurons that a rotation turns into each other, shape ``(planes, 2)``."""
        if self.pairs is None:
            raise ValueError("this family is no rotation and turns no pairs of neurons; ask is_rotation first")
        return self.pairs

    @property
    def is_shear(self) -> bool:
        return any(atom.kind == SHEAR for atom, _ in self.atoms)

    @property
    def only_scales(self) -> bool:
        return not self.is_rotation and all(atom.kind == SCALE for atom, _ in self.atoms)

    @property
    def balances(self) -> bool:
        """Whether one side grows as another shrinks."""
        signs = {np.sign(c) for atom, c in self.atoms if atom.kind == SCALE}
        return len(signs) == 2

    def names(self, layout: Layout) -> tuple[str, ...]:
        found = []
        for atom, _ in self.atoms:
            if atom.kind in (SCALE, SHIFT):
                found.append(layout.axes[atom.axis].name)
            elif atom.kind == SHEAR:
                found.append(layout.shears[atom.axis].bias)
        return tuple(dict.fromkeys(found))

    def moves(self, layout: Layout) -> tuple[str, ...]:
        """Names with a sign."""
        signed = []
        for atom, c in self.atoms:
            if atom.kind in (SCALE, SHIFT):
                signed.append(("+" if c > 0 else "-") + layout.axes[atom.axis].name)
            elif atom.kind == SHEAR:
                signed.append(("+" if c > 0 else "-") + layout.shears[atom.axis].bias)
        return tuple(dict.fromkeys(signed))

    def only(self, which: np.ndarray) -> Family:
        """The laws of some of the neurons, by their numbers; blocks keep those of theirs."""
        atoms = tuple((replace(a, index=a.index[which]), c) for a, c in self.atoms)
        blocks = (np.flatnonzero(np.isin(which, block)) for block in self.blocks)
        return replace(self, atoms=atoms, blocks=tuple(block for block in blocks if len(block) > 1))

    def slope(self, equations: Equations) -> tuple[np.ndarray, np.ndarray]:
        """The loss's slope along each law, and the sum of its absolute terms, both of shape (draws, n)."""
        value = sum(c * equations.column(atom) for atom, c in self.atoms)
        size = sum(abs(c) * equations.column(atom, "sizes") for atom, c in self.atoms)
        return np.abs(value), np.asarray(size)

    def residual(self, equations: Equations) -> np.ndarray:
        """Violation relative to the sum of the absolute terms, shape (draws, n); 0 where nothing happened."""
        return relative(*self.slope(equations))


class Span:
    """The generators known so far, slice by slice, with the identities that hold anyway."""

    def __init__(self, layout: Layout):
        self.layout, count = layout, layout.count
        shears = sum(s.length for s in layout.shears)
        sources = sum(place.length for place in layout.sources)
        self.starts = {SCALE: 0, SHIFT: count, SHEAR: 2 * count, SOURCE: 2 * count + shears}
        self.width = 2 * count + shears + sources
        self.rows: list[scipy.sparse.csr_matrix] = [self._identities()]
        self._matrix = None
        self._seen: set[bytes] = set()

    def columns(self, atom: Atom) -> np.ndarray:
        layout = self.layout
        if atom.kind in (SCALE, SHIFT):
            start = layout.axes[atom.axis].start
        else:
            start = layout.shears[atom.axis].start if atom.kind == SHEAR else layout.sources[atom.axis].start
        return self.starts[atom.kind] + start + atom.index

    def rows_of(self, atoms) -> scipy.sparse.csr_matrix:
        n = len(atoms[0][0].index)
        rows, columns, values = [], [], []
        for atom, c in atoms:
            index = self.columns(atom)
            rows.append(np.repeat(np.arange(n), index.shape[1]))
            columns.append(index.reshape(-1))
            values.append(np.full(index.size, float(c)))
        parts = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return scipy.sparse.csr_matrix(parts, shape=(n, self.width))

    def add(self, atoms) -> None:
        rows = self.rows_of(atoms)
        self._seen |= set(_fingerprints(rows))
        self.rows.append(rows)
        self._matrix = None

    def new_rows(self, atoms) -> np.ndarray:
        """Which neurons of a family do not have this very law already."""
        return np.array([i for i, mark in enumerate(_fingerprints(self.rows_of(atoms))) if mark not in self._seen], int)

    @property
    def matrix(self) -> scipy.sparse.csr_matrix:
        """All known generators as rows of length 1."""
        if self._matrix is None:
            stacked = scipy.sparse.vstack(self.rows).tocsr()
            sizes = np.sqrt(np.asarray(stacked.multiply(stacked).sum(1)).ravel())
            self._matrix = scipy.sparse.diags(1 / np.where(sizes > 0, sizes, 1.0)) @ stacked
        return self._matrix

    def contains(self, atoms) -> bool:
        """Whether a family follows from what is known: looked at for a few of its neurons."""
        rows = self.rows_of(atoms)
        n = rows.shape[0]
        for i in sorted({0, n // 2, n - 1}):
            target = np.asarray(rows[i].todense()).ravel()
            target /= np.linalg.norm(target)
            if not self._spans(target):
                return False
        return True

    def _spans(self, target: np.ndarray) -> bool:
        known = self.matrix.T
        if not known.shape[1]:
            return False
        x = scipy.sparse.linalg.lsmr(known, target, atol=1e-13, btol=1e-13, maxiter=2000)[0]
        return float(np.linalg.norm(known @ x - target)) < 1e-5

    def _identities(self) -> scipy.sparse.csr_matrix:
        """Scaling all rows of a tensor is scaling all its columns, and shifts likewise; of groups in each group."""
        layout, rows = self.layout, []
        for name in layout.shapes:
            first, *others = layout.axes_of(name)
            for other in others:
                a, b = layout.axes[first], layout.axes[other]
                groups = a.view[0] if a.view == b.view and a.keep[0] == b.keep[0] else 1
                of = lambda axis, groups=groups: np.arange(len(axis)).reshape(groups, -1)  # noqa: E731
                for kind in (SCALE, SHIFT):
                    rows.append(self.rows_of([(Atom(kind, first, of(a)), 1.0), (Atom(kind, other, of(b)), -1.0)]))
        of_call: dict[int, Atom] = {}
        for k, place in enumerate(layout.sources):  # of one call the sum is the same along every axis
            whole = Atom(SOURCE, k, np.arange(place.length)[None])
            earlier = of_call.setdefault(place.call, whole)
            if earlier is not whole:
                rows.append(self.rows_of([(whole, 1.0), (earlier, -1.0)]))
        return scipy.sparse.vstack(rows).tocsr() if rows else scipy.sparse.csr_matrix((0, self.width))


def _fingerprints(rows: scipy.sparse.csr_matrix) -> list[bytes]:
    rows = rows.tocsr()
    rows.sort_indices()
    cuts = zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    return [rows.indices[a:b].tobytes() + np.round(rows.data[a:b], 9).tobytes() for a, b in cuts]


# --- a family at a finite distance ------------------------------------------------------------------------------------


@torch.no_grad()
def move(room: DoubleCopy, layout: Layout, family: Family, t: np.ndarray, *, generator: torch.Generator) -> None:
    """Move the copy's parameters along all laws of a family, ``t`` of shape ``(n,)`` far."""
    if family.dead:
        _wiggle(room, layout, family, generator)
        return
    growth: dict[int, np.ndarray] = {}
    drift: dict[int, np.ndarray] = {}
    sheared: list[tuple[Atom, float]] = []
    for atom, c in family.atoms:
        if atom.kind == SHEAR:
            sheared.append((atom, c))
        elif atom.kind in (SCALE, SHIFT):
            of_axis = (growth if atom.kind == SCALE else drift).setdefault(
                atom.axis, np.zeros(len(layout.axes[atom.axis]))
            )
            np.add.at(of_axis, atom.index, (c * t)[:, None])
    for axis in sorted({*growth, *drift}):
        zero = np.zeros(len(layout.axes[axis]))
        _affine(room, layout, axis, growth.get(axis, zero), drift.get(axis, zero))
    for atom, c in sheared:
        shear = layout.shears[atom.axis]
        weight = shear.matrix(room.parameters[shear.weight])
        columns = torch.zeros(shear.length, dtype=weight.dtype, device=weight.device)
        columns[torch.as_tensor(atom.index[:, 0], device=weight.device)] = torch.as_tensor(c * t, device=weight.device)
        room.parameters[shear.bias].add_(weight @ columns)


def _affine(room: DoubleCopy, layout: Layout, axis: int, growth: np.ndarray, drift: np.ndarray) -> None:
    """The flow of ``theta' = c theta + tau`` on the slices of one axis."""
    one = layout.axes[axis]
    p = room.parameters[one.name]
    growths, drifts = (
        one.spread(torch.as_tensor(values, dtype=p.dtype, device=p.device)) for values in (growth, drift)
    )
    p.copy_(affine_flow(p.reshape(one.view), growths, drifts).reshape(p.shape))


def _wiggle(room: DoubleCopy, layout: Layout, family: Family, generator: torch.Generator) -> None:
    for atom, _ in family.atoms:
        axis = layout.axes[atom.axis]
        p = room.parameters[axis.name]
        chosen = torch.zeros(len(axis), dtype=p.dtype)
        chosen[torch.as_tensor(atom.index.reshape(-1))] = 0.5
        noise = torch.empty(axis.view, dtype=p.dtype).normal_(generator=generator)
        p.add_((noise * axis.spread(chosen)).reshape(p.shape).to(p.device))


def mix(room: DoubleCopy, layout: Layout, family: Family, matrix: Tensor, *, rotation: bool = False) -> None:
    """Act with ``exp(A)`` on the ``n`` neurons of a family whose blocks mix; ``A`` has shape ``(n, n)``.

    Slices with a positive coefficient become ``exp(A)`` times themselves, those with a negative ``exp(-A)^T``; under a
    ``rotation`` all of them ``exp(c A)``.
    """
    with torch.no_grad():
        for atom, c in family.atoms:
            axis = layout.axes[atom.axis]
            p = room.parameters[axis.name]
            if rotation:
                turn = torch.linalg.matrix_exp(torch.stack([c * matrix] * 2))[0]
            else:
                turn = torch.linalg.matrix_exp(torch.stack([matrix if c > 0 else -matrix.T] * 2))[0]
            rows = axis.rows(p).clone()
            for k in range(atom.index.shape[1]):
                index = torch.as_tensor(atom.index[:, k], device=p.device)
                rows[index] = turn.to(p.device) @ rows[index]
            p.copy_(axis.unrows(rows, tuple(p.shape)))
