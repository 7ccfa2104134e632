"""The law of the norm carried ahead from a record, with the errors that such forecasts have had within the record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from nlcompanion._arguments import function, number_from, numbers
from nlcompanion.adaptivity.norm_law import Drive, NormLaw, intervals, steps_until
from nlcompanion.adaptivity.norm_record import NormRecord
from nlcompanion.adaptivity.past_forecasts import PastForecasts, drive_at, past_forecasts
from nlcompanion.adaptivity.refusals import refusals

NEAR = 0.05  # relative distance of the norm at which it counts as settled
RATE_DOUBT = 0.2  # a rate ten times smaller lowered the drive of a convnet's filters by 32 to 35%, exp(-0.18 log 10)
COUPLED = (
    "decay is coupled to a normalised optimiser, so that it passes through the normalisation and its pull depends on "
    "the gradients; use decoupled decay (AdamW), for which there is a law"
)


@dataclass(frozen=True)
class Forecast:
    r"""What will become of the norms of some weights; made by :func:`forecast`.

    With ``H`` horizons and weights in the shape ``(...)`` of one record. Where there is no forecast numbers are NaN
    and ``refusals`` says why.

    Attributes:
        step: the last step of the record, at which the forecast is made.
        horizons: steps ahead, shape ``(H,)``.
        norm: :math:`|W|` at each horizon, shape ``(H, ...)``.
        norm_low, norm_high: the interval that holds it with probability ``coverage``.
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
    schedule: Callable[[int], float] | Sequence[float] | Tensor | None,
    horizons: Sequence[int],
    coverage: float,
    coupled: bool,
) -> Forecast:
    """The forecast of every weight of a record."""
    rates = rates_ahead(schedule, record, horizons[-1])
    then = rates[[ahead - 1 for ahead in horizons]]
    drive = drive_at(law, record, len(record.steps) - 1)
    powers = bounds(law, record, drive, rates, horizons, coverage)
    reasons = [COUPLED] * len(drive.noise) if coupled else refusals(law, record, drive, powers[1], then)
    refused = torch.tensor([bool(reason) for reason in reasons])
    there, when, no_equilibrium = equilibrium_of(law, record, drive, schedule)

    def shaped(values: Tensor) -> Tensor:
        """In the shape of the weights, without numbers for those that are refused."""
        told = torch.where(refused, torch.nan, values)
        return told.reshape(told.shape[:-1] + record.shape)

    low, norm, high = (power.clamp(min=0) ** (1 / law.power) for power in powers)
    divisor = 2 if law.power == 4 else 1
    return Forecast(
        step=int(record.steps[-1]),
        horizons=torch.tensor(horizons),
        norm=shaped(norm),
        norm_low=shaped(low),
        norm_high=shaped(high),
        effective_rate=shaped(then[:, None] / norm**divisor),
        effective_rate_low=shaped(then[:, None] / high**divisor),
        effective_rate_high=shaped(then[:, None] / low**divisor),
        equilibrium_norm=shaped(there),
        equilibrium_step=shaped(when),
        coverage=coverage,
        refusals=tuple(reasons),
        no_equilibrium=no_equilibrium,
    )


def rates_ahead(schedule, record: NormRecord, count: int) -> Tensor:
    """The rates of the next steps, shape ``(count,)``."""
    if schedule is None:
        return record.rates[-1].repeat(count)
    first = int(record.steps[-1])
    if callable(schedule):
        ahead = function("schedule", schedule, "schedule(step) -> rate", 1)
        return torch.tensor([_rate(ahead(first + n)) for n in range(count)], dtype=torch.float64)
    given = numbers("schedule", schedule)
    if given.ndim != 1 or len(given) < count:
        raise ValueError(
            f"the schedule has shape {tuple(given.shape)} and the last horizon is {count} steps ahead; give one rate "
            "for each step, or shorter horizons"
        )
    return torch.tensor([_rate(rate) for rate in given[:count].tolist()], dtype=torch.float64)


def _rate(value: object) -> float:
    return number_from("the schedule's rate", value, 0, "a rate is never negative")


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


def doubt_of_rates(record: NormRecord, rates: Tensor, horizons: Sequence[int]) -> Tensor:
    """What a change of the rate ahead may do to the drive, which the past cannot know, as a relative deviation."""
    changes = (rates.clamp(min=1e-12 * float(record.rates.max())) / record.rates[-1].clamp(min=1e-300)).log().abs()
    weights = rates.square()
    mean = (changes * weights).cumsum(0) / weights.cumsum(0).clamp(min=1e-300)
    return RATE_DOUBT * mean[[ahead - 1 for ahead in horizons]]


def bounds(
    law: NormLaw, record: NormRecord, drive: Drive, rates: Tensor, horizons: Sequence[int], coverage: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest, middle and highest ``y`` at each horizon."""
    steps = intervals(law, rates, torch.ones_like(rates))
    passages = [steps.between(0, ahead) for ahead in horizons]
    past = past_forecasts(law, record)
    deviation = torch.hypot(spread(past, horizons), doubt_of_rates(record, rates, horizons)[:, None])
    doubt = student.ppf((1 + coverage) / 2, past.freedom) * deviation
    doubt = doubt * torch.stack([passage.size(drive) for passage in passages])
    faded = torch.stack([passage.left * record.norms[-1] ** law.power for passage in passages])
    outward = torch.stack([passage.gain(drive.outward) for passage in passages])
    inward = torch.stack([-passage.gain(drive.inward) for passage in passages])
    middle = pulled(faded + outward, inward)
    divided = outward / (1 + doubt / outward.clamp(min=1e-300))  # less than nothing is never added
    low = pulled(faded + torch.maximum(outward - doubt, divided), torch.where(inward > 0, inward + doubt, 0.0))
    return low, middle, pulled(faded + outward + doubt, torch.where(inward > doubt, inward - doubt, 0.0))


def pulled(power: Tensor, inward: Tensor) -> Tensor:
    """What a pull towards 0 leaves of ``y``: it weakens as the weight shrinks, so that nothing vanishes."""
    return power * torch.exp(-inward / power.clamp(min=1e-300))


def equilibrium_of(law: NormLaw, record: NormRecord, drive: Drive, schedule) -> tuple[Tensor, Tensor, str]:
    """Where the norms settle at the present rate, the step at which they do, and why they do not."""
    rate, step = record.rates[-1], record.steps[-1]
    nothing = torch.full_like(drive.noise, math.nan)
    fade = float(law.fades(rate))
    if not fade > 0:
        reason = "no decay holds the norm, which grows as long as gradients push it" if rate > 0 else "the rate is 0"
        return nothing, nothing, reason
    start = record.norms[-1] ** law.power
    inward = -(rate**2 * drive.inward.noise + rate * drive.inward.force) / start.clamp(min=1e-300)  # as decay does
    settled = (rate**2 * drive.outward.noise + rate * drive.outward.force) / (fade + inward)
    tolerance = ((1 + NEAR) ** law.power - 1) * settled
    when = step + steps_until(start - settled, tolerance, fade)
    vanishing = settled == 0
    reason = "the schedule goes on to change the rate: the equilibrium moves with it" if schedule is not None else ""
    there = settled ** (1 / law.power)
    return torch.where(vanishing, torch.nan, there), torch.where(vanishing, torch.nan, when), reason
