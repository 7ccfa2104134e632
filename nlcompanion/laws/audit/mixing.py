"""Laws that are matrices: neurons that may be mixed (linear pairs, heads) or turned (rotary embedding)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.audit.basis import null_space, readable_basis, simple
from nlcompanion.laws.audit.double_copy import DoubleCopy
from nlcompanion.laws.audit.families import Family
from nlcompanion.laws.audit.slices import SCALE, Atom, Layout, atoms_of, rows_of

if TYPE_CHECKING:
    from nlcompanion.laws.audit.search import Search

_NUMBERS = range(800_001, 800_004)
_TURNS = range(810_001, 810_007)
_JOINED = 1e-9


def find_blocks(room: DoubleCopy, layout: Layout, family: Family) -> Family:
    """The family with the sets of neurons that any matrix may mix."""
    joined = None
    for number in _NUMBERS:
        _, gradient = room.gradient(room.draw(number), seed=number)
        here = _ratio(room, layout, family, gradient) < _JOINED
        joined = here if joined is None else joined & here
    joined = joined & joined.T
    joined.fill_diagonal_(True)
    return replace(family, blocks=tuple(_components(joined.cpu().numpy())))


def _ratio(room: DoubleCopy, layout: Layout, family: Family, gradient: dict[str, Tensor]) -> Tensor:
    """The slope of the loss along every generator that mixes neuron ``j`` into ``i``, relative to its terms."""
    slope, size = 0.0, 0.0
    for atom, c in family.atoms:
        axis = layout.axes[atom.axis]
        g = rows_of(axis, atom.index, gradient[axis.name])
        theta = rows_of(axis, atom.index, room.parameters[axis.name].detach())
        sign = 1.0 if c > 0 else -1.0
        product, bound = g @ theta.T, g.norm(dim=1)[:, None] * theta.norm(dim=1)
        slope = slope + sign * (product if c > 0 else product.T)
        size = size + (bound if c > 0 else bound.T)
    return slope.abs() / size.clamp_min(1e-300)


def _components(joined: np.ndarray) -> list[np.ndarray]:
    left, parts = np.ones(len(joined), dtype=bool), []
    for start in range(len(joined)):
        if left[start]:
            part = np.flatnonzero(joined[start])
            whole = joined[np.ix_(part, part)].all()
            part = part if whole else np.array([start])
            left[part] = False
            parts.append(part)
    return [part for part in parts if len(part) > 1]


def find_rotations(search: Search) -> list[Family]:
    """Rotations that no mixing block implies: of all pairs of neurons, or of the pairs that rotary embedding turns."""
    found: list[Family] = []
    layout = search.layout
    gradients = []
    lengths = {len(axis) for axis in layout.axes}
    if not any(len(axis.view) > 1 for axis in layout.axes):
        return found
    for number in _TURNS:
        data = search.room.draw(number)
        gradients.append((number, search.room.gradient(data, seed=number)[1]))
    for n, inner in search._sizes():
        if n < 2 or n not in lengths or n > 8192:
            continue
        atoms = [atom for k in range(len(layout.axes)) for atom in atoms_of(layout, SCALE, k, n, inner)]
        atoms = [atom for atom in atoms if len(layout.axes[atom.axis].view) > 1 and not search._is_settled(atom)]
        if not atoms:
            continue
        for pairs in _pairs(n, search.layout.numbers):
            new = _turned(search, atoms, pairs, gradients)
            found += [family for family in new if not _known(search.families + found, family)]
    return found


def _pairs(n: int, numbers: tuple[int, ...]):
    """Sets of pairs of neurons: neighbours, halves of a head, or any two."""
    rng = np.random.default_rng(n)
    if n >= 4:
        some = rng.permutation(n)[: 2 * (n // 2)].reshape(-1, 2)
        yield np.sort(some, axis=1)
    even = np.arange(0, n - n % 2).reshape(-1, 2)
    yield even
    for head in sorted({n, *(k for k in numbers if n % k == 0), *(n // k for k in numbers if n % k == 0)}):
        if head % 2 == 0 and head > 2:
            first = np.arange(n).reshape(-1, 2, head // 2)
            yield np.stack([first[:, 0].reshape(-1), first[:, 1].reshape(-1)], axis=1)


def _turned(search: Search, atoms: list[Atom], pairs: np.ndarray, gradients) -> list[Family]:
    layout, room = search.layout, search.room
    columns, sizes = [], []
    used = pairs[:: max(1, len(pairs) // 48)]
    for number, gradient in gradients:
        room.draw(number)
        of_atoms, of_sizes = [], []
        for atom in atoms:
            axis = layout.axes[atom.axis]
            first, second = atom.index[used[:, 0]], atom.index[used[:, 1]]
            g = [rows_of(axis, index, gradient[axis.name]) for index in (first, second)]
            x = [rows_of(axis, index, room.parameters[axis.name].detach()) for index in (first, second)]
            of_atoms.append((g[0] * x[1] - g[1] * x[0]).sum(1))
            of_sizes.append((g[0] * x[1]).abs().sum(1) + (g[1] * x[0]).abs().sum(1))
        columns.append(torch.stack(of_atoms, dim=-1).cpu().numpy())
        sizes.append(torch.stack(of_sizes, dim=-1).cpu().numpy())
    matrix, size = np.concatenate(columns), np.concatenate(sizes)
    alone = (np.abs(matrix) <= 1e-10 * size).all(0)
    families = [
        Family(((atom, 1.0),), float("inf"), pairs=pairs) for atom, is_alone in zip(atoms, alone, strict=True) if is_alone
    ]
    left = [atom for atom, is_alone in zip(atoms, alone, strict=True) if not is_alone]
    if len(left) > 1 and len(matrix) >= len(left) + 8:
        space = null_space(matrix[:, ~alone])
        if space.basis.shape[1] and space.is_clear:
            for vector in readable_basis(space.basis):
                vector = simple(vector)
                law = tuple((left[k], float(vector[k])) for k in np.flatnonzero(vector))
                families.append(Family(law, space.gap, pairs=pairs))
    return families


def _known(families: list[Family], new: Family) -> bool:
    """Whether a rotation belongs to a block that mixes anyway, or was found with more pairs before."""
    index = {(atom.kind, atom.axis): atom.index for atom, _ in new.atoms}
    for family in families:
        if family.is_rotation:
            mine = {(atom.kind, atom.axis): atom.index for atom, _ in family.atoms}
            same = mine.keys() == index.keys() and all(np.array_equal(mine[k], index[k]) for k in mine)
            if same and (len(family.pairs) >= len(new.pairs)):
                return True
        for block in family.blocks:
            axes = {(atom.kind, atom.axis): set(atom.index[block].reshape(-1).tolist()) for atom, _ in family.atoms}
            first = new.pairs[0]
            if index.keys() == axes.keys() and all(set(index[k][first].reshape(-1).tolist()) <= axes[k] for k in axes):
                return True
    return False
