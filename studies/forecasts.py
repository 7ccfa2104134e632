"""Forecasts of norms against what became of them, on trainings that the method was not chosen by.

The windows and factors of :func:`nlcompanion.forecast` were settled on runs with seed 0; the runs here have others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import nlcompanion as nl
from nlcompanion.book.results import thin
from studies.norm_histories import History, follow
from studies.recipes import result
from studies.small_trainings import Lion, convnet, digit_batches, text_batches, writer

STEPS = 1701  # of every run, so that the outcome of the last forecast is known
HORIZONS = (100, 300, 1000)
STRIDE = 5  # a record every fifth step
TWICE = (11, 12)
FILTERS = ("conv1.weight", "conv2.weight", "conv3.weight")
MATRICES = ("blocks.0.query.weight", "blocks.0.value.weight", "blocks.0.up.weight", "blocks.1.down.weight")
FORECAST_COLUMNS = (
    "run",
    "seed",
    "weight",
    "step",
    "horizon",
    "norm",
    "low",
    "high",
    "truth",
    "now",
    "equilibrium",
    "tk",
)


@dataclass(frozen=True)
class Setting:
    """One kind of run.

    Attributes:
        regime: "growth", "decay", "equilibrium", "schedule" or "burst".
        convolutional: a convnet on digits, or the transformer on text.
        make: the optimizer of some parameters.
        origins: the steps at which forecasts are made.
        stretched: factor of the filters at the start, which the function does not see.
        factor: of the rate, step by step.
        seeds: one run each.
        images: how many different images there are; all, with a third of the labels drawn anew, when None.
    """

    name: str
    regime: str
    convolutional: bool
    make: Callable[..., torch.optim.Optimizer]
    origins: tuple[int, ...] = (300, 500, 700)
    stretched: float = 1.0
    factor: Callable[[int], float] | None = None
    images: int | None = None
    seeds: tuple[int, ...] = (11,)


def sgd(lr: float, decay: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay)


def adamw(lr: float, decay: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)


def lion(lr: float, decay: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: Lion(parameters, lr=lr, weight_decay=decay)


def muon(lr: float, decay: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Muon(parameters, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")


def cosine(step: int) -> float:
    return (1 + math.cos(math.pi * step / STEPS)) / 2


def falls_at_500(step: int) -> float:
    return 1.0 if step < 500 else 0.1


SETTINGS = (
    Setting("SGD without decay", "growth", True, sgd(0.1, 0.0), seeds=TWICE),
    Setting("SGD from long filters", "decay", True, sgd(0.05, 5e-3), (150, 300, 500), stretched=3.0, seeds=TWICE),
    Setting("SGD with decay", "equilibrium", True, sgd(0.05, 5e-3), (500, 600, 700), seeds=TWICE),
    Setting(
        "SGD, rate falling at 500", "schedule", True, sgd(0.1, 2e-3), (300, 450, 700), factor=falls_at_500, seeds=TWICE
    ),
    Setting("SGD on 100 images", "burst", True, sgd(0.1, 0.02), (200, 400, 600, 700), images=100, seeds=(13, 14)),
    Setting("AdamW without decay", "growth", False, adamw(3e-3, 0.0)),
    Setting("AdamW with decay", "decay", False, adamw(3e-3, 0.5)),
    Setting("AdamW, cosine", "schedule", False, adamw(5e-3, 0.1), factor=cosine),
    Setting("Lion with decay", "equilibrium", False, lion(1e-3, 2.0), (500, 600, 700)),
    Setting("Muon with decay", "equilibrium", False, muon(5e-3, 0.4), (500, 600, 700)),
)


def run(setting: Setting, seed: int) -> History:
    """One training of a setting, followed step by step."""
    if setting.convolutional:
        model, names = convnet(seed), FILTERS
        batches = digit_batches(64, seed, noise=0.0 if setting.images else 0.3, subset=setting.images)
        with torch.no_grad():
            for name in FILTERS:
                model.get_parameter(name).mul_(setting.stretched)
        return follow(model, setting.make(model.parameters()), batches, names, STEPS, schedule=setting.factor)
    model = writer(seed)
    followed = [p for name, p in model.named_parameters() if is_hidden_matrix(name, p)]
    rest = [p for name, p in model.named_parameters() if not is_hidden_matrix(name, p)]
    optimizer, beside = setting.make(followed), torch.optim.AdamW(rest, lr=3e-3)
    batches = text_batches(8, seed)
    return follow(model, optimizer, batches, MATRICES, STEPS, schedule=setting.factor, beside=beside)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and name.startswith("blocks")


def made_at(history: History, step: int, horizons: Sequence[int] = HORIZONS, **changed: Any) -> nl.Forecast:
    """The forecast of a history's weights at a step, from what was recorded until then, and the schedule."""
    known = slice(step % STRIDE, step + 1, STRIDE)
    measured: dict[str, Any] = {"lrs": history.rates[known]}
    if history.settings["rule"] == "sgd":
        measured |= {"grad_norms": history.grad_norms[known], "persistence": history.averages[known]}
    else:
        measured |= {"update_norms": history.update_norms[known], "memory": history.memory[known].clamp(min=0)}
    rates = history.rates[step:]
    return nl.forecast(
        range(step + 1)[known],
        history.norms[known],
        lr=float(rates[0]),
        schedule=rates,
        horizons=horizons,
        **{**history.settings, **measured, **changed},
    )


