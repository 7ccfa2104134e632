"""Settings carried to another optimiser by ``match``, on small trainings: do norms and angles go where they went?

The control carries rate and decay over as they are. Only norms and angles are compared; the losses are shown beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion.book.results import thin
from studies.forecasts import FILTERS, MATRICES, is_hidden_matrix
from studies.norm_histories import History, follow
from studies.recipes import result
from studies.small_trainings import Lion, convnet, digit_batches, text_batches, writer

STEPS = 800
SEED = 21


@dataclass(frozen=True)
class Transfer:
    """From AdamW to another optimiser on one of the trainings.

    Attributes:
        convolutional: the convnet on digits, or the transformer on text.
        target: makes the other optimiser.
        lr, weight_decay: of AdamW.
    """

    name: str
    convolutional: bool
    target: Callable[..., torch.optim.Optimizer]
    lr: float = 3e-3
    weight_decay: float = 0.5


def muon(parameters, **settings) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, **settings)


def sgd(parameters, **settings) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, momentum=0.9, **settings)


TRANSFERS = (
    Transfer("AdamW to SGD, convnet", True, sgd),
    Transfer("AdamW to Lion, convnet", True, Lion),
    Transfer("AdamW to Lion, transformer", False, Lion),
    Transfer("AdamW to Muon, transformer", False, muon),
)


@dataclass(frozen=True)
class Training:
    """A fresh model, its data, and the parameters that change their optimiser."""

    model: nn.Module
    batches: Iterator[tuple[Tensor, Tensor]]
    names: tuple[str, ...]
    moved: list[nn.Parameter]
    rest: list[nn.Parameter]


def training(convolutional: bool, seed: int = SEED) -> Training:
    model = convnet(seed) if convolutional else writer(seed)
    chosen = [p.ndim == 4 if convolutional else is_hidden_matrix(name, p) for name, p in model.named_parameters()]
    parameters = list(model.parameters())
    moved = [p for p, is_chosen in zip(parameters, chosen, strict=True) if is_chosen]
    rest = [p for p, is_chosen in zip(parameters, chosen, strict=True) if not is_chosen]
    batches = digit_batches(64, seed, noise=0.3) if convolutional else text_batches(8, seed)
    return Training(model, batches, FILTERS if convolutional else MATRICES, moved, rest)


def adamw(transfer: Transfer, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=transfer.lr, weight_decay=transfer.weight_decay)


def settings_for(transfer: Transfer, seed: int = SEED) -> nl.Match:
    """What ``match`` says, with the gradients of a first batch."""
    fresh = training(transfer.convolutional, seed)
    inputs, targets = next(fresh.batches)
    cross_entropy(fresh.model(inputs), targets).backward()
    return nl.match(adamw(transfer, fresh.moved), transfer.target, fresh.model)


def followed(transfer: Transfer, kind: str, steps: int = STEPS, seed: int = SEED) -> History:
    """A run of the source, of the matched target or of the naive one: "source", "matched" or "naive"."""
    fresh = training(transfer.convolutional, seed)
    beside = torch.optim.AdamW(fresh.rest, lr=transfer.lr)
    optimizer: torch.optim.Optimizer
    if kind == "source":
        optimizer = adamw(transfer, fresh.moved)
    elif kind == "naive":
        optimizer = transfer.target(fresh.moved, lr=transfer.lr, weight_decay=transfer.weight_decay)
    else:
        found = settings_for(transfer, seed)
        named = dict(fresh.model.named_parameters())
        groups = [
            {"params": [named[name] for name in row.names], "lr": row.lr, "weight_decay": row.weight_decay}
            for row in found.rows
        ]
        optimizer = transfer.target(groups)
    return follow(fresh.model, optimizer, fresh.batches, fresh.names, steps, beside=beside)


def windowed(values: Tensor, window: int = 50) -> Tensor:
    """Root mean squares over windows, shape ``(windows, N)``."""
    kept = len(values) // window * window
    return values[:kept].reshape(-1, window, *values.shape[1:]).square().mean(1).sqrt()


def distance(history: History, source: History) -> dict[str, float]:
    """Mean absolute logarithm of the ratio of norms, and of angles, over the windows of a run and its weights."""
    norms = (windowed(history.norms) / windowed(source.norms)).log().abs().mean()
    angles = (windowed(history.angles) / windowed(source.angles)).log().abs().mean()
    return {"norm": float(norms), "angle": float(angles)}


@result("AdamW carried to SGD, Lion and Muon by match: norms and angles beside a naive equal rate")
def transfers_on_small_trainings() -> dict:
    curves, numbers, settings = {}, {}, {}
    for transfer in TRANSFERS:
        print(transfer.name, flush=True)
        runs = {kind: followed(transfer, kind) for kind in ("source", "matched", "naive")}
        curves[transfer.name] = {kind: course_of(history) for kind, history in runs.items()}
        numbers[transfer.name] = {
            kind: {**distance(runs[kind], runs["source"]), "loss": float(runs[kind].losses[-100:].mean())}
            for kind in runs
        }
        found = settings_for(transfer)
        settings[transfer.name] = [
            {"names": list(row.names), "lr": row.lr, "weight_decay": row.weight_decay, "missed": row.missed}
            for row in found.rows
        ]
    return {
        "settings": {"steps": STEPS, "seeds": [SEED], "matched": settings},
        "data": nl.datasets.describe(nl.digits("train")),
        "curves": curves,
        "numbers": numbers,
    }


def course_of(history: History) -> dict:
    """Norm and angle of the second weight, in windows."""
    norm, angle = windowed(history.norms)[:, 1], windowed(history.angles)[:, 1]
    return thin({"step": torch.arange(len(norm)) * 50 + 25, "norm": norm, "angle": angle}, 60)


def table_of_transfers(stored: dict) -> str:
    """Mean distances of norms and angles from the source's, in per cent, matched and naive."""
    headers = ["", "norm, matched", "naive", "angle, matched", "naive"]
    rows = []
    for name, found in stored["numbers"].items():
        distances = [found[kind][figure] for figure in ("norm", "angle") for kind in ("matched", "naive")]
        rows.append([name, *(f"{100 * math.expm1(distance):.0f} %" for distance in distances)])
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)


def shares_of_the_naive_distance(stored: dict) -> list[float]:
    """The matched run's distance from the source over the naive run's: of norms and angles, for each transfer."""
    numbers = stored["numbers"].values()
    return [found["matched"][figure] / found["naive"][figure] for found in numbers for figure in ("norm", "angle")]


def figure_of_transfer(stored: dict, name: str):
    """Norm and angle of one weight under the source, the matched and the naive target."""
    from nlcompanion.book.plotting import COLORS, panels

    figure, axes = panels(2, titles=("norm", "turn per step"))
    colours = {"source": COLORS["measurement"], "matched": COLORS["prediction"], "naive": COLORS["control"]}
    source, _, target = name.partition(",")[0].partition(" to ")
    labels = {"source": source, "matched": f"{target}, matched", "naive": f"{target}, naive"}
    for kind, course in stored["curves"][name].items():
        for axis, quantity in zip(axes, ("norm", "angle"), strict=True):
            axis.plot(course["step"], course[quantity], color=colours[kind], label=labels[kind])
            axis.set(xlabel="step", ylim=(0, None))
    axes[0].legend()
    return figure
