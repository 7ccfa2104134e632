"""Forecasts of the norms of a monitored run, from what the monitor has recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate
from torch.optim import Optimizer

from nlcompanion.adaptivity.forecast import forecast
from nlcompanion.monitoring.watch.figures import COLUMNS
from nlcompanion.monitoring.watch.record import Entry
from nlcompanion.monitoring.watch.settings import Setting

NORMALIZED = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Lion", "Muon", "Adafactor", "Lamb", "SparseAdam"}


@dataclass(frozen=True)
class NormForecast:
    r"""What will become of one tensor's norm; made by :meth:`Monitor.forecast`.

    Attributes:
        tensor: its name.
        step: at which the forecast was made, from what was recorded by then.
        horizon: steps ahead.
        norm, norm_low, norm_high: the norm there, and the interval that holds it with 90%; NaN without a forecast.
        effective_rate, effective_rate_low, effective_rate_high: :math:`\eta/|W|^2` under SGD, :math:`\eta/|W|` under
            an optimiser with normalised updates.
        equilibrium_norm, equilibrium_step: where the norm settles, and when it is there within 5%; NaN without one.
        reason: why there is no forecast, or no equilibrium; empty if there are both.
    """

    tensor: str
    step: int
    horizon: int
    norm: float
    norm_low: float
    norm_high: float
    effective_rate: float
    effective_rate_low: float
    effective_rate_high: float
    equilibrium_norm: float
    equilibrium_step: float
    reason: str

    @property
    def possible(self) -> bool:
        return not math.isnan(self.norm)


class NormForecasts(tuple[NormForecast, ...]):
    """Forecasts of all tensors: a tuple that prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no tensor to forecast"
        rows = [
            [
                one.tensor,
                f"{one.norm:.4g}" if one.possible else "-",
                f"{one.norm_low:.4g} .. {one.norm_high:.4g}" if one.possible else "-",
                f"{one.effective_rate:.3g}" if one.possible else "-",
                "-" if math.isnan(one.equilibrium_norm) else f"{one.equilibrium_norm:.4g}",
                "-" if math.isnan(one.equilibrium_step) else f"{one.equilibrium_step:.0f}",
                one.reason,
            ]
            for one in self
        ]
        first = self[0]
        headers = ["tensor", "norm", "90%", "effective rate", "settles at", "by step", ""]
        table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, maxcolwidths=[None] * 6 + [48])
        return f"{first.horizon} steps after step {first.step}\n{table}"


def norm_forecasts(
    entries: list[Entry],
    settings: dict[str, Setting],
    optimizers: Sequence[Optimizer],
    free: Collection[str],
    horizon: int,
    schedule: Callable[[int], float] | Sequence[float] | None,
) -> NormForecasts:
    """The forecasts of all tensors that the last entry has."""
    if not entries:
        raise ValueError("nothing is recorded yet; run optimizer.step() some hundred times before a forecast")
    return NormForecasts(
        _of_tensor(name, entries, settings[name], optimizers, name in free, horizon, schedule)
        for name in entries[-1].names
        if name in settings
    )


def _of_tensor(
    name: str,
    entries: list[Entry],
    setting: Setting,
    optimizers: Sequence[Optimizer],
    is_free: bool,
    horizon: int,
    schedule: Callable[[int], float] | Sequence[float] | None,
) -> NormForecast:
    with_it = [entry for entry in entries if name in entry.names]
    step = entries[-1].step
    optimizer = type(optimizers[setting.optimizer])
    kinds = {kind.__name__ for kind in optimizer.__mro__}
    if setting.is_sgd and not is_free:
        return _none(name, step, horizon, "under SGD a norm has a law where a normalisation makes it free, as here not")
    if not setting.is_sgd and not kinds & NORMALIZED:
        return _none(name, step, horizon, f"no law of the norm is known under {optimizer.__name__}")
    if setting.lr <= 0:
        return _none(name, step, horizon, "the learning rate is 0")
    if len(with_it) < 2:
        return _none(name, step, horizon, "fewer than two records of it")
    rows = np.stack([entry.values[entry.names.index(name)] for entry in with_it])
    column = {figure: rows[:, k] for k, figure in enumerate(COLUMNS)}
    found = forecast(
        [float(entry.step) for entry in with_it],
        column["norm"],
        rule="sgd" if setting.is_sgd else "normalized",
        lr=setting.lr,
        weight_decay=setting.weight_decay,
        momentum=setting.momentum,
        decoupled=setting.decoupled,
        lrs=np.nan_to_num(column["lr"]),
        schedule=schedule,
        grad_norms=column["gradient"] if setting.is_sgd else None,
        update_norms=None if setting.is_sgd else column["update"],
        horizons=[horizon],
    )
    return NormForecast(
        tensor=name,
        step=step,
        horizon=horizon,
        norm=found.norm.item(),
        norm_low=found.norm_low.item(),
        norm_high=found.norm_high.item(),
        effective_rate=found.effective_rate.item(),
        effective_rate_low=found.effective_rate_low.item(),
        effective_rate_high=found.effective_rate_high.item(),
        equilibrium_norm=found.equilibrium_norm.item(),
        equilibrium_step=found.equilibrium_step.item(),
        reason=found.refusals[0] or found.no_equilibrium,
    )


def _none(name: str, step: int, horizon: int, reason: str) -> NormForecast:
    nothing = math.nan
    return NormForecast(
        name, step, horizon, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing, reason
    )
