"""Laws of random weights held against the model's own: their defect, and which of them its own weights break."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.equations import Here, here
from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.identities import identity_of
from nlcompanion.laws.auditing.mixing import blocks_within, mixing_slopes
from nlcompanion.laws.auditing.slices import Layout

_HELD = 1e-9  # a slope this small against the terms that should cancel in it
_ROUNDING = 1e-13  # a slope this small against the loss is rounding, whatever the gradient's size: at a minimum


@dataclass(frozen=True)
class Broken:
    """A part of a family that the model's own weights break.

    Attributes:
        family: the neurons, slices or planes; where only their mixing is broken, all of them.
        generators: how many.
        defect: the violation there, relative to the terms that should cancel.
        mixing: whether neurons hold by themselves and mixing them does not.
    """

    family: Family
    generators: int
    defect: float
    mixing: bool = False


@dataclass(frozen=True)
class OnOwnWeights:
    """Families with their defect at the model's own parameters, what is broken there, what could not be held there."""

    families: list[Family]
    broken: list[Broken]
    unclear: list[Family]


def on_own_weights(room: DoubleCopy, layout: Layout, families: list[Family]) -> OnOwnWeights:
    """Measure each family at the model's own parameters and data, the true eps in place.

    Broken is what holds at random places and not here, even without eps: where weights open a gate that random ones
    leave closed.
    """
    room.back()
    own = here(room, layout, None, 1, exact=False)
    measured = [replace(family, defect=_defect(room, layout, family, own)) for family in families]
    if all(family.defect <= _HELD for family in measured):
        return OnOwnWeights(measured, [], [])
    without_eps = here(room, layout, None, 1)
    found = OnOwnWeights([], [], [])
    for family in measured:
        if family.defect <= _HELD:
            found.families.append(family)
        elif not math.isfinite(without_eps.loss) or not all(np.isfinite(slopes(room, layout, family, without_eps)[1])):
            found.families.append(family)
            found.unclear.append(family)
        else:
            _split(room, layout, family, own, without_eps, found)
    return found


def slopes(room: DoubleCopy, layout: Layout, family: Family, there: Here) -> tuple[np.ndarray, np.ndarray]:
    """The loss's slope along each law of a family, and the size that it is held against.

    Of a dead family the gradient's mean size on each slice, against the largest on any slice of the model; of a
    rotation one for each plane.
    """
    if family.dead:
        per_weight = there.equations.per_weight[0]
        atom, _ = family.atoms[0]
        slope = per_weight[layout.axes[atom.axis].start + atom.index].max(1)
        return slope, np.full(len(slope), per_weight.max())
    if family.is_rotation:
        values = {name: p.detach() for name, p in room.parameters.items()}
        along, bound = identity_of(family, "rotation", layout, "").slope(values, there.gradient)
        return along.abs().cpu().numpy(), bound.cpu().numpy()
    slope, size = family.slope(there.equations)
    return slope[0], size[0]


def _mixing(room: DoubleCopy, layout: Layout, family: Family, there: Here) -> tuple[np.ndarray, np.ndarray]:
    """The same for every pair of neurons, shape ``(n, n)``."""
    along, bound = mixing_slopes(room, layout, family, there.gradient)
    return along.cpu().numpy(), bound.cpu().numpy()


def _defect(room: DoubleCopy, layout: Layout, family: Family, there: Here) -> float:
    """The largest violation of a family's laws, those that mix neurons included."""
    slope, size = slopes(room, layout, family, there)
    worst = _ratio(slope, size)
    if family.blocks:
        slope, size = _mixing(room, layout, family, there)
        parts = [np.ix_(block, block) for block in family.blocks]
        worst = max(worst, *(_ratio(slope[part], size[part]) for part in parts))
    return worst


def _ratio(slope: np.ndarray, size: np.ndarray) -> float:
    return float(np.max(slope / np.where(size > 0, size, 1.0)))


def _holds(slope: np.ndarray, size: np.ndarray, loss: float) -> np.ndarray:
    return (slope <= _HELD * size) | (slope <= _ROUNDING * abs(loss))


def _split(room: DoubleCopy, layout: Layout, family: Family, own: Here, without_eps: Here, found: OnOwnWeights) -> None:
    """Put what holds of a family without eps among those found, and the rest among the broken."""
    holds = _holds(*slopes(room, layout, family, without_eps), without_eps.loss)
    if not holds.any():
        found.broken.append(Broken(family, family.generators(layout), family.defect))
        return
    kept = family if holds.all() else _part(family, holds)
    if not holds.all():
        lost = family.generators(layout) - kept.generators(layout)
        found.broken.append(Broken(_part(family, ~holds), lost, family.defect))
    if kept.blocks:
        joined = _holds(*_mixing(room, layout, kept, without_eps), without_eps.loss)
        fewer = replace(kept, blocks=blocks_within(joined, kept.blocks))
        lost = kept.generators(layout) - fewer.generators(layout)
        if lost:
            found.broken.append(Broken(kept, lost, family.defect, mixing=True))
        kept = fewer
    found.families.append(replace(kept, defect=_defect(room, layout, kept, own)))


def _part(family: Family, which: np.ndarray) -> Family:
    """Some laws of a family, or some planes of a rotation."""
    if family.is_rotation:
        return replace(family, pairs=family.planes[which])
    return family.only(np.flatnonzero(which))
