"""Confirmation: what was found must hold at places it was not found at, and at a finite distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.auditing.double_copy import DoubleCopy
from nlcompanion.laws.auditing.equations import Equations, collect
from nlcompanion.laws.auditing.families import Family, mix, move
from nlcompanion.laws.auditing.identities import identity_of
from nlcompanion.laws.auditing.slices import SHIFT, Layout

_NUMBERS = range(700_001, 700_004)
_HELD = 1e-9  # residual of a law in fresh equations
_ROUNDING = 1e-13  # a slope this small against the loss is rounding, whatever the gradient's size: at a minimum
_MOVED = 1e-10  # relative change of the loss at a finite distance; true laws leave 1e-15


def confirm(room: DoubleCopy, layout: Layout, families: list[Family]) -> tuple[list[Family], list[Family]]:
    """``(confirmed, refused)``."""
    fresh = collect(room, layout, _NUMBERS)
    kept: list[Family] = []
    refused: list[Family] = []
    held: list[Family] = []
    for family in families:
        if not family.dead and not family.is_rotation and float(family.residual(fresh).max()) > _HELD:
            refused.append(family)
        elif family.has_source:
            kept.append(family)
        else:
            held.append(family)
    for family, gone in zip(held, _distances(room, layout, held), strict=True):
        if max(one.length for one in gone) < 1e-9:  # a symmetry that moves nothing
            continue
        moved, seen = max(one.change for one in gone), gone[-1].seen
        family = replace(family, moved=moved, seen_in_outputs=seen)
        (kept if moved <= _MOVED else refused).append(family)
    return _with_blocks(room, layout, kept), refused


@dataclass(frozen=True)
class _Gone:
    """What a finite way along a symmetry did.

    Attributes:
        change: of the loss, relative to itself.
        length: of the way, the largest change of a parameter.
        seen: whether the model's outputs moved; None where they were not looked at.
    """

    change: float
    length: float
    seen: bool | None


class _Place:
    """Random parameters and data, to which the copy returns after each way."""

    def __init__(self, room: DoubleCopy, layout: Layout, number: int):
        self.room, self.layout, self.number = room, layout, number
        self.data = room.draw(number)
        self.before = room.loss(self.data, seed=number).detach()

    @cached_property
    def outputs(self) -> Tensor | None:
        return self.room.outputs(self.data, self.number)

    def go(self, family: Family, way: Callable[[], None], *, looks: bool = False) -> _Gone:
        """Go ``way``, see what it did, and return."""
        room = self.room
        outputs = self.outputs if looks else None
        at = {name: room.parameters[name].detach().clone() for name in family.names(self.layout)}
        way()
        after = room.loss(self.data, seed=self.number).detach()
        new = room.outputs(self.data, self.number) if outputs is not None else None
        length = 0.0
        for name, old in at.items():
            length = max(length, float((room.parameters[name].detach() - old).abs().max()))
            with torch.no_grad():
                room.parameters[name].copy_(old)
        change = float(abs(after - self.before) / abs(self.before).clamp_min(1e-300))
        return _Gone(change, length, _differ(outputs, new))


def _differ(outputs: Tensor | None, new: Tensor | None) -> bool | None:
    """Whether outputs moved by more than rounding; None where there are none to look at."""
    if outputs is None or new is None:
        return None
    return bool((new - outputs).abs().max() > 1e-9 * outputs.abs().max())


def _distances(room: DoubleCopy, layout: Layout, families: list[Family]) -> list[list[_Gone]]:
    """For each family what two ways did, at two places."""
    gone: list[list[_Gone]] = [[] for _ in families]
    for number in (720_001, 720_002) if families else ():
        place = _Place(room, layout, number)
        for found, family in zip(gone, families, strict=True):
            only_shifts = all(atom.kind == SHIFT for atom, _ in family.atoms) and not family.dead
            found.append(place.go(family, _way(room, layout, family, number), looks=only_shifts))
    return gone


def _way(room: DoubleCopy, layout: Layout, family: Family, number: int) -> Callable[[], None]:
    """A random finite way along all of a family's laws at once."""
    rng = np.random.default_rng(number)
    if family.is_rotation:
        return partial(mix, room, layout, family, _random_turn(family, rng), rotation=True)
    t = rng.uniform(0.3, 0.6, family.n) * rng.choice([-1.0, 1.0], family.n)
    return partial(move, room, layout, family, t, generator=torch.Generator().manual_seed(number))


