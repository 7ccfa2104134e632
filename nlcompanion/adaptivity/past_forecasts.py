"""How wrong forecasts of the drive would have been that were made earlier in a record, from what was known then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlcompanion.adaptivity.norm_law import NormLaw, intervals
from nlcompanion.adaptivity.norm_record import NormRecord

WINDOW = 4  # the drive is measured over the last quarter of what is known
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


def drive_at(law: NormLaw, record: NormRecord, last: int) -> Tensor:
    """The drive that was known at a record, from the window before it, shape ``(N,)``."""
    first = last - max(last // WINDOW, 2)
    if record.drives is not None:
        return record.drives[max(first, 0) : last + 1].nanmean(0)
    return realised_drive(law, record, max(first, 0), last)


def realised_drive(law: NormLaw, record: NormRecord, first: int, last: int) -> Tensor:
    """The constant drive that takes the norm from one record to another."""
    steps = intervals(law, record.rates[:-1], record.steps.diff())
    left, exposure = steps.between(first, last)
    start, end = record.norms[first] ** law.power, record.norms[last] ** law.power
    return (end - left * start) / exposure.clamp(min=1e-300)


def past_forecasts(law: NormLaw, record: NormRecord) -> PastForecasts:
    """Forecasts from several steps of the record to later ones."""
    count = len(record.steps) - 1
    horizons, errors = [], []
    for fraction in FRACTIONS:
        ahead = max(round(count * fraction), 1)
        first = max(count // 3, 2)
        origins = sorted({round(x) for x in torch.linspace(min(first, count - ahead), count - ahead, ORIGINS).tolist()})
        found = []
        for origin in origins:
            known = drive_at(law, record, origin)
            came = realised_drive(law, record, origin, origin + ahead)
            found.append((came - known) / known.abs().clamp(min=1e-300))
        horizons.append(float(record.steps[count] - record.steps[count - ahead]))
        errors.append(torch.stack(found).square().mean(0).sqrt())
    return PastForecasts(torch.tensor(horizons, dtype=torch.float64), torch.stack(errors), len(FRACTIONS) + 1)
