"""Laws that are matrices: neurons that may be mixed (linear pairs, heads) or turned (rotary embedding)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.auditing.basis import null_space, readable_basis, simple
from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.slices import SCALE, Atom, Layout, atoms_of, rows_of

if TYPE_CHECKING:
    from nlcompanion.laws.auditing.search import Search

_NUMBERS = range(800_001, 800_004)
_TURNS = range(810_001, 810_041)
_JOINED = 1e-9


def find_blocks(room: DoubleCopy, layout: Layout, families: list[Family]) -> list[Family]:
    """The families with the sets of neurons that any matrix may mix."""
    joined = [np.ones((family.n, family.n), dtype=bool) for family in families]
    for number in _NUMBERS if families else ():
        _, gradient = room.gradient(room.draw(number), seed=number)
        for k, family in enumerate(families):
            slope, size = mixing_slopes(room, layout, family, gradient)
            joined[k] &= (slope < _JOINED * size).cpu().numpy()
    whole = [np.arange(family.n) for family in families]
    return [
        replace(family, blocks=blocks_within(pairs, (neurons,)))
        for family, pairs, neurons in zip(families, joined, whole, strict=True)
    ]


def mixing_slopes(
    room: DoubleCopy, layout: Layout, family: Family, gradient: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The slope of the loss along every generator that mixes neuron ``j`` into ``i``, and what bounds its terms."""
    slope = size = torch.zeros((), dtype=torch.float64)
    for atom, c in family.atoms:
        axis = layout.axes[atom.axis]
        g = rows_of(axis, atom.index, gradient[axis.name])
        theta = rows_of(axis, atom.index, room.parameters[axis.name].detach())
        sign = 1.0 if c > 0 else -1.0
        product, bound = g @ theta.T, g.norm(dim=1)[:, None] * theta.norm(dim=1)
        slope = slope + sign * (product if c > 0 else product.T)
        size = size + (bound if c > 0 else bound.T)
    return slope.abs(), size.clamp_min(1e-300)


