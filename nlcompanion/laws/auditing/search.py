"""The search: slices that are symmetric by themselves, families of aligned slices, mixing blocks, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from nlcompanion.laws.auditing.basis import null_space, readable_basis, simple
from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.equations import Equations, collect, relative
from nlcompanion.laws.auditing.families import Family, Span
from nlcompanion.laws.auditing.slices import SCALE, SHEAR, SHIFT, SOURCE, Atom, Layout, atoms_of

ZERO = 1e-10  # a sum this small against its absolute terms is rounding
CLEARLY_NOT = 1e-7  # and this large it is not
_DENSE = 700  # unknowns up to which every slice is an unknown of its own
_WHOLE = 5e9  # gradients of whole tensors times parameters, for which there is time
_MIXING = 2048  # neurons up to which pairs are looked at


class Search:
    """One audit's search; ``run`` leaves what it found in ``families`` and what it could not tell in ``limits``."""

    def __init__(self, room: DoubleCopy, layout: Layout, equations: Equations):
        self.room, self.layout, self.equations = room, layout, equations
        self.span = Span(layout)
        self.families: list[Family] = []
        self.limits: list[str] = []
        self.settled: dict[str, list[np.ndarray]] = {}
        self.smallest_gap = float("inf")
        self.is_complete = False
        self.unseen: dict[str, int] = {}

    def run(self) -> None:
        self._single()
        for n, inner in self._sizes():
            self._family(n, inner, self._scaling_atoms(n, inner), mixing=True)
        for n, inner in self._sizes():
            self._family(n, inner, self._shifting_atoms(n, inner), mixing=False)
        self._rotations()
        self._leftover()

    # --- slices by themselves -------------------------------------------------------------------------------------

    def _single(self) -> None:
        layout, values, sizes = self.layout, self.equations.values, self.equations.sizes
        level = self.equations.levels.max(0)
        self.dead = level < 1e-12
        if ((level >= 1e-12) & (level < 1e-10)).any():
            self.limits.append("some gradients are so small that they may be rounding: their slices may be dead")
        self.alone = {kind: np.zeros(layout.count, dtype=bool) for kind in (SCALE, SHIFT)}
        self.told: dict[str, np.ndarray] = {}  # slices of which nothing more is to be said
        for kind in (SCALE, SHIFT):
            live = sizes[kind] > 1e-11 * np.median(sizes[kind][sizes[kind] > 0])
            ratio = np.where(live, relative(values[kind], sizes[kind]), 0.0)
            seen = live.sum(0) >= min(3, self.equations.draws)
            worst = ratio.max(0)
            self.alone[kind] = (worst < ZERO) & seen & ~self.dead
            self.told[kind] = self.dead | self.alone[kind]
            unclear = (worst >= ZERO) & (worst < CLEARLY_NOT) & ~self.dead & seen
            if unclear.any():
                self.limits.append(
                    f"{int(unclear.sum())} slices nearly have a {kind} symmetry (up to {worst[unclear].max():.0e}): "
                    "neither called a law nor excluded; a constant besides eps may break it"
                )
        for name in layout.shapes:
            self._settle(name)

    def _settle(self, name: str) -> None:
        """The laws of single slices of one tensor."""
        layout, axes = self.layout, self.layout.axes_of(name)
        for k in axes:
            axis = layout.axes[k]
            dead = self.dead[axis.start : axis.start + len(axis)]
            if dead.any():
                if self.is_lookup(k):
                    self.unseen[name] = int(dead.sum())
                    rows = Atom(SHIFT, k, np.flatnonzero(dead)[:, None], layout.roles[name, k])
                    self.span.add([(rows, 1.0)])
                    self.span.add([(replace(rows, kind=SCALE), 1.0)])
                else:
                    self._accept(
                        [(Atom(SHIFT, k, np.flatnonzero(dead)[:, None], layout.roles[name, k]), 1.0)], dead=True
                    )
            if dead.all():
                return
        for kind in (SCALE, SHIFT):
            for k in sorted(axes, key=lambda k: -len(layout.axes[k])):  # all rows say what the whole tensor says
                axis = layout.axes[k]
                which = np.flatnonzero(self.alone[kind][axis.start : axis.start + len(axis)])
                if len(which) and len(axis) * axis.weights_per_slice > 0:
                    self._accept([(Atom(kind, k, which[:, None], layout.roles[name, k]), 1.0)])

    def is_lookup(self, k: int) -> bool:
        axis = self.layout.axes[k]
        return len(axis.view) == 2 and axis.keep == (0,) and self.layout.roles[axis.name, k] == "in"

    def _accept(self, atoms, gap: float = float("inf"), *, dead: bool = False) -> None:
        """Note a family, unless it follows from what is known; neurons that have the same law already are left out."""
        atoms = self._without_holes(_merged(atoms))
        new = self.span.new_rows(atoms)
        if not len(new):
            return
        if len(new) < len(atoms[0][0].index):
            atoms = [(replace(atom, index=atom.index[new]), c) for atom, c in atoms]
        if self.span.contains(atoms):
            return
        self.families.append(Family(tuple(atoms), gap, dead=dead))
        self.span.add(atoms)
        if dead:
            self.span.add([(replace(atom, kind=SCALE), c) for atom, c in atoms])

    def _without_holes(self, atoms) -> list[tuple[Atom, float]]:
        """Of one law alone: a whole tensor less some of its slices is told as the other slices."""
        if len(atoms[0][0].index) > 1:
            return atoms
        atoms = list(atoms)
        for whole, c in list(atoms):
            axis = self.layout.axes[whole.axis] if whole.kind in (SCALE, SHIFT) else None
            if axis is None or len(np.unique(whole.index)) < len(axis):
                continue
            for part, minus in list(atoms):
                of_tensor = part.kind == whole.kind and self.layout.axes[part.axis].name == axis.name
                if of_tensor and part is not whole and minus == -c and any(a is whole for a, _ in atoms):
                    others = np.setdiff1d(np.arange(len(self.layout.axes[part.axis])), part.index)[None]
                    if others.size:
                        atoms = [pair for pair in atoms if pair[0] is not whole and pair[0] is not part]
                        atoms.append((replace(part, index=others), c))
        return atoms

    # --- families -------------------------------------------------------------------------------------------------

    def _sizes(self) -> Iterator[tuple[int, int]]:
        """``(n, inner)``: how many aligned neurons, and how their slices may be interleaved; those of the axes first,
        then parts of axes, whole tensors last."""
        lengths = {len(axis) for axis in self.layout.axes}
        numbers = set(self.layout.numbers)
        chunks = {n // k for n in lengths for k in (2, 3, 4) if n % k == 0} - lengths
        groups = {k for k in numbers if k <= 512 and any(n % k == 0 and n > k for n in lengths)} - lengths - chunks
        for n in [n for part in (lengths, chunks, groups) for n in sorted(part, reverse=True)]:
            if n < 2:
                continue
            inners = {n}
            if any(len(axis) % n == 0 and len(axis) > n for axis in self.layout.axes):
                inners |= {1} | {k for k in numbers if n % k == 0} | {n // k for k in numbers if n % k == 0}
                inners |= {k // 2 for k in numbers if k % 2 == 0 and n % (k // 2) == 0}
            for inner in sorted(inners, key=lambda c: (c != n, c)):
                yield n, inner
        yield 1, 1

    def _pieces(self, k: int) -> list[Atom]:
        """For whole tensors: the tensor, cut in chunks where a law is known of one of them."""
        axis = self.layout.axes[k]
        if axis.keep[0] != 0 or k != self.layout.axes_of(axis.name)[0]:
            return []
        cut = {parts for parts in self._chunkings(k) if self._is_cut(k, len(axis) // parts)}
        return self._chunks(k, max(cut, default=1))

    def _chunkings(self, k: int) -> list[int]:
        """In how many chunks, as long as another tensor, an axis may be cut."""
        length, lengths = len(self.layout.axes[k]), {len(axis) for axis in self.layout.axes}
        return [parts for parts in (2, 3, 4) if length % parts == 0 and length // parts in lengths - {1}]

    def _chunks(self, k: int, parts: int) -> list[Atom]:
        axis = self.layout.axes[k]
        role = self.layout.roles[axis.name, k]
        return [Atom(SCALE, k, piece[None], role) for piece in np.arange(len(axis)).reshape(parts, -1)]

    def _is_cut(self, k: int, size: int) -> bool:
        """Whether a law is known of some chunks of this size and not of all."""
        for family in self.families:
            mine = [atom.index for atom, _ in family.atoms if atom.kind in (SCALE, SHIFT) and atom.axis == k]
            if mine:
                touched = np.unique(np.concatenate([index.reshape(-1) for index in mine]) // size)
                if len(touched) * size < len(self.layout.axes[k]) or len(mine) > 1:
                    return True
        return False

    def _wholes(self) -> list[Atom]:
        """Whole tensors and chunks of them, that may be symmetric by themselves."""
        first = [k for k in range(len(self.layout.axes)) if k == self.layout.axes_of(self.layout.axes[k].name)[0]]
        scaled = [atom for k in first for parts in (1, *self._chunkings(k)) for atom in self._chunks(k, parts)]
        return scaled + [replace(atom, kind=SHIFT) for atom in scaled]

    def _scaling_atoms(self, n: int, inner: int) -> list[Atom]:
        atoms, layout = [], self.layout
        for k, axis in enumerate(layout.axes):
            mine = self._pieces(k) if n == 1 else atoms_of(layout, SCALE, k, n, inner)
            atoms += mine
            if len(axis.view) == 1 and len(axis) == n and inner == n:
                atoms += atoms_of(layout, SHIFT, k, n, n)
        if n > 1:
            for k, place in enumerate(layout.sources):
                if place.length == n and inner == n:
                    atoms += atoms_of(layout, SOURCE, k, n, n)
        return atoms if n == 1 else [atom for atom in atoms if not self.is_settled(atom)]

    def _shifting_atoms(self, n: int, inner: int) -> list[Atom]:
        if n == 1:
            return []
        atoms, layout = [], self.layout
        for k, axis in enumerate(layout.axes):
            if inner == n or (len(axis.view) == 1 and len(axis) > n):  # a packed bias: heads of queries, keys, values
                atoms += atoms_of(layout, SHIFT, k, n, inner)
        for k, shear in enumerate(layout.shears):
            if shear.length == n:
                atoms += atoms_of(layout, SHEAR, k, n, n)
        return [atom for atom in atoms if not self.is_settled(atom)]

    def is_settled(self, atom: Atom) -> bool:
        """Slices that are symmetric by themselves say nothing about others."""
        few = replace(atom, index=atom.index[:3])  # most are told by these
        return self._are_settled(few) and (len(atom.index) <= 3 or self._are_settled(atom))

    def _are_settled(self, atom: Atom) -> bool:
        if atom.kind in (SCALE, SHIFT):
            places = self.layout.axes[atom.axis].start + atom.index
            if self.told[atom.kind][places].all():
                return True
        if atom.kind == SHEAR and self._is_dead(self.layout.shears[atom.axis].bias):
            return True
        return bool((self.equations.ratio(atom) < ZERO).all())

    def _is_dead(self, name: str) -> bool:
        axis = self.layout.axes[self.layout.axes_of(name)[0]]
        return bool(self.dead[axis.start : axis.start + len(axis)].all())

    def _family(self, n: int, inner: int, atoms: list[Atom], *, mixing: bool) -> None:
        if n == 1:
            for atom in [atom for atom in self._wholes() if self._alone_as_a_whole(atom)]:
                self._accept([(atom, 1.0)])
            atoms = [atom for atom in atoms if not self.is_settled(atom)]
            if not self._can_draw(len(atoms) + 12):
                return
            self._draw_more(len(atoms) + 12)
        elif mixing:
            for atom in self._groups(n, inner):
                self._accept([(atom, 1.0)])
        without = [atom for atom in atoms if atom.kind != SOURCE]
        plain = self._aligned(n, inner, without)
        sources = len(atoms) - len(without)  # the last of them
        if sources:
            self._aligned(n, inner, atoms, [np.append(vector, np.zeros(sources)) for vector in plain])

    def _aligned(self, n: int, inner: int, atoms: list[Atom], known: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """Note the laws of ``n`` aligned neurons made of these atoms, beside those known; all as vectors."""
        if len(atoms) + 8 > n * self.equations.draws:
            atoms = self._coarse(n, atoms)
        if len(atoms) < 2:
            return []
        matrix = np.stack([self.equations.column(atom) for atom in atoms], axis=-1).reshape(-1, len(atoms))
        rows = 6 * len(atoms) + 200
        if len(matrix) > rows:
            matrix = matrix[np.random.default_rng(n * 4099 + inner).permutation(len(matrix))[:rows]]
        if len(matrix) < len(atoms) + 8:
            self.limits.append(f"families of {n} slices: more unknowns than equations, not examined")
            return []
        found = null_space(matrix)
        if not found.basis.shape[1]:
            if found.above < 1e-6:
                self._unclear(n, found)
            return []
        if not found.is_clear:
            self._unclear(n, found)
            return []
        self.smallest_gap = min(self.smallest_gap, found.gap)
        vectors = readable_basis(found.basis, np.stack(known, axis=1) if len(known) else None)
        for law in self._laws_of(vectors, atoms, known):
            family = Family(tuple(law), found.gap)
            holds = (family.residual(self.equations) < ZERO).all(0)
            if not holds.any():
                continue
            if not holds.all():
                law = list(family.only(np.flatnonzero(holds)).atoms)
            self._accept(law, found.gap)
        return vectors

    def _coarse(self, n: int, atoms: list[Atom]) -> list[Atom]:
        """All slices of one axis that belong to a neuron taken together: where there are too many unknowns."""
        parts: dict[tuple, list[Atom]] = {}
        for atom in atoms:
            parts.setdefault((atom.kind, atom.axis), []).append(atom)
        joined = [np.sort(np.concatenate([atom.index for atom in same], axis=1), axis=1) for same in parts.values()]
        coarse = [replace(same[0], index=index) for same, index in zip(parts.values(), joined, strict=True)]
        return [atom for atom in coarse if n > 1 and not self.is_settled(atom)]

    def _can_draw(self, wanted: int) -> bool:
        """Whether so many gradients are to be had in minutes; if not, a limit says so."""
        more = wanted - self.equations.draws
        size = sum(p.numel() for p in self.room.parameters.values())
        if more * size <= _WHOLE:
            return True
        self.limits.append(
            f"laws that join whole tensors (lengths of a residual stream) were not sought: {wanted - 12} tensors need "
            f"{more} more gradients of {size:,} parameters; audit a model with fewer layers for those"
        )
        return False

    def _draw_more(self, wanted: int) -> None:
        """More equations of whole tensors, of which one draw gives one."""
        have = self.equations.draws
        if wanted > have:
            more = collect(self.room, self.layout, range(have + 1, wanted + 1))
            self.equations = self.equations.extended(more)

    def _laws_of(
        self, vectors: list[np.ndarray], atoms: list[Atom], known: Sequence[np.ndarray] = ()
    ) -> Iterator[list[tuple[Atom, float]]]:
        """The vectors as laws; a source that lacks a reader or a writer borrows one of a known law."""
        is_source = np.array([atom.kind == SOURCE for atom in atoms])
        plain = [vector for vector in known if not vector[is_source].any()]
        for vector in vectors:
            candidates = [vector]
            if vector[is_source].any() and any(self._is_weight(atoms[k]) for k in np.flatnonzero(vector)):
                candidates += _combinations(vector, plain)
            for candidate in candidates:
                candidate = simple(candidate)
                law = [(atoms[k], float(candidate[k])) for k in np.flatnonzero(candidate)]
                if self._says_something(law):
                    yield law
                    break

    def _says_something(self, law: list[tuple[Atom, float]]) -> bool:
        """A source belongs to a neuron with what writes to it, a weight or a gain, and a weight that reads from it."""
        if any(atom.kind == SOURCE for atom, _ in law):
            scaled = [atom for atom, _ in law if atom.kind == SCALE]
            movers = [atom for atom in scaled if self._is_weight(atom)]
            if not any(atom.role == "out" for atom in movers):  # a gain alone writes to the neuron, not a bias
                modules = {self.layout.axes[atom.axis].name.rpartition(".")[0] for atom in movers}
                movers += [a for a in scaled if self.layout.axes[a.axis].name.rpartition(".")[0] not in modules]
            slices = {(atom.axis, int(i)) for atom in movers for i in atom.index[0]}
            has_a_law = any(slices <= set(_slices(f, i)) for f in self.families if not f.has_source for i in range(f.n))
            name_of = lambda atom: self.layout.axes[atom.axis].name  # noqa: E731
            writers = {name_of(atom) for atom in movers if atom.role == "out"}
            readers = {name_of(atom) for atom in movers if atom.role == "in"}
            return bool(writers - readers and readers - writers) and not has_a_law
        return any(atom.kind in (SCALE, SHIFT) for atom, _ in law)

    def _is_weight(self, atom: Atom) -> bool:
        return atom.kind in (SCALE, SHIFT) and len(self.layout.axes[atom.axis].view) > 1

    def _unclear(self, n: int, found) -> None:
        self.limits.append(
            f"families of {n} slices: singular values {found.above:.0e} and {found.below:.0e} are too close to tell a "
            "law from its near miss, so none is concluded"
        )

    def _alone_as_a_whole(self, atom: Atom) -> bool:
        places = self.layout.axes[atom.axis].start + atom.index
        if (self.dead | self.alone[atom.kind])[places].all():
            return False
        return bool((self.equations.ratio(atom) <= ZERO).all())

    def _groups(self, n: int, inner: int) -> list[Atom]:
        """Groups of slices that are symmetric together (GroupNorm)."""
        found = []
        for kind in (SCALE, SHIFT):
            for k, axis in enumerate(self.layout.axes):
                if len(axis) <= n or len(axis) % n or n not in self.layout.numbers or inner != n:
                    continue
                index = np.arange(len(axis)).reshape(n, -1)
                atom = Atom(kind, k, index, self.layout.roles[axis.name, k])
                places = axis.start + index
                if (self.dead | self.alone[kind])[places].all():
                    continue
                if (self.equations.ratio(atom) < ZERO).all():
                    found.append(atom)
        return found

    # --- rotations ------------------------------------------------------------------------------------------------

    def _rotations(self) -> None:
        """Pairs of slices turned into each other, the same way in all the tensors that a law joins."""
        from nlcompanion.laws.auditing.mixing import find_blocks, find_rotations

        may_mix = [k for k, family in enumerate(self.families) if self._may_mix(family)]
        mixed = find_blocks(self.room, self.layout, [self.families[k] for k in may_mix])
        for k, family in zip(may_mix, mixed, strict=True):
            self.families[k] = family
        self.families += find_rotations(self)

    def _may_mix(self, family: Family) -> bool:
        same = {abs(c) for _, c in family.atoms}
        return family.only_scales and family.balances and len(same) == 1 and 1 < family.n <= _MIXING

    # --- what is left ---------------------------------------------------------------------------------------------

    def _leftover(self) -> None:
        """With every slice an unknown of its own: is there anything that no family says?"""
        layout = self.layout
        thin = [k for k, axis in enumerate(layout.axes) if len(axis.view) == 1]
        scaling = self._unknowns(SCALE, range(len(layout.axes))) + self._unknowns(SHIFT, thin)
        sources = [Atom(SOURCE, k, np.array([[i]])) for k, s in enumerate(layout.sources) for i in range(s.length)]
        shifting = self._unknowns(SHIFT, range(len(layout.axes)))
        shifting += [Atom(SHEAR, k, np.array([[i]])) for k, s in enumerate(layout.shears) for i in range(s.length)]
        complete = True
        for unknowns in (scaling, shifting):
            if len(unknowns) + 8 > self.equations.draws:
                complete = False
                continue
            complete &= self._every_slice(unknowns)
        if sources and len(scaling) + len(sources) + 8 <= self.equations.draws:
            self._every_slice(scaling + sources)
        self.is_complete = complete

    def _unknowns(self, kind: str, axes) -> list[Atom]:
        return [
            Atom(kind, k, np.array([[i]]), self.layout.roles[self.layout.axes[k].name, k])
            for k in axes
            for i in range(len(self.layout.axes[k]))
        ]

    def _every_slice(self, unknowns: list[Atom]) -> bool:
        columns = np.concatenate([self.span.columns(atom)[0] for atom in unknowns])
        matrix = np.concatenate([self.equations.column(atom) for atom in unknowns], axis=1)
        size = np.concatenate([self.equations.column(atom, "sizes") for atom in unknowns], axis=1)
        zero = np.asarray((relative(matrix, size) <= ZERO).all(0))
        for k, atom in enumerate(unknowns):
            if atom.kind == SHEAR:
                zero[k] |= self._is_dead(self.layout.shears[atom.axis].bias)
            elif atom.kind in (SCALE, SHIFT):
                place = self.layout.axes[atom.axis].start + atom.index[0, 0]
                zero[k] |= self.dead[place] | self.alone[atom.kind][place]
        free = matrix[:, ~zero]
        found = null_space(free) if free.shape[1] else None
        if found is None:
            return True
        if not found.is_clear:
            self._unclear(1, found)
            return False
        self.smallest_gap = min(self.smallest_gap, found.gap)
        known = self.span.matrix.tocsc()
        inside = np.asarray(known[:, columns[~zero]].todense())
        outside = np.ones(known.shape[1], dtype=bool)
        outside[columns] = False
        whole = np.asarray(abs(known[:, np.flatnonzero(outside)]).sum(1)).ravel() == 0
        inside = inside[whole & (np.abs(inside).sum(1) > 0)]
        rank = np.linalg.matrix_rank(inside, tol=1e-7) if len(inside) else 0
        extra = found.basis.shape[1] - rank
        if extra == 0:
            return True
        if extra < 0:
            self.limits.append("the laws found outnumber the null space of single slices: numerically unclear")
            return False
        free_unknowns = [atom for atom, is_zero in zip(unknowns, zero, strict=True) if not is_zero]
        vectors = readable_basis(found.basis, inside.T)
        for law in self._laws_of(vectors, free_unknowns, list(inside)):
            if len(law) <= 400 and (Family(tuple(law), found.gap).residual(self.equations) < 1e-9).all():
                self._accept(law, found.gap)
                extra -= 1
        if extra > 0 and not any(atom.kind == SOURCE for atom in unknowns):
            self.limits.append(
                f"{extra} more directions of single slices leave the loss alone than the laws named here: no readable "
                "law was made of them"
            )
        return extra <= 0


def _combinations(vector: np.ndarray, others: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The vector with one entry cancelled by another vector."""
    for other in others:
        for k in np.flatnonzero((vector != 0) & (other != 0)):
            combined = vector - vector[k] / other[k] * other
            combined[np.abs(combined) < 1e-9 * np.abs(combined).max()] = 0.0
            yield combined


def _slices(family: Family, neuron: int) -> list[tuple[int, int]]:
    """The slices that a family scales or shifts for one of its neurons: (axis, number)."""
    scaled = [atom for atom, _ in family.atoms if atom.kind in (SCALE, SHIFT)]
    return [(atom.axis, int(i)) for atom in scaled for i in atom.index[neuron]]


def _merged(atoms) -> list[tuple[Atom, float]]:
    """Of one law alone: slices of one tensor with the same coefficient as one atom."""
    if len(atoms[0][0].index) > 1:
        return list(atoms)
    parts: dict[tuple, list[Atom]] = {}
    for atom, c in atoms:
        key = (atom.kind, atom.axis, c) if atom.kind in (SCALE, SHIFT) else (atom.kind, atom.axis, c, atom.index.item())
        parts.setdefault(key, []).append(atom)
    merged = []
    for (*_, c), same in ((key[:3], group) for key, group in parts.items()):
        index = np.sort(np.concatenate([atom.index for atom in same], axis=1), axis=1)
        merged.append((replace(same[0], index=index), c))
    return merged


def draws_needed(layout: Layout) -> int:
    """Draws so that every slice can be an unknown of its own; if these are too many, a few for aligned families."""
    thin = sum(len(axis) for axis in layout.axes if len(axis.view) == 1)
    sources = sum(place.length for place in layout.sources)
    single = layout.count + max(thin + sources, sum(s.length for s in layout.shears))
    if single <= _DENSE:
        return single + 20
    return 32
