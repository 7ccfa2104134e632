"""The long runs behind the chapter on implicit adaptivity (private): TK Fig. 4, at any size.

The study on the digits takes minutes. Tiny ImageNet's is 168 runs of VGG-11, for a GPU and a folder that keeps what is
done: ``NLCOMPANION_RUNS=FOLDER python -m studies tk_fig4_tiny_imagenet``. Called again, it goes on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from nlcompanion.datasets.download import DataError
from nlcompanion.training.config import TrainConfig
from nlcompanion.training.sweeps.records import Sweep
from nlcompanion.training.sweeps.sweep import sweep
from studies.recipes import result

RUNS = "NLCOMPANION_RUNS"  # a folder in which unfinished sweeps are kept, so that the next call goes on with them
NORMS = {"free": False, "constrained": True}
TINY_SEEDS = range(4)

Panel = tuple[str, Sequence[Any], TrainConfig]  # the setting that varies, its values, and the rest


@result("TK Fig. 4 on digits: free and constrained filter norm against step size, momentum and decay")
def tk_fig4_digits() -> dict:
    base = TrainConfig(dataset="digits", model="conv_bn", batch_size=64, epochs=15, lr=0.1, momentum=0.9)
    constant = evolve(base, lr_drops=())
    panels: dict[str, Panel] = {
        "a": ("lr", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), constant),
        "b": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), base),
        "b_constant": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), constant),
        "c": ("weight_decay", (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 3e-2), base),
    }
    return figure4(panels, seeds=range(6))


@result("TK Fig. 4 as in the paper: VGG-11 on Tiny ImageNet, on a GPU; kept and resumed in the folder NLCOMPANION_RUNS")
def tk_fig4_tiny_imagenet() -> dict:
    if not os.environ.get(RUNS) or not torch.cuda.is_available():
        raise DataError(
            f"this study is {_count(tiny_imagenet_panels(), TINY_SEEDS)} runs of VGG-11 for 100 epochs each, too much "
            f"without a GPU; call it where there is one, with {RUNS}=FOLDER, in which finished runs are kept"
        )
    return figure4(tiny_imagenet_panels(), TINY_SEEDS)


def tiny_imagenet_panels() -> dict[str, Panel]:
    """TK's experiment (SI D and E). What they do not state is ours: the values, the rate in B and C, the precision."""
    base = TrainConfig(dataset="tiny_imagenet", model="vgg11", lr=0.1, device="cuda", precision="bf16")
    return {
        "a": ("lr", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), evolve(base, lr_drops=())),
        "b": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99), base),
        "c": ("weight_decay", (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), base),
    }


def _count(panels: Mapping[str, Panel], seeds: Sequence[int]) -> int:
    return len(NORMS) * len(seeds) * sum(len(values) for _, values, _ in panels.values())


def figure4(panels: Mapping[str, Panel], seeds: Sequence[int], executor: Executor | int | None = None) -> dict:
    """TK Fig. 4 for any data set and network: final accuracies and losses, and the losses epoch by epoch.

    Under ``curves`` stand, for each panel, the values of what varies and for both kinds of filter norm the means and
    standard errors over the seeds: accuracy, the same recalibrated, training loss, and ``growth``, the largest r^2 of a
    run over the initial one, averaged over the layers. ``PANEL_loss`` has the training loss after each epoch. Runs that
    diverged are counted and left out of the means. ``numbers`` are differences of means, see :func:`_numbers`.
    """
    found = {}
    with _folder() as folder:
        for name, (setting, values, base) in panels.items():
            configs = [
                evolve(base, **{setting: value}, constrain_norm=constrained, seed=seed)
                for constrained in NORMS.values()
                for value in values
                for seed in seeds
            ]
            found[name] = runs = sweep(configs, folder, executor, progress=True)
            if runs.status["failed"]:
                raise RuntimeError(f"panel {name}: {next(r.error for r in runs if r.status == 'failed')}")
    return figure4_of(panels, seeds, found)


