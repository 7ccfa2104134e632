"""A row for each parameter: which laws it is in, and what weight decay does to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.slices import SCALE, SHIFT, Layout


@dataclass(frozen=True)
class ParameterRow:
    """One parameter.

    Attributes:
        name, shape: of the tensor.
        laws: the kinds of symmetry that move it.
        partners: other parameters in those laws.
        decay: what weight decay does to it.
        group: ``"decay"``, ``"no decay"`` or ``"either"``.
        why: the reason for the group.
    """

    name: str
    shape: tuple[int, ...]
    laws: tuple[str, ...]
    partners: tuple[str, ...]
    decay: str
    group: str
    why: str


def rows_of(families: list[tuple[Family, str]], layout: Layout) -> tuple[ParameterRow, ...]:
    return tuple(_row(name, families, layout) for name in layout.shapes)


def _row(name: str, families: list[tuple[Family, str]], layout: Layout) -> ParameterRow:
    mine = [(family, kind) for family, kind in families if name in family.names(layout)]
    kinds = tuple(dict.fromkeys(kind for _, kind in mine))
    partners = tuple(dict.fromkeys(other for f, _ in mine for other in f.names(layout) if other != name))
    share = lambda some: max((_share(name, f, layout) for f, kind in mine if kind in some), default=0.0)  # noqa: E731
    balances = {"rescaling", "gated", "linear", "query-key", "value-output", "affine"}
    shape = layout.shapes[name]
    if share({"dead"}) == 1:
        decay, group, why = "shrinks what has no effect", "either", "the loss does not depend on it"
    elif share({"scale"}) == 1:
        decay, group = "sets the effective step size", "decay"
        why = "its length does nothing to the function, and sets how far a step turns it"
    elif share({"scale"}) > 0:
        decay, group, why = "sets the effective step size of a part, regularises the rest", "decay", "partly both"
    elif share(balances) > 0:
        decay = "moves a charge: one side of a balance"
        partners_are_larger = len(shape) == 1 and any(len(layout.shapes[other]) > 1 for other in partners)
        group = "no decay" if partners_are_larger else "decay"
        why = (
            "decay of its partners acts on the same product"
            if partners_are_larger
            else "the product with its partner is regularised, the balance between them relaxes"
        )
    elif share({"dead"}) > 0:
        decay, group, why = "shrinks dead directions, regularises the rest", "decay", "only a part is without effect"
    elif kinds:
        decay = "regularises, and fades a direction without effect" if set(kinds) & _SHIFTS else "regularises"
        group, why = _of_free(shape)
    else:
        decay = "regularises"
        group, why = _of_free(shape)
    return ParameterRow(name, shape, kinds, partners, decay, group, why)


_SHIFTS = {"shift", "logit shift", "duplicate", "shear"}


def _of_free(shape: tuple[int, ...]) -> tuple[str, str]:
    if len(shape) <= 1:
        return "no decay", "decay would pull an offset to 0, which is a prior on the function and no symmetry"
    return "decay", "no symmetry undoes it"


def _share(name: str, family: Family, layout: Layout) -> float:
    """Which part of the tensor a family moves; by scaling, or at all if it is dead."""
    most = 0.0
    for atom, _ in family.atoms:
        if atom.kind not in (SCALE, SHIFT) or layout.axes[atom.axis].name != name:
            continue
        if atom.kind == SHIFT and not family.dead and len(family.atoms) == 1:
            continue
        mine = np.concatenate(
            [a.index.reshape(-1) for a, _ in family.atoms if a.kind == atom.kind and a.axis == atom.axis]
        )
        most = max(most, len(np.unique(mine)) / len(layout.axes[atom.axis]))
    return most
