"""When the future of a norm cannot be told, and why."""

from __future__ import annotations

import torch
from torch import Tensor

from nlcompanion.adaptivity.norm_law import Drive, NormLaw
from nlcompanion.adaptivity.norm_record import NormRecord

LEAST_RECORDS = 12
LEAST_STEPS = 50
BURST = 0.05  # radians: beyond it the law of the norm is unreliable while the turn per step rises
NO_LAW = {4: 0.2, 2: 0.5}  # radians, for the law of each power: see RadiusTracker.worst_reach for SGD's
RISING = 1.2


def refusals(law: NormLaw, record: NormRecord, drive: Drive, ahead: Tensor, rates: Tensor) -> list[str]:
    """One reason for each weight, empty where there is a forecast; ``ahead`` is ``y`` at the horizons, ``(H, N)``."""
    if len(record.steps) < LEAST_RECORDS or record.span < LEAST_STEPS:
        reason = (
            f"{len(record.steps)} records over {record.span} steps are too few to tell the drive and its scatter; "
            f"record at least {LEAST_RECORDS} over {LEAST_STEPS} steps"
        )
        return [reason] * len(drive.noise)
    return [_reason(law, record, drive, ahead, rates, k) for k in range(len(drive.noise))]


def _reason(law: NormLaw, record: NormRecord, drive: Drive, ahead: Tensor, rates: Tensor, k: int) -> str:
    norms = record.norms[:, k]
    if not torch.isfinite(norms).all():
        first = int(record.steps[(~torch.isfinite(norms)).nonzero()[0, 0]])
        return f"the norm is not finite from step {first} on: the run diverged there"
    if not norms[-1] > 0 or (law.power == 4 and not (norms > 0).all()):
        return "the norm vanishes, and a weight of length 0 has no direction and no effective rate"
    if not torch.isfinite(drive.noise[k] + drive.force[k]):
        return "the drive was not finite where it was measured; leave such steps out of the record"
    burst = _burst(law, record, ahead, rates, k)
    if burst:
        return burst
    if law.power == 4 and drive.noise[k] < 0:
        return (
            "the norm shrinks faster than its decay explains, which no scale-invariant weight does; this weight "
            "follows another law, or its decay is not the one that was given"
        )
    return ""


def _burst(law: NormLaw, record: NormRecord, ahead: Tensor, rates: Tensor, k: int) -> str:
    """The turn per step that a lasting gradient would make, now and ahead."""
    if record.turns is None:
        return ""
    quarter = max(len(record.steps) // 4, 2)
    turns = record.turns[:, k]
    now, before = (part.square().nanmean().sqrt().item() for part in (turns[-quarter:], turns[-2 * quarter : -quarter]))
    limit = NO_LAW[law.power]
    if now > limit:
        return f"bursts: lasting updates turn the weight by {now:.2g} rad in a step, and beyond {limit} no law holds"
    if law.power == 2:
        return ""  # updates that are normalised do not grow as the weight shrinks
    if now > BURST and now > RISING * before:
        return (
            f"a burst: a lasting gradient would turn the weight by {now:.2g} rad in a step, above {BURST} and rising "
            f"from {before:.2g}; lower lr or the decay"
        )
    shrink = record.norms[-1, k] / ahead[:, k].clamp(min=1e-300) ** (1 / law.power)
    then = now * (rates / record.rates[-1].clamp(min=1e-300)) * shrink**2
    if (then > limit).any():
        return (
            "a burst ahead: the norm is about to fall so far that a lasting gradient would turn the weight by more "
            f"than {limit} rad in a step"
        )
    return ""
