"""The long runs behind the chapter on implicit adaptivity (private): TK Fig. 4, at any size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from nlcompanion.results import result
from nlcompanion.training import Sweep, TrainConfig, sweep

RUNS = "NLCOMPANION_RUNS"  # a folder in which unfinished sweeps are kept, so that the next call goes on with them
NORMS = {"free": False, "constrained": True}

Panel = tuple[str, Sequence[float], TrainConfig]  # the setting that varies, its values, and the rest


@result("TK Fig. 4 on digits: free and constrained filter norm against step size, momentum and decay")
def tk_fig4_digits() -> dict:
    base = TrainConfig(dataset="digits", model="conv_bn", batch_size=64, epochs=15, lr=0.1, momentum=0.9)
    constant = replace(base, lr_drops=())
    panels: dict[str, Panel] = {
        "a": ("lr", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), constant),
        "b": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), base),
        "b_constant": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), constant),
        "c": ("weight_decay", (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 3e-2), base),
    }
    return figure4(panels, seeds=range(6))


def figure4(panels: Mapping[str, Panel], seeds: Sequence[int], executor: Executor | int | None = None) -> dict:
    """TK Fig. 4 for any data set and network: final accuracies and losses, and the losses epoch by epoch.

    Under ``curves`` stand, for each panel, the values of what varies and for both kinds of filter norm the means and
    standard errors over the seeds; ``PANEL_loss`` has the training loss after each epoch. Runs that diverged are
    counted and left out of the means.
    """
    with _folder() as folder:
        curves = {}
        for name, (setting, values, base) in panels.items():
            configs = [
                replace(base, **{setting: value}, constrain_norm=constrained, seed=seed)
                for constrained in NORMS.values()
                for value in values
                for seed in seeds
            ]
            runs = sweep(configs, folder, executor, progress=True)
            if runs.status["failed"]:
                raise RuntimeError(f"panel {name}: {next(r.error for r in runs if r.status == 'failed')}")
            curves[name] = _final(runs, setting, values)
            curves[f"{name}_loss"] = _course(runs, setting, values)
    bases = {name: base.to_dict() for name, (_, _, base) in panels.items()}
    varied = {name: {setting: list(values)} for name, (setting, values, _) in panels.items()}
    return {
        "settings": {"base": bases, "varied": varied, "seeds": list(seeds)},
        "data": runs.runs[0].data["train"],
        "curves": curves,
        "numbers": {name: _gaps(curves[name], varied[name]) for name in panels},
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
    columns = {"accuracy": "test_accuracy", "recalibrated": "test_accuracy_recalibrated", "loss": "train_loss"}
    panel: dict = {setting: list(values)}
    for name, constrained in NORMS.items():
        groups = [runs.where(constrain_norm=constrained, **{setting: value}) for value in values]
        panel[name] = {"diverged": [group.status["diverged"] for group in groups]}
        for short, column in columns.items():
            ends = [[run.epochs[column][-1] for run in _finished(group)] for group in groups]
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


def _gaps(panel: dict, varied: dict[str, list]) -> dict:
    """Free minus constrained, in the order of the values: what the chapter's checks look at."""
    free, constrained = panel["free"], panel["constrained"]
    gap = lambda key: [  # noqa: E731
        None if None in pair else pair[0] - pair[1] for pair in zip(free[key], constrained[key], strict=True)
    ]
    return {**varied, **{f"{key}_gap": gap(f"{key}_mean") for key in ("accuracy", "recalibrated", "loss")}}
