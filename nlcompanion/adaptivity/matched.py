"""What a transfer of settings has found: rows, what is missed, and where it means nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from nlcompanion._arguments import positive_number
from nlcompanion.laws.auditing import Audit

__all__ = ["Match", "MatchedGroup", "Motion"]


@dataclass(frozen=True)
class Motion:
    r"""How a weight moves under white gradients.

    Attributes:
        early_step: root mean square of an entry's change in a step, in units of a parameter.
        time_constant: steps in which the squared norm comes nearer to equilibrium by e; infinite without decay.
        angle: turn per step at equilibrium, in radians; 0 without decay.
        rms: root mean square of an entry at equilibrium; infinite without decay.
    """

    early_step: float
    time_constant: float
    angle: float
    rms: float

    def in_steps_of(self, samples: float) -> Motion:
        """The same motion in the samples seen, in steps of ``samples`` times as many of them."""
        samples = positive_number("samples", samples)
        root = math.sqrt(samples)
        return Motion(self.early_step * root, self.time_constant / samples, self.angle * root, self.rms)


@dataclass(frozen=True)
class MatchedGroup:
    """Settings for some parameters of one group and shape.

    Attributes:
        group: number of the source's group.
        names: of the parameters.
        parameters: themselves.
        lr, weight_decay: of the target, in its own convention.
        wanted: the source's motion, in steps of the target's batch.
        found: the target's motion at these settings.
    """

    group: int
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    lr: float
    weight_decay: float
    wanted: Motion
    found: Motion

    @property
    def missed(self) -> dict[str, float]:
        """By how much each is missed, relative: 0.5 is half as much again; below 1e-9 counts as met."""
        missed = {}
        for name in ("early_step", "time_constant", "angle", "rms"):
            wanted, found = getattr(self.wanted, name), getattr(self.found, name)
            off = 0.0 if wanted == found or math.isnan(wanted) else found / wanted - 1
            missed[name] = off if abs(off) > 1e-9 else 0.0
        return missed


@dataclass(frozen=True)
class Match:
    """Settings of another optimiser; made by :func:`match`. ``str()`` of it is a table.

    Attributes:
        rows: one for each group and shape.
        left: names of parameters that the target does not take, and why; they need another optimiser.
        meaningless: names of parameters whose length is part of the function, and what the audit says of them: the
            angle is no effective rate there.
        keep: what the decay keeps.
        samples: how many times as many samples a step of the target has.
    """

    rows: tuple[MatchedGroup, ...]
    left: tuple[tuple[tuple[str, ...], str], ...]
    meaningless: tuple[tuple[str, str], ...]
    keep: str
    samples: float

    @property
    def groups(self) -> list[dict]:
        """Parameter groups for the target: ``torch.optim.Muon(found.groups)``."""
        return [{"params": list(r.parameters), "lr": r.lr, "weight_decay": r.weight_decay} for r in self.rows]

    def __str__(self) -> str:
        headers = ["parameters", "lr", "weight_decay", "early step", "time constant", "angle", "missed"]
        rows = [
            [
                _few(row.names),
                f"{row.lr:.3g}",
                f"{row.weight_decay:.3g}",
                f"{row.found.early_step:.3g}",
                f"{row.found.time_constant:.3g} steps",
                f"{row.found.angle:.3g} rad",
                ", ".join(f"{name} {100 * off:+.0f}%" for name, off in row.missed.items() if abs(off) > 5e-3) or "-",
            ]
            for row in self.rows
        ]
        parts = [tabulate(rows, headers, tablefmt="simple", disable_numparse=True)]
        parts += [f"not taken: {_few(names)}: {why}" for names, why in self.left]
        parts += [f"no effective rate: {name}: {why}" for name, why in self.meaningless]
        parts.append("norms and angles under white gradients; nothing is said of losses")
        return "\n".join(parts)


def _few(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def names_of(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> dict[int, str]:
    """A name for every parameter of an optimiser, by identity."""
    known = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    names = {}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            names[id(parameter)] = known.get(id(parameter), f"group {number}, parameter {place}")
    return names


def meaningless_rows(
    audit: Audit | None, names: Mapping[int, str], optimizer: torch.optim.Optimizer
) -> tuple[tuple[str, str], ...]:
    """The parameters that the audit found to have no scale law, with what decay does to them instead."""
    if audit is None:
        return ()
    rows = {row.name: row for row in audit.parameters}
    unknown = [name for name in names.values() if name not in rows]
    if unknown:
        raise ValueError(
            f"the audit has no row for {unknown[0]}; give the model that was audited as model=, whose names "
            "the parameters then have"
        )
    moved = [rows[name] for name in names.values()]
    return tuple((row.name, f"decay {row.decay}") for row in moved if "scale" not in row.laws)
