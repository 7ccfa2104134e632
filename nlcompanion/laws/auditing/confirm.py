"""Confirmation: what was found must hold at places it was not found at, and at a finite distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.auditing.double_copy import STRETCH, DoubleCopy
from nlcompanion.laws.auditing.equations import Here, collect, here
from nlcompanion.laws.auditing.families import Family, mix, move
from nlcompanion.laws.auditing.own_weights import slopes
from nlcompanion.laws.auditing.slices import SHIFT, Layout

_NUMBERS = range(700_001, 700_004)
_FURTHER = {740_001: STRETCH, 740_002: STRETCH, 740_003: 20.0}  # draws of larger parameters: a factor each
_HELD = 1e-9  # residual of a law in fresh equations
_BROKEN = 1e-7  # and where parameters are large, with more rounding
_SLIGHT = 1e-10  # a slope this small against the loss is what a softmax that is certain leaves of rounding
_MOVED = 1e-10  # relative change of the loss at a finite distance; true laws leave 1e-15


@dataclass(frozen=True)
class Confirmed:
    """Families that hold; those that held in the search and not here; those that larger parameters break."""

    families: list[Family]
    refused: list[Family]
    bounded: list[Family]


def confirm(room: DoubleCopy, layout: Layout, families: list[Family]) -> Confirmed:
    """Hold families against other places, larger parameters and a finite distance."""
    fresh = collect(room, layout, _NUMBERS)
    kept: list[Family] = []
    refused: list[Family] = []
    held: list[Family] = []
    bounded = _broken_further(room, layout, families)
    for k, family in enumerate(families):
        if not family.dead and not family.is_rotation and float(family.residual(fresh).max()) > _HELD:
            refused.append(family)
        elif k in bounded:
            continue
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
    beyond = [families[k] for k in sorted(bounded) if families[k] not in refused]
    return Confirmed(_with_blocks(room, layout, kept), refused, beyond)


def _broken_further(room: DoubleCopy, layout: Layout, families: list[Family]) -> set[int]:
    """Which families larger parameters break: an activation that is linear up to a threshold, a gate that opens."""
    ordinary = float(abs(room.loss(room.draw(740_000, 1.0), seed=740_000).detach()))
    broken: set[int] = set()
    for number, factor in _FURTHER.items():
        try:
            there = here(room, layout, room.draw(number, factor), number)
        except Exception:
            continue  # what fails for larger weights says nothing of laws
        tiny = abs(there.loss) < 1e-6 * ordinary  # all is fitted and the gradient is rounding
        if tiny or not math.isfinite(there.loss) or not _is_finite(there):
            continue
        for k, family in enumerate(families):
            slope, size = slopes(room, layout, family, there)
            floor = 0.0 if family.dead else _SLIGHT * abs(there.loss)
            if (slope > np.maximum(_BROKEN * size, floor)).any():
                broken.add(k)
    return broken


def _is_finite(there: Here) -> bool:
    return all(np.isfinite(sums).all() for sums in there.equations.sizes.values())


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

    def go(self, ways: Sequence[tuple[Family, Callable[[], None]]], *, looks: bool = False) -> list[_Gone]:
        """Go all ways one after the other, see what they did, and return; what did something, once more by halves.

        Symmetries one after the other leave the loss alone too. So one call of the model confirms them all, and few
        calls find those that are none.
        """
        if not ways:
            return []
        change, lengths, seen = self._together([family for family, _ in ways], [way for _, way in ways], looks)
        if len(ways) == 1 or (change <= _MOVED and not seen):
            return [_Gone(change, length, seen) for length in lengths]
        half = len(ways) // 2
        return self.go(ways[:half], looks=looks) + self.go(ways[half:], looks=looks)

    def _together(
        self, families: list[Family], ways: list[Callable[[], None]], looks: bool
    ) -> tuple[float, list[float], bool | None]:
        """The relative change of the loss, how far each way led, and whether outputs moved (None: not looked at)."""
        room = self.room
        outputs = self.outputs if looks else None
        names = dict.fromkeys(name for family in families for name in family.names(self.layout))
        at = {name: room.parameters[name].detach().clone() for name in names}
        lengths = []
        for family, way in zip(families, ways, strict=True):
            before = {name: room.parameters[name].detach().clone() for name in family.names(self.layout)}
            way()
            moved = (float((room.parameters[name].detach() - old).abs().max()) for name, old in before.items())
            lengths.append(max(moved, default=0.0))
        after = room.loss(self.data, seed=self.number).detach()
        new = room.outputs(self.data, self.number) if outputs is not None else None
        with torch.no_grad():
            for name, old in at.items():
                room.parameters[name].copy_(old)
        change = float(abs(after - self.before) / abs(self.before).clamp_min(1e-300))
        return change if math.isfinite(change) else math.inf, lengths, _differ(outputs, new)


def _differ(outputs: Tensor | None, new: Tensor | None) -> bool | None:
    """Whether outputs moved by more than rounding; None where there are none to look at."""
    if outputs is None or new is None:
        return None
    return bool((new - outputs).abs().max() > 1e-9 * outputs.abs().max())


def _distances(room: DoubleCopy, layout: Layout, families: list[Family]) -> list[list[_Gone]]:
    """For each family what two ways did, at two places."""
    gone: list[list[_Gone]] = [[] for _ in families]
    shifts = [all(atom.kind == SHIFT for atom, _ in family.atoms) and not family.dead for family in families]
    for number in (720_001, 720_002) if families else ():
        place = _Place(room, layout, number)
        for looks in (False, True):  # of shifts it is asked whether the outputs see them
            chosen = [k for k, only_shifts in enumerate(shifts) if only_shifts == looks]
            ways = [(families[k], _way(room, layout, families[k], number)) for k in chosen]
            for k, found in zip(chosen, place.go(ways, looks=looks), strict=True):
                gone[k].append(found)
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
    mixed = [family for family in families if family.blocks]
    ways = [(f, partial(mix, room, layout, f, _random_blocks(f, place.number))) for f in mixed]
    confirmed = iter(
        family if gone.change <= _MOVED else replace(family, blocks=())
        for family, gone in zip(mixed, place.go(ways), strict=True)
    )
    return [next(confirmed) if family.blocks else family for family in families]


def _random_blocks(family: Family, number: int) -> Tensor:
    rng, matrix = np.random.default_rng(number), np.zeros((family.n, family.n))
    for block in family.blocks:
        matrix[np.ix_(block, block)] = rng.normal(size=(len(block), len(block))) * 0.4 / len(block) ** 0.5
    return torch.as_tensor(matrix)
