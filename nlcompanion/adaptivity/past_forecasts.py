"""How wrong forecasts of the drive would have been that were made earlier in a record, from what was known then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nlcompanion.adaptivity.norm_law import Drive, NormLaw, Passage, intervals
from nlcompanion.adaptivity.norm_record import NormRecord

WINDOW = 4  # the drive is measured over the last quarter of what is known
JUMP = 2.0  # of the rate: with it the noise of the gradients changes, and the drive
BLOCKS = 6  # of the window, whose scatter tells a lasting pull from chance
ENOUGH = 6  # records after a jump from which a drive is taken
ORIGINS = 6  # earlier steps at which forecasts are made, at most
FRACTIONS = (1 / 8, 1 / 4, 1 / 2)  # their horizons, in parts of the record


@dataclass(frozen=True)
class PastForecasts:
    """Errors of earlier forecasts.

    Attributes:
        horizons: in steps, increasing, shape ``(K,)``.
        errors: root mean square of the drive's relative error, shape ``(K, N)``.
        freedom: how many of these forecasts were of different steps.
    """

    horizons: Tensor
    errors: Tensor
    freedom: int


def drive_at(law: NormLaw, record: NormRecord, last: int) -> Drive:
    """The drive that was known at a record, from the window before it."""
    first = max(last - max(last // WINDOW, 2), _last_jump(record, last))
    if record.drives is None:
        return realised_drive(law, record, first, last)
    noise = record.drives[first:last].nanmean(0)
    if law.power == 4:
        return Drive(noise, torch.zeros_like(noise))
    return Drive(noise, _lasting_force(law, record, noise, first, last))


def _lasting_force(law: NormLaw, record: NormRecord, noise: Tensor, first: int, last: int) -> Tensor:
    """What the norms gained beyond what updates that forget one another explain, as far as it is no chance.

    The mean over blocks of the window, times :math:`F^2/(F^2 + s^2)` with its standard error :math:`s`.
    """
    edges = sorted({round(x) for x in torch.linspace(first, last, BLOCKS + 1).tolist()})
    found = []
    for start, end in pairwise(edges):
        passage = passage_between(law, record, start, end)
        left_over = realised_gain(law, record, start, end) - passage.of_noise * noise
        found.append(left_over / passage.of_force.clamp(min=1e-300))
    if len(found) < 2:
        return torch.zeros_like(noise)
    forces = torch.stack(found)
    mean, variance = forces.mean(0), forces.var(0) / len(forces)
    return mean * mean.square() / (mean.square() + variance).clamp(min=1e-300)


def _last_jump(record: NormRecord, last: int) -> int:
    """The record from which on the rate had its present size, unless too little followed for a drive."""
    if last <= ENOUGH:
        return 0
    before = record.rates[: last - ENOUGH]
    ratio = before.clamp(min=1e-300) / record.rates[last - 1].clamp(min=1e-300)
    jumped = (ratio.log().abs() > math.log(JUMP)).nonzero()
    return int(jumped[-1, 0]) + 1 if len(jumped) else 0


def realised_drive(law: NormLaw, record: NormRecord, first: int, last: int) -> Drive:
    """The constant drive that takes the norm from one record to another, all of it as of updates that forget."""
    gain, passage = realised_gain(law, record, first, last), passage_between(law, record, first, last)
    return Drive(gain / passage.of_noise.clamp(min=1e-300), torch.zeros_like(gain))


def passage_between(law: NormLaw, record: NormRecord, first: int, last: int) -> Passage:
    return intervals(law, record.rates[:-1], record.steps.diff()).between(first, last)


def realised_gain(law: NormLaw, record: NormRecord, first: int, last: int) -> Tensor:
    """What ``y`` gained between two records, without what decay alone does."""
    start, end = record.norms[first] ** law.power, record.norms[last] ** law.power
    return end - passage_between(law, record, first, last).left * start


def past_forecasts(law: NormLaw, record: NormRecord) -> PastForecasts:
    """Forecasts from several steps of the record to later ones."""
    count = len(record.steps) - 1
    horizons, errors = [], []
    for fraction in FRACTIONS:
        ahead = max(round(count * fraction), 1)
        found = [_error(law, record, origin, origin + ahead) for origin in _origins(count, ahead)]
        horizons.append(float(record.steps[count] - record.steps[count - ahead]))
        errors.append(torch.stack(found).square().mean(0).sqrt())
    return PastForecasts(torch.tensor(horizons, dtype=torch.float64), torch.stack(errors), len(FRACTIONS) + 1)


def _origins(count: int, ahead: int) -> list[int]:
    last = count - ahead
    first = min(max(count // 3, 2), last)
    return sorted({round(x) for x in torch.linspace(first, last, ORIGINS).tolist()})


def _error(law: NormLaw, record: NormRecord, origin: int, end: int) -> Tensor:
    """Of the gain that was forecast at one record for another, in parts of the drive's size."""
    drive, passage = drive_at(law, record, origin), passage_between(law, record, origin, end)
    size = passage.size(drive).clamp(min=1e-300)
    return (realised_gain(law, record, origin, end) - passage.gain(drive)) / size