def _random_turn(family: Family, rng: np.random.Generator) -> torch.Tensor:
    n = family.n
    turn = np.zeros((n, n))
    angles = rng.uniform(0.3, 0.6, len(family.planes))
    for (i, j), angle in zip(family.planes, angles, strict=True):
        turn[i, j], turn[j, i] = angle, -angle
    return torch.as_tensor(turn)


def _with_blocks(room: DoubleCopy, layout: Layout, families: list[Family]) -> list[Family]:
    """The blocks are confirmed with one random matrix in each; those that fail go, and their diagonal stays."""
    if not any(family.blocks for family in families):
        return families
    place = _Place(room, layout, 730_001)
    confirmed = []
    for family in families:
        if family.blocks:
            gone = place.go(family, partial(mix, room, layout, family, _random_blocks(family, place.number)))
            family = family if gone.change <= _MOVED else replace(family, blocks=())
        confirmed.append(family)
    return confirmed


def _random_blocks(family: Family, number: int) -> Tensor:
    rng, matrix = np.random.default_rng(number), np.zeros((family.n, family.n))
    for block in family.blocks:
        matrix[np.ix_(block, block)] = rng.normal(size=(len(block), len(block))) * 0.4 / len(block) ** 0.5
    return torch.as_tensor(matrix)


# --- at the model's own parameters ------------------------------------------------------------------------------------


class _Own:
    """The model's own parameters and data, and what the gradient there says of each family."""

    def __init__(self, room: DoubleCopy, layout: Layout, *, exact: bool):
        self.room, self.layout, self.exact = room, layout, exact
        self.equations: Equations = collect(room, layout, range(1, 2), own=True, exact=exact)
        room.back()

    @cached_property
    def _gradient(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.room.gradient(seed=1, exact=self.exact)

    def defect(self, family: Family) -> float:
        """The violation of a family, relative to the terms that should cancel."""
        if family.dead or family.is_rotation:
            slope, size = self._slope(family)
            return float((slope / np.where(size > 0, size, 1.0)).max())
        return float(family.residual(self.equations).max())

    def holds(self, family: Family) -> np.ndarray:
        """Which slices of a dead family, or planes of a rotation, leave the loss alone here, to rounding."""
        slope, size = self._slope(family)
        loss = abs(float(self._gradient[0]))
        return (slope <= _HELD * size) | (slope <= _ROUNDING * loss)

    def _slope(self, family: Family) -> tuple[np.ndarray, np.ndarray]:
        """The loss's slope along each generator, and the size it is held against."""
        return self._of_dead(family) if family.dead else self._of_rotation(family)

    def _of_dead(self, family: Family) -> tuple[np.ndarray, np.ndarray]:
        """The gradient's mean size on each slice, against the largest on any slice of the model, as the search does."""
        per_weight = self.equations.per_weight[0]
        atom, _ = family.atoms[0]
        slope = per_weight[self.layout.axes[atom.axis].start + atom.index].max(1)
        return slope, np.full(len(slope), per_weight.max())

    def _of_rotation(self, family: Family) -> tuple[np.ndarray, np.ndarray]:
        values = {name: p.detach() for name, p in self.room.parameters.items()}
        slope, size = identity_of(family, "rotation", self.layout, "").slope(values, self._gradient[1])
        return slope.abs().cpu().numpy(), size.cpu().numpy()


def defects(room: DoubleCopy, layout: Layout, families: list[Family]) -> tuple[list[Family], list[Family]]:
    """``(families, broken)``: families with their defect at the model's own parameters and data, the true eps in place.

    Broken are dead slices and planes of rotations that hold at random places and not here, even without eps: where
    weights open a gate that random ones leave closed.
    """
    own = _Own(room, layout, exact=False)
    measured = [replace(family, defect=own.defect(family)) for family in families]
    if not any(map(_is_doubtful, measured)):
        return measured, []
    without_eps = _Own(room, layout, exact=True)
    kept: list[Family] = []
    broken: list[Family] = []
    for family in measured:
        holds = without_eps.holds(family) if _is_doubtful(family) else np.array([True])
        if holds.all():
            kept.append(family)
            continue
        broken.append(replace(_part(family, ~holds), defect=family.defect))
        if holds.any():
            rest = _part(family, holds)
            kept.append(replace(rest, defect=own.defect(rest)))
    return kept, broken


def _is_doubtful(family: Family) -> bool:
    return (family.dead or family.is_rotation) and family.defect > _HELD


def _part(family: Family, which: np.ndarray) -> Family:
    """Some slices of a dead family, or some planes of a rotation."""
    if family.is_rotation:
        return replace(family, pairs=family.planes[which])
    return family.only(which)
