"""Confirmation: what was found must hold at places it was not found at, and at a finite distance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nlcompanion.laws.audit.double_copy import DoubleCopy
from nlcompanion.laws.audit.equations import Equations, collect
from nlcompanion.laws.audit.families import Family, mix, move
from nlcompanion.laws.audit.slices import SHIFT, Layout

_NUMBERS = range(700_001, 700_004)
_HELD = 1e-9  # residual of a law in fresh equations
_MOVED = 1e-10  # relative change of the loss at a finite distance; true laws leave 1e-15


def confirm(room: DoubleCopy, layout: Layout, families: list[Family]) -> tuple[list[Family], list[Family]]:
    """``(confirmed, refused)``."""
    fresh = collect(room, layout, _NUMBERS)
    kept, refused = [], []
    for family in families:
        if not family.dead and not family.is_rotation and float(family.residual(fresh).max()) > _HELD:
            refused.append(family)
            continue
        if family.has_source:
            kept.append(family)
            continue
        moved, is_trivial, seen = _distance(room, layout, family)
        if is_trivial:
            continue
        family = replace(family, moved=moved, seen_in_outputs=seen)
        if not moved <= _MOVED:
            refused.append(family)
            continue
        kept.append(_with_blocks(room, layout, family))
    return kept, refused


def _distance(room: DoubleCopy, layout: Layout, family: Family) -> tuple[float, bool, bool | None]:
    """How far the loss moves, relative to itself, as the parameters go a finite way along the symmetry; whether they
    do not go anywhere; and whether the model's outputs move."""
    worst, is_trivial, seen = 0.0, True, None
    only_shifts = all(atom.kind == SHIFT for atom, _ in family.atoms) and not family.dead
    for number in (720_001, 720_002):
        generator = torch.Generator().manual_seed(number)
        rng = np.random.default_rng(number)
        data = room.draw(number)
        names = family.names(layout)
        at = [room.parameters[name].detach().clone() for name in names]
        before = room.loss(data, seed=number).detach()
        outputs = room.outputs(data, number) if only_shifts else None
        if family.is_rotation:
            mix(room, layout, family, _random_turn(family, rng), rotation=True)
        else:
            t = rng.uniform(0.3, 0.6, family.n) * rng.choice([-1.0, 1.0], family.n)
            move(room, layout, family, t, generator=generator)
        after = room.loss(data, seed=number).detach()
        worst = max(worst, float(abs(after - before) / abs(before).clamp_min(1e-300)))
        gone = max(
            float((room.parameters[name].detach() - old).abs().max()) for name, old in zip(names, at, strict=True)
        )
        is_trivial &= gone < 1e-9
        if outputs is not None:
            new = room.outputs(data, number)
            seen = bool((new - outputs).abs().max() > 1e-9 * outputs.abs().max())
    return worst, is_trivial, seen


def _random_turn(family: Family, rng: np.random.Generator) -> torch.Tensor:
    n = family.n
    turn = np.zeros((n, n))
    angles = rng.uniform(0.3, 0.6, len(family.pairs))
    for (i, j), angle in zip(family.pairs, angles, strict=True):
        turn[i, j], turn[j, i] = angle, -angle
    return torch.as_tensor(turn)


def _with_blocks(room: DoubleCopy, layout: Layout, family: Family) -> Family:
    """The blocks are confirmed with one random matrix in each; those that fail go, and their diagonal stays."""
    if not family.blocks:
        return family
    number = 730_001
    rng = np.random.default_rng(number)
    data = room.draw(number)
    before = room.loss(data, seed=number).detach()
    matrix = np.zeros((family.n, family.n))
    for block in family.blocks:
        matrix[np.ix_(block, block)] = rng.normal(size=(len(block), len(block))) * 0.4 / len(block) ** 0.5
    mix(room, layout, family, torch.as_tensor(matrix))
    after = room.loss(data, seed=number).detach()
    if float(abs(after - before) / abs(before).clamp_min(1e-300)) <= _MOVED:
        return family
    return replace(family, blocks=())


def defects(room: DoubleCopy, layout: Layout, families: list[Family]) -> list[Family]:
    """Each family with its defect at the model's own parameters and data, the true eps in place."""
    own: Equations = collect(room, layout, range(1, 2), own=True, exact=False)
    room.back()
    return [
        family if family.dead or family.is_rotation else replace(family, defect=float(family.residual(own).max()))
        for family in families
    ]