def blocks_within(joined: np.ndarray, blocks: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The sets of neurons within these blocks of which every two are joined, both ways."""
    joined = joined & joined.T
    np.fill_diagonal(joined, True)
    return tuple(block[part] for block in blocks for part in _components(joined[np.ix_(block, block)]))


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


@dataclass
class _Question:
    """Do these atoms turn together in these pairs? And what the draws have said so far."""

    atoms: list[Atom]
    pairs: np.ndarray
    slopes: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.asked < self.needed or not self.reached.all()

    @property
    def asked(self) -> int:
        """How many pairs the draws were asked for so far."""
        return sum(map(len, self.slopes))

    @property
    def reached(self) -> np.ndarray:
        """Which atoms got a gradient in any draw; of the others, like experts without a token, nothing is known."""
        return np.any([(size > 0).any(0) for size in self.sizes], axis=0)

    @property
    def n(self) -> int:
        return len(self.atoms[0].index)

    @property
    def needed(self) -> int:
        """Equations that tell all atoms apart."""
        return len(self.atoms) + 12


def find_rotations(search: Search) -> list[Family]:
    """Rotations that no mixing block implies: of all pairs of neurons, or of the pairs that rotary embedding turns."""
    questions: list[_Question] = []
    for question in _questions(search):
        if question.needed <= len(_TURNS) * len(question.pairs):
            questions.append(question)
        else:
            search.limits.append(f"turns of {question.n} slices: more unknowns than equations, not examined")
    for number in _TURNS:
        still_open = [question for question in questions if question.is_open]
        if not still_open:
            break
        _, gradient = search.room.gradient(search.room.draw(number), seed=number)
        slices = _Slices(search, gradient)
        for question in still_open:
            _ask(slices, question)
    for question in questions:
        if question.is_open:
            search.limits.append(
                f"turns of {question.n} slices: some were reached by no gradient in {len(_TURNS)} draws, not examined"
            )
    answers = [family for question in questions if not question.is_open for family in _answers(question)]
    found: list[Family] = []
    for family, turned in zip(answers, _turned(search, answers), strict=True):
        turned &= ~_implied(search, search.families + found, family)
        if turned.any():
            found.append(replace(family, pairs=np.argwhere(np.triu(turned, 1))))
    return found


def _turned(search: Search, families: list[Family]) -> list[np.ndarray]:
    """For each family which pairs of neurons it turns, a matrix of truth values."""
    turned = [np.triu(np.ones((family.n, family.n), dtype=bool), 1) for family in families]
    for number in _NUMBERS if families else ():
        _, gradient = search.room.gradient(search.room.draw(number), seed=number)
        for here, family in zip(turned, families, strict=True):
            slope = size = torch.zeros((), dtype=torch.float64)
            for atom, c in family.atoms:
                axis = search.layout.axes[atom.axis]
                g = rows_of(axis, atom.index, gradient[axis.name])
                theta = rows_of(axis, atom.index, search.room.parameters[axis.name].detach())
                product = g @ theta.T
                slope = slope + c * (product - product.T)
                bound = g.norm(dim=1)[:, None] * theta.norm(dim=1)
                size = size + abs(c) * (bound + bound.T)
            here &= (slope.abs() < _JOINED * size).cpu().numpy()
    return turned


def _questions(search: Search) -> Iterator[_Question]:
    layout = search.layout
    lengths = {len(axis) for axis in layout.axes if len(axis.view) > 1}
    seen = set()
    for n, inner in search._sizes():
        if n not in lengths or not 2 <= n <= 8192:
            continue
        atoms = [atom for k in range(len(layout.axes)) for atom in atoms_of(layout, SCALE, k, n, inner)]
        if n < 4:  # of heads with more than one plane biases turn too
            atoms = [atom for atom in atoms if len(layout.axes[atom.axis].view) > 1]
        atoms = [atom for atom in atoms if not search.is_settled(atom)]
        for pairs in _pairs(n, layout.numbers):
            key = (*(atom.key for atom in atoms), pairs.tobytes())
            if atoms and key not in seen:
                seen.add(key)
                yield _Question(atoms, pairs)


def _pairs(n: int, numbers: tuple[int, ...]) -> Iterator[np.ndarray]:
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


class _Slices:
    """The slices of gradient and parameters as rows, made once for all questions of a draw."""

    def __init__(self, search: Search, gradient: dict[str, Tensor]):
        self.search, self.gradient = search, gradient
        self.made: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, axis: int) -> tuple[Tensor, Tensor]:
        if axis not in self.made:
            cut = self.search.layout.axes[axis]
            theta = self.search.room.parameters[cut.name].detach()
            self.made[axis] = cut.rows(self.gradient[cut.name]).contiguous(), cut.rows(theta).contiguous()
        return self.made[axis]


def _ask(slices: _Slices, question: _Question) -> None:
    """What one draw says of a question: the slope along each atom's turns, for some of the pairs."""
    missing = max(question.needed - question.asked, len(question.atoms) + 1)
    asked = len(question.slopes)
    used = question.pairs[asked % max(1, len(question.pairs) // missing) :: max(1, len(question.pairs) // missing)]
    of_axes = [
        _turns(slices.of(axis), np.stack([atom.index for atom in same], axis=1), used)
        for axis, same in itertools.groupby(question.atoms, key=lambda atom: atom.axis)  # repeats of one axis at once
    ]
    question.slopes.append(torch.cat([slope for slope, _ in of_axes], dim=-1).cpu().numpy())
    question.sizes.append(torch.cat([size for _, size in of_axes], dim=-1).cpu().numpy())


def _turns(rows: tuple[Tensor, Tensor], index: np.ndarray, pairs: np.ndarray) -> tuple[Tensor, Tensor]:
    """The slopes along turns of pairs of neurons, shape (pairs, atoms), and the sums of absolute terms.

    Args:
        rows: the slices of the gradient and of the parameters.
        index: which slices belong to which neuron and atom, shape (n, atoms, slices of one).
        pairs: of neurons, shape (pairs, 2).
    """
    first, second = (torch.as_tensor(index[pairs[:, k]], device=rows[0].device) for k in (0, 1))
    shape = (*first.shape[:2], -1)
    g, x = ([of.index_select(0, chosen.reshape(-1)).view(shape) for chosen in (first, second)] for of in rows)
    there, back = g[0] * x[1], g[1] * x[0]
    slope = (there - back).sum(-1)
    return slope, there.abs_().sum(-1) + back.abs_().sum(-1)


def _answers(question: _Question) -> list[Family]:
    matrix, size = np.concatenate(question.slopes), np.concatenate(question.sizes)
    alone = (np.abs(matrix) <= 1e-10 * size).all(0)
    atoms, pairs = question.atoms, question.pairs
    families = [
        Family(((atom, 1.0),), float("inf"), pairs=pairs)
        for atom, is_alone in zip(atoms, alone, strict=True)
        if is_alone
    ]
    left = [atom for atom, is_alone in zip(atoms, alone, strict=True) if not is_alone]
    if len(left) > 1:
        space = null_space(matrix[:, ~alone])
        if space.basis.shape[1] and space.is_clear:
            for vector in readable_basis(space.basis):
                vector = simple(vector)
                law = tuple((left[k], float(vector[k])) for k in np.flatnonzero(vector))
                families.append(Family(law, space.gap, pairs=pairs))
    return families


def _implied(search: Search, families: list[Family], new: Family) -> np.ndarray:
    """Which pairs of a rotation's neurons are mixed by a block or turned by a rotation that is known."""
    implied = np.zeros((new.n, new.n), dtype=bool)
    where = {_slices_of(search, new, i): i for i in range(new.n)}

    def places(family: Family, neurons: np.ndarray) -> np.ndarray:
        """Which neuron of ``new`` is which of a family's: the one whose slices are the same, in all tensors; or -1."""
        return np.array([where.get(_slices_of(search, family, int(i)), -1) for i in neurons])

    for family in families:
        if family.is_rotation:
            place = places(family, np.arange(family.n))
            i, j = place[family.planes].T
            both = (i >= 0) & (j >= 0)
            implied[i[both], j[both]] = implied[j[both], i[both]] = True
        for block in family.blocks:
            place = places(family, block)
            place = place[place >= 0]
            implied[np.ix_(place, place)] = True
    return implied


def _slices_of(search: Search, family: Family, neuron: int) -> frozenset:
    """The slices of one neuron, without those that nothing depends on."""
    slices = set()
    for atom, _ in family.atoms:
        index = np.sort(atom.index[neuron])
        if not search.dead[search.layout.axes[atom.axis].start + index].all():
            slices.add((atom.kind, atom.axis, *index.tolist()))
    return frozenset(slices)