def figure4_of(panels: Mapping[str, Panel], seeds: Sequence[int], found: Mapping[str, Sweep]) -> dict:
    """The same from runs that are done, a sweep for each panel; those that it lacks are left out of the means."""
    curves: dict[str, Any] = {}
    durations: dict[str, float] = {}
    data = None
    for name, (setting, values, _) in panels.items():
        durations |= {record.key: record.run.duration for record in found[name] if record.run}
        data = data or found[name].runs[0].data["train"]
        curves[name] = _final(found[name], setting, values)
        curves[f"{name}_loss"] = _course(found[name], setting, values)
    bases = {name: base.to_dict() for name, (_, _, base) in panels.items()}
    varied = {name: {setting: list(values)} for name, (setting, values, _) in panels.items()}
    return {
        "settings": {"base": bases, "varied": varied, "seeds": list(seeds)},
        "data": data,
        "curves": curves,
        "numbers": {
            **{name: _numbers(curves[name], varied[name]) for name in panels},
            "runs": {"count": len(durations), "training_seconds": round(sum(durations.values()), 1)},
        },
    }


@contextmanager
def _folder() -> Iterator[Path]:
    if os.environ.get(RUNS):
        yield Path(os.environ[RUNS])
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def _final(runs: Sweep, setting: str, values: Sequence[float]) -> dict:
    """What each setting reaches in the last epoch, over the seeds."""
    measures = {
        "accuracy": lambda run: run.epochs["test_accuracy"][-1],
        "recalibrated": lambda run: run.epochs["test_accuracy_recalibrated"][-1],
        "loss": lambda run: run.epochs["train_loss"][-1],
        "growth": lambda run: (run.records["filter_norm"].amax(0) / run.records["filter_norm"][0]).square().mean(),
    }
    panel: dict = {setting: list(values)}
    for name, constrained in NORMS.items():
        groups = [runs.where(constrain_norm=constrained, **{setting: value}) for value in values]
        panel[name] = {"diverged": [group.status["diverged"] for group in groups]}
        for short, measure in measures.items():
            ends = [[measure(run) for run in _finished(group)] for group in groups]
            panel[name][f"{short}_mean"], panel[name][f"{short}_sem"] = zip(*map(mean_and_error, ends), strict=True)
    return panel


def _course(runs: Sweep, setting: str, values: Sequence[float]) -> dict:
    """The training loss after each epoch, a list per value."""
    courses: dict = {"epoch": None, setting: list(values)}
    for name, constrained in NORMS.items():
        courses[name] = {"loss_mean": [], "loss_sem": []}
        for value in values:
            group = _finished(runs.where(constrain_norm=constrained, **{setting: value}))
            columns = zip(*(run.epochs["train_loss"] for run in group), strict=True)
            mean, error = zip(*map(mean_and_error, columns), strict=True) if group else ((), ())
            courses[name]["loss_mean"].append(mean)
            courses[name]["loss_sem"].append(error)
            courses["epoch"] = courses["epoch"] or (group[0].epochs["epoch"].tolist() if group else None)
    return courses


def _finished(runs: Sweep) -> list:
    return [record.run for record in runs if record.status == "finished"]


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard error; None where there are too few values."""
    x = torch.as_tensor([float(value) for value in values], dtype=torch.float64)
    mean = x.mean().item() if len(x) else None
    return mean, (x.std() / len(x) ** 0.5).item() if len(x) > 1 else None


def _numbers(panel: dict, varied: dict[str, list]) -> dict:
    """Free minus constrained, and each kind minus itself at the first value: what the chapter's checks look at."""
    numbers: dict = dict(varied)
    for key in ("accuracy", "recalibrated", "loss"):
        free, constrained = (panel[kind][f"{key}_mean"] for kind in NORMS)
        numbers[f"{key}_gap"] = _differences(free, constrained)
        for kind, means in zip(NORMS, (free, constrained), strict=True):
            numbers[f"{key}_change_{kind}"] = _differences(means, [means[0]] * len(means))
    return numbers


def _differences(a: Sequence[float | None], b: Sequence[float | None]) -> list[float | None]:
    return [None if x is None or y is None else x - y for x, y in zip(a, b, strict=True)]
