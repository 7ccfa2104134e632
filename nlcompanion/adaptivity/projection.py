"""The law of the norm carried ahead from a record, with the errors that such forecasts have had within the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from nlcompanion._arguments import described, number_from
from nlcompanion.adaptivity.norm_law import NormLaw, intervals, steps_until
from nlcompanion.adaptivity.norm_record import NormRecord
from nlcompanion.adaptivity.past_forecasts import PastForecasts, drive_at, past_forecasts
from nlcompanion.adaptivity.refusals import refusals

NEAR = 0.05  # relative distance of the norm at which it counts as settled
COUPLED = (
    "decay is coupled to a normalised optimiser, so that it passes through the normalisation and its pull depends on "
    "the gradients; use decoupled decay (AdamW), for which there is a law"
)


@dataclass(frozen=True)
class Forecast:
    r"""What will become of the norms of some weights; made by :func:`forecast`.

    With ``H`` horizons and weights in the shape ``(...)`` of one record. Where there is no forecast numbers are NaN
    and :attr:`refusals` says why.

    Attributes:
        step: the last step of the record, at which the forecast is made.
        horizons: steps ahead, shape ``(H,)``.
        norm: :math:`|W|` at each horizon, shape ``(H, ...)``.
        norm_low, norm_high: the interval that holds it with probability :attr:`coverage`.
        effective_rate: :math:`\eta/|W|^2` under SGD, in units of the unit-length gradient's steps, or
            :math:`\eta/|W|` under a normalised optimiser, in radians per unit of update; shape ``(H, ...)``.
        effective_rate_low, effective_rate_high: its interval.
        equilibrium_norm: where the norm settles if drive, decay and the last known rate stay, shape ``(...)``; NaN
            where nothing holds it.
        equilibrium_step: the step at which the norm comes within 5% of that, shape ``(...)``; the present step where
            it is there already.
        coverage: the probability of the intervals.
        refusals: a reason for each weight without forecast, empty text for the others; flattened, one per weight.
        no_equilibrium: why there is no equilibrium in sight, or empty text.
    """

    step: int
    horizons: Tensor
    norm: Tensor
    norm_low: Tensor
    norm_high: Tensor
    effective_rate: Tensor
    effective_rate_low: Tensor
    effective_rate_high: Tensor
    equilibrium_norm: Tensor
    equilibrium_step: Tensor
    coverage: float
    refusals: tuple[str, ...]
    no_equilibrium: str

    @property
    def possible(self) -> Tensor:
        """Which weights have a forecast, booleans of shape ``(...)``."""
        return ~self.norm[0].isnan()


def project(
    law: NormLaw,
    record: NormRecord,
    schedule: Callable[[int], float] | Sequence[float] | None,
    horizons: Sequence[int],
    coverage: float,
    coupled: bool,
) -> Forecast:
    """The forecast of every weight of a record."""
    rates = rates_ahead(schedule, record, horizons[-1])
    steps = intervals(law, rates, torch.ones_like(rates))
    drive = drive_at(law, record, len(record.steps) - 1)
    past = past_forecasts(law, record)
    left, exposure = (torch.stack(part)[:, None] for part in zip(*(steps.between(0, h) for h in horizons), strict=True))
    start = record.norms[-1] ** law.power
    error = student.ppf((1 + coverage) / 2, past.freedom) * spread(past, horizons)
    low, middle, high = (left * start + exposure * d for d in bounds(drive, error))
    why = [COUPLED] * len(drive) if coupled else refusals(law, record, drive, middle, rates[[h - 1 for h in horizons]])
    refused = torch.tensor([bool(reason) for reason in why])
    norm, norm_low, norm_high = (
        torch.where(refused, torch.nan, y.clamp(min=0) ** (1 / law.power)) for y in (middle, low, high)
    )
    there, when, no_equilibrium = equilibrium_of(law, record, drive, schedule)
    then = rates[[h - 1 for h in horizons]][:, None]
    divisor = 2 if law.power == 4 else 1
    shaped = lambda x: x.reshape(x.shape[:-1] + record.shape)  # noqa: E731  as the weights were given
    return Forecast(
        step=int(record.steps[-1]),
        horizons=torch.tensor(horizons),
        norm=shaped(norm),
        norm_low=shaped(norm_low),
        norm_high=shaped(norm_high),
        effective_rate=shaped(then / norm**divisor),
        effective_rate_low=shaped(then / norm_high**divisor),
        effective_rate_high=shaped(then / norm_low**divisor),
        equilibrium_norm=shaped(torch.where(refused, torch.nan, there)),
        equilibrium_step=shaped(torch.where(refused, torch.nan, when)),
        coverage=coverage,
        refusals=tuple(why),
        no_equilibrium=no_equilibrium,
    )


def rates_ahead(schedule, record: NormRecord, count: int) -> Tensor:
    """The rates of the next steps, shape ``(count,)``."""
    if schedule is None:
        return record.rates[-1].repeat(count)
    first = int(record.steps[-1])
    if callable(schedule):
        given = [schedule(first + n) for n in range(count)]
    elif isinstance(schedule, Sequence | Tensor) and not isinstance(schedule, str | bytes):
        given = list(schedule[:count])
        if len(given) < count:
            raise ValueError(
                f"the schedule ends after {len(given)} steps, before the last horizon of {count}; give more of it, or "
                "shorter horizons"
            )
    else:
        raise TypeError(f"schedule must be a function of the step or rates in a list, got {described(schedule)}")
    rates = [number_from("the schedule's rate", rate, 0, "a rate is never negative") for rate in given]
    return torch.tensor(rates, dtype=torch.float64)


def spread(past: PastForecasts, horizons: Sequence[int]) -> Tensor:
    """The standard deviation of the relative error of the drive at each horizon, shape ``(H, N)``.

    Between the horizons that the record could test it is interpolated; beyond the longest it grows as the horizon, as
    a drift that goes on would make it.
    """
    tested = past.horizons.log()
    rows = []
    for ahead in horizons:
        at = math.log(ahead)
        if ahead >= past.horizons[-1]:
            rows.append(past.errors[-1] * ahead / past.horizons[-1])
        elif ahead <= past.horizons[0]:
            rows.append(past.errors[0] * (past.horizons[0] / ahead).sqrt())
        else:
            k = int(torch.searchsorted(tested, torch.tensor(at, dtype=tested.dtype)))
            share = (at - tested[k - 1]) / (tested[k] - tested[k - 1])
            rows.append(torch.lerp(past.errors[k - 1], past.errors[k], share))
    return torch.stack(rows)


def bounds(drive: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest, middle and highest drive; a lower bound by division where subtraction would turn it round."""
    low = torch.maximum(drive * (1 - error), drive / (1 + error))
    return (
        torch.minimum(low, drive * (1 - error).clamp(min=-1e6)) if (drive < 0).any() else low,
        drive,
        drive * (1 + error),
    )


def equilibrium_of(law: NormLaw, record: NormRecord, drive: Tensor, schedule) -> tuple[Tensor, Tensor, str]:
    """Where the norms settle at the present rate, the step at which they do, and why they do not."""
    rate, step = record.rates[-1], record.steps[-1]
    nothing = torch.full_like(drive, math.nan)
    fade = float(law.fades(rate))
    if not fade > 0:
        reason = "no decay holds the norm, which grows as long as gradients push it" if rate > 0 else "the rate is 0"
        return nothing, nothing, reason
    settled = (rate**2 * drive / fade).clamp(min=0)
    start = record.norms[-1] ** law.power
    tolerance = ((1 + NEAR) ** law.power - 1) * settled
    when = step + steps_until(start - settled, tolerance, fade)
    vanishing = settled == 0
    reason = "the schedule goes on to change the rate: the equilibrium moves with it" if schedule is not None else ""
    there = settled ** (1 / law.power)
    return torch.where(vanishing, torch.nan, there), torch.where(vanishing, torch.nan, when), reason
