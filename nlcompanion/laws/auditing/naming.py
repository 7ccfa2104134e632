"""From a family to words and to :class:`Law`: which symmetry it is, and what it conserves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from nlcompanion._arguments import counted
from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.slices import SCALE, SHEAR, SHIFT, SOURCE, Atom, Layout
from nlcompanion.laws.law import Law
from nlcompanion.laws.sources import Source
from nlcompanion.laws.terms import Shift, Slices, expression

SYMMETRIES = {
    "scale": "scale invariance",
    "rescaling": "rescaling of neurons",
    "gated": "gated unit",
    "linear": "linear pair",
    "query-key": "attention, query and key",
    "value-output": "attention, value and output",
    "shift": "shift",
    "logit shift": "logit shift",
    "duplicate": "shift of two that add up",
    "affine": "rescaling of 1 + weight",
    "dead": "dead direction",
    "shear": "shear, bias into the next",
    "rotation": "rotation",
    "source": "activation, with a source",
}
WITHOUT_CHARGE = {"shear", "rotation", "source"}


def kind_of(family: Family, layout: Layout) -> str:
    """Which symmetry a family is: one of the keys of ``SYMMETRIES``."""
    if family.dead:
        return "dead"
    if family.is_rotation:
        return "rotation"
    if family.has_source:
        return "source"
    if family.is_shear:
        return "shear"
    kinds = {atom.kind for atom, _ in family.atoms}
    if kinds == {SHIFT}:
        names = set(family.names(layout))
        if len(names) > 1:
            return "duplicate"
        return "logit shift" if family.seen_in_outputs else "shift"
    if SHIFT in kinds:
        return "affine"
    if not family.balances:
        return "scale"
    return _balance(family, layout)


def _balance(family: Family, layout: Layout) -> str:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for atom, c in family.atoms:
        if len(layout.axes[atom.axis].view) > 1:
            sides[c > 0].add(atom.role)
    weights = [name for name in family.names(layout) if len(layout.shapes[name]) > 1]
    if family.n == 1:
        return "rescaling"
    if sides[True] == sides[False] == {"out"} and len(weights) <= 2:
        return "query-key"
    if family.blocks:
        one_block = len(family.blocks) == 1 and len(family.blocks[0]) == family.n
        in_attention = any("att" in name.lower() for name in weights)
        return "linear" if one_block and not in_attention else "value-output"
    if _is_gated(family, layout):
        return "gated"
    return "rescaling"


def _is_gated(family: Family, layout: Layout) -> bool:
    """A branch beside another of the same shape, with a product and not an activation between it and its reader."""
    first = [layout.axes[a.axis].name for a, c in family.atoms if c > 0 and len(layout.axes[a.axis].view) == 2]
    if len(first) != 1:
        return False
    above = _path(_path(first[0]))
    shape = layout.shapes[first[0]]
    beside = [n for n, s in layout.shapes.items() if s == shape and n != first[0] and _path(_path(n)) == above]
    gates = ("gate", "up", "w1", "w3", "fc1")
    return len(beside) == 1 and any(word in name.lower() for word in gates for name in (first[0], beside[0]))


def _path(name: str) -> str:
    return name.rpartition(".")[0]


# --- as laws ----------------------------------------------------------------------------------------------------------


def laws_of(family: Family, kind: str, layout: Layout) -> list[Law]:
    """What a family conserves: a stack over its neurons, or a matrix for each block; nothing for a rotation."""
    if kind == "source":
        return [_with_source(family, layout)]
    if kind in WITHOUT_CHARGE:
        return []
    if family.dead:
        return _of_dead(family, layout)
    if not family.blocks:
        return [_law(kind, _terms(family, layout, None), layout, family.n)]
    laws = [_law(kind, _terms(family, layout, block), layout, len(block), matrix=True) for block in family.blocks]
    single = np.setdiff1d(np.arange(family.n), np.concatenate(family.blocks))
    if len(single):
        laws.append(_law(kind, _terms(family.only(single), layout, None), layout, len(single)))
    return laws


def _with_source(family: Family, layout: Layout) -> Law:
    """A balance that moves by what its activations add."""
    balance = replace(family, atoms=tuple((a, c) for a, c in family.atoms if a.kind != SOURCE))
    sources = []
    for atom, c in family.atoms:
        if atom.kind == SOURCE:
            place = layout.sources[atom.axis]
            index = tuple(map(tuple, atom.index.tolist()))
            sources.append(Source(place.module, place.function, place.count, place.axis, index, -float(c)))
    law = _law("source", _terms(balance, layout, None), layout, family.n)
    text = ", ".join(dict.fromkeys(source.text for source in sources))
    statement = law.statement.replace("= const", f"moves by the source of {text}")
    return replace(law, statement=statement, sources=tuple(sources))


def _of_dead(family: Family, layout: Layout) -> list[Law]:
    """The squared lengths of slices that nothing moves; of single numbers the numbers themselves."""
    return [_law("dead", (term,), layout, len(term.index)) for term in _terms_of_dead(family, layout)]


def _terms_of_dead(family: Family, layout: Layout) -> tuple[Slices, ...]:
    terms = []
    for atom, _ in family.atoms:
        single = layout.axes[atom.axis].weights_per_slice == 1
        terms.append(_term(atom, 1.0, layout, shift=single, alone=len(atom.index) == 1))
    return tuple(terms)


def _terms(family: Family, layout: Layout, block: np.ndarray | None) -> tuple[Slices, ...]:
    terms = []
    for atom, c in family.atoms:
        index = atom.index if block is None else atom.index[block]
        alone = block is None and family.n == 1
        cut = Atom(atom.kind, atom.axis, index, atom.role)
        terms.append(_term(cut, c, layout, shift=atom.kind == SHIFT, alone=alone, matrix=block is not None))
    if any(atom.kind == SHIFT for atom, _ in family.atoms) and any(atom.kind == SCALE for atom, _ in family.atoms):
        # the generator's constant part c stands as 2 c in the charge c theta^2 + 2 c theta
        terms = [_doubled(term) if isinstance(term, Shift) else term for term in terms]
    return tuple(terms)


def _doubled(term: Shift) -> Shift:
    return Shift(**{**vars(term), "coefficient": 2 * term.coefficient})


def _term(atom: Atom, c: float, layout: Layout, *, shift: bool, alone: bool, matrix: bool = False) -> Slices:
    axis = layout.axes[atom.axis]
    start = 0
    for name, shape in layout.shapes.items():
        if name == axis.name:
            break
        start += math.prod(shape)
    shape = layout.shapes[axis.name]
    return (Shift if shift else Slices)(
        axis.name,
        slice(start, start + math.prod(shape)),
        shape,
        float(c),
        axis.view,
        axis.keep,
        tuple(map(tuple, atom.index.tolist())),
        matrix,
        alone,
    )


def _law(kind: str, terms: tuple[Slices, ...], layout: Layout, n: int, *, matrix: bool = False) -> Law:
    size = sum(math.prod(shape) for shape in layout.shapes.values())
    shape = (n, n) if matrix else () if terms[0].alone else (n,)
    each = f" for each of {n}" if len(shape) == 1 else ""
    names = tuple(dict.fromkeys(term.name for term in terms))
    return Law(kind, names, f"{expression(terms)} = const{each}", shape, terms, size)


def counts_of(named: list[tuple[Family, str]], layout: Layout) -> list[int]:
    """How many independent functions each family conserves, beside those that the families before it do."""
    counted = {name: np.zeros(math.prod(shape), dtype=bool) for name, shape in layout.shapes.items()}
    return [_new_dead(f, layout, counted) if kind == "dead" else _count_of(f, kind) for f, kind in named]


def _count_of(family: Family, kind: str) -> int:
    if kind in WITHOUT_CHARGE:
        return 0
    mixed = sum(len(block) * (len(block) - 1) // 2 for block in family.blocks)
    return family.n + mixed


def _new_dead(family: Family, layout: Layout, counted: dict[str, np.ndarray]) -> int:
    """The weights of dead slices, each a conserved number, that are not in ``counted``; afterwards they are."""
    new = 0
    for atom, _ in family.atoms:
        axis = layout.axes[atom.axis]
        dead, before = axis.weights_of(atom.index), counted[axis.name]
        new += int((dead & ~before).sum())
        before |= dead
    return new


def charge_text(family: Family, layout: Layout) -> str:
    """The charge in writing, or the identity of a law with a source."""
    terms, rest = _of_slices(family, layout), []
    for atom, _ in family.atoms:
        if atom.kind == SHEAR:
            shear = layout.shears[atom.axis]
            rest.append(f"{shear.bias} through {shear.weight}")
        elif atom.kind == SOURCE:
            place = layout.sources[atom.axis]
            rest.append(f"{place.module}: {place.function}" if place.module else place.function)
    text = expression(_gathered(terms))
    if family.has_source:
        return f"{text} | source: {', '.join(dict.fromkeys(rest))}"
    if family.is_shear:
        return f"{', '.join(t.slice_text for t in terms)} into {', '.join(dict.fromkeys(rest))}"
    if family.is_rotation:
        return f"{', '.join(dict.fromkeys(t.slice_text for t in terms))}, {counted(len(family.planes), 'plane')}"
    return text


def _of_slices(family: Family, layout: Layout) -> tuple[Slices, ...]:
    """The terms of the charge, those that :func:`laws_of` gives its laws."""
    if family.dead:
        return _terms_of_dead(family, layout)
    slices = tuple((atom, c) for atom, c in family.atoms if atom.kind in (SCALE, SHIFT))
    return _terms(replace(family, atoms=slices), layout, None)


def _gathered(terms: tuple[Slices, ...]) -> tuple[Slices, ...]:
    """Many slices of one tensor with one coefficient as one, for reading."""
    parts: dict[tuple, list[Slices]] = {}
    for term in terms:
        parts.setdefault((type(term), term.name, term.keep, term.coefficient), []).append(term)
    gathered = []
    for same in parts.values():
        if len(same) > 1:
            index = tuple(tuple(sorted(sum(rows, ()))) for rows in zip(*(t.index for t in same), strict=True))
            gathered.append(type(same[0])(**{**vars(same[0]), "index": index}))
        else:
            gathered.append(same[0])
    return tuple(gathered)


__all__ = ["SOURCE", "SYMMETRIES", "WITHOUT_CHARGE", "charge_text", "counts_of", "kind_of", "laws_of"]