def forecasts_of(history: History, step: int) -> Iterator[tuple[int, list]]:
    """For each weight and horizon: what was forecast, what came, and what simpler people would have said.

    They say: no change; the equilibrium at once; TK Eq. 17 with gradients that persist, for SGD.
    """
    ahead = made_at(history, step)
    alone = made_at(history, step, persistence=1.0) if history.settings["rule"] == "sgd" else None
    for weight in range(len(history.names)):
        for k, horizon in enumerate(HORIZONS):
            numbers = [ahead.norm[k, weight], ahead.norm_low[k, weight], ahead.norm_high[k, weight]]
            numbers += [history.norms[step + horizon, weight], history.norms[step, weight]]
            numbers += [ahead.equilibrium_norm[weight], alone.norm[k, weight] if alone else torch.tensor(math.nan)]
            plain = [None if math.isnan(number) else float(number) for number in numbers]
            yield weight, [step, horizon, *plain]


@result("Forecasts of norms against outcomes, on trainings that they have not seen")
def forecasts_on_small_trainings() -> dict:
    rows, examples, reasons = [], {}, {}
    for number, setting in enumerate(SETTINGS):
        for seed in setting.seeds:
            print(f"{setting.name}, seed {seed}", flush=True)
            history = run(setting, seed)
            for step in setting.origins:
                rows += [[number, seed, weight, *row] for weight, row in forecasts_of(history, step)]
            if seed == setting.seeds[0]:
                examples[setting.name] = example(history, setting.origins[1])
                reasons[setting.name] = list(made_at(history, setting.origins[-1]).refusals)
    columns = {name: [row[k] for row in rows] for k, name in enumerate(FORECAST_COLUMNS)}
    described = {setting.name: {"regime": setting.regime, "origins": list(setting.origins)} for setting in SETTINGS}
    return {
        "settings": {
            "runs": described,
            "seeds": sorted({seed for setting in SETTINGS for seed in setting.seeds}),
            "steps": STEPS,
            "stride": STRIDE,
            "coverage": 0.9,
        },
        "data": nl.datasets.describe(nl.digits("train")),
        "curves": {"forecasts": columns, "examples": examples},
        "numbers": {"refusals": reasons},
    }


def example(history: History, step: int) -> dict:
    """The norm of a weight all along, and one forecast of it, for a figure."""
    horizons = (10, 30, 60, 100, 200, 300, 500, 700, 1000)
    ahead = made_at(history, step, horizons)
    weight = min(1, len(history.names) - 1)
    band = {"norm": ahead.norm, "low": ahead.norm_low, "high": ahead.norm_high}
    course = thin({"step": range(len(history.rates)), "norm": history.norms[:, weight]}, 250)
    fan = {name: [None if math.isnan(x) else x for x in part[:, weight].tolist()] for name, part in band.items()}
    return {"course": course, "fan": {"step": [step + h for h in horizons], **fan}}


# --- what the table says ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How forecasts of one kind and horizon did.

    Attributes:
        count: how many there were, and ``refused`` how many were asked for in vain.
        inside: share inside the interval.
        width: median half-width of the interval, in the norm's logarithm.
        errors: median error of the norm's logarithm, by who made the forecast.
    """

    count: int
    refused: int
    inside: float
    width: float
    errors: dict[str, float]


def score(columns: dict[str, list], chosen: Tensor) -> Score:
    """Of the rows that are chosen by a mask."""
    kept = {name: [value for value, take in zip(column, chosen.tolist(), strict=True) if take]
            for name, column in columns.items()}  # fmt: skip
    table = {name: torch.tensor([math.nan if x is None else x for x in values]) for name, values in kept.items()}
    told = ~table["norm"].isnan()
    truth = table["truth"]
    held = (table["low"] <= truth) & (truth <= table["high"])
    names = {"forecast": "norm", "no change": "now", "equilibrium": "equilibrium", "TK Eq. 17": "tk"}
    errors = {}
    for name, column in names.items():
        off = (table[column] / truth).log().abs()[told]
        errors[name] = off.nanmedian().item()
    width = (table["high"] / table["low"]).log()[told].median().item() / 2 if told.any() else math.nan
    inside = held[told].double().mean().item() if told.any() else math.nan
    return Score(int(told.sum()), int((~told).sum()), inside, width, errors)


def rows_of(stored: dict, *, regime: str | None = None, horizon: int | None = None, rule: str | None = None) -> Tensor:
    """A mask of the forecasts of a regime, a horizon, a rule ("sgd" or "normalized")."""
    columns, runs = stored["curves"]["forecasts"], list(stored["settings"]["runs"].items())
    chosen = []
    for number, ahead in zip(columns["run"], columns["horizon"], strict=True):
        name, described = runs[number]
        of_rule = rule is None or name.startswith("SGD") == (rule == "sgd")
        of_regime = regime in (None, described["regime"])
        chosen.append(of_rule and of_regime and horizon in (None, ahead))
    return torch.tensor(chosen)


def table_of_regimes(stored: dict) -> str:
    """How often outcomes lay inside, and the median errors in per cent, regime by regime and horizon by horizon."""
    headers = ["", "made", "refused", "inside", "forecast", "no change", "equilibrium", "TK Eq. 17"]
    rows = []
    for label, chosen in _parts(stored):
        found = score(stored["curves"]["forecasts"], chosen)
        errors = ["-" if math.isnan(error) else f"{100 * error:.1f}" for error in found.errors.values()]
        inside = "-" if math.isnan(found.inside) else f"{100 * found.inside:.0f} %"
        rows.append([label, found.count, found.refused, inside, *errors])
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)


def _parts(stored: dict) -> Iterator[tuple[str, Tensor]]:
    for regime in ("growth", "decay", "equilibrium", "schedule", "burst"):
        yield regime, rows_of(stored, regime=regime)
    for horizon in HORIZONS:
        yield f"{horizon} steps ahead", rows_of(stored, horizon=horizon)
    yield "all", rows_of(stored)


def outside_around_the_present(stored: dict) -> float:
    """The share of outcomes outside intervals as wide, put around the norm at the time of the forecast."""
    columns = stored["curves"]["forecasts"]
    table = {name: torch.tensor([math.nan if x is None else x for x in columns[name]]) for name in columns}
    told = ~table["norm"].isnan()
    low, high = (table["now"] * table[side] / table["norm"] for side in ("low", "high"))
    held = (low <= table["truth"]) & (table["truth"] <= high)
    return 1 - held[told].double().mean().item()


def figure_of_forecasts(stored: dict, names: Sequence[str]):
    """The norm of one weight of a run each, and a forecast made on the way, with its interval."""
    from nlcompanion.book.plotting import COLORS, panels

    figure, axes = panels(2, len(names) // 2, titles=names, height=2.4)
    for axis, name in zip(axes.flat, names, strict=True):
        course, fan = (stored["curves"]["examples"][name][part] for part in ("course", "fan"))
        axis.plot(course["step"], course["norm"], color=COLORS["measurement"], label="outcome")
        start = fan["step"][0]
        if fan["norm"][0] is None:
            axis.axvline(start, color=COLORS["neutral"], linestyle=":", label="asked, and refused")
        else:
            axis.plot(fan["step"], fan["norm"], color=COLORS["prediction"], label="forecast")
            axis.fill_between(fan["step"], fan["low"], fan["high"], color=COLORS["light"], alpha=0.3, label="90 %")
        axis.set(xlabel="step", ylabel="norm")
    told = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            told[label] = handle
    figure.legend(told.values(), told.keys(), loc="outside lower center", ncols=len(told))
    return figure
