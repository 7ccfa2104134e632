"""TK's two figures of VGG-11 on Tiny ImageNet, on one GPU in a quarter of an hour: Fig. 2 (b) and Fig. 4.

.. code-block:: text

    python -m studies.tiny_imagenet measure FOLDER --seconds 600    # on a GPU: what FOLDER lacks, in order
    python -m studies.tiny_imagenet store FOLDER                    # anywhere: into book/results

A fifth of the training images and three tenths of the epochs of the paper, its schedule scaled; all of the test images.
Every run is a file of FOLDER as soon as it is done, and ``store`` takes what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from nlcompanion.book import results
from nlcompanion.datasets import Dataset, tiny_imagenet
from nlcompanion.training import Sweep, TrainConfig, sweep, train
from nlcompanion.training.sweeps import records
from nlcompanion.training.sweeps import store as files
from nlcompanion.training.sweeps.workers import Workers
from studies._filters import FilterWatch, judge
from studies._tiny_imagenet_figures import FIGURE_2B, FIGURE_4, draw_figure2b, draw_figure4
from studies.implicit_adaptivity import NORMS, Panel, figure4_of

__all__ = ["FIGURE_2B", "FIGURE_4", "Size", "draw_figure2b", "draw_figure4", "measure", "panels", "store"]

SEEDS = (0, 1)
_NOTES, _RECORDS, _EVALUATIONS = 52, 60, 6  # of a run: notes along every filter, records, evaluations
_SHOWN = (0.1, 0.5, 0.9)  # filters of a layer whose curves are kept: by the quantile of their final length


@dataclass(frozen=True)
class Size:
    """How large the study is; the defaults are what is stored."""

    images: int = 20_000
    epochs: int = 30  # of Fig. 4
    epochs_2b: int = 10
    batch_size: int = 128
    width: float = 1.0
    device: str = "cuda"
    test_images: int = 10_000
    compiled: bool = True

    def base(self, **settings) -> TrainConfig:
        """TK's experiment (SI E), in bfloat16 products: batches of 128, momentum 0.9, decay 1e-4, step size 0.1."""
        rest: dict[str, Any] = {"subset": self.images, "batch_size": self.batch_size}
        rest |= {"width": self.width, "device": self.device}
        return TrainConfig(
            **{"dataset": "tiny_imagenet", "model": "vgg11", "epochs": self.epochs, "precision": "bf16", **rest}
            | settings
        )


# --- what is run --------------------------------------------------------------------------------------------------


def figure2b_configs(size: Size) -> dict[str, TrainConfig]:
    """From q0 and from 2 q0, at a step size where the lengths move slowly and at the paper's."""
    precision = "float32" if size.device == "cpu" else "tf32"  # a gradient's direction to three digits and more
    base = size.base(epochs=size.epochs_2b, lr_drops=(), precision=precision)
    return {
        f"lr_{lr:g}_scale_{scale:g}": evolve(base, lr=lr, init_scale=scale)
        for lr in (0.01, 0.1)
        for scale in (1.0, 2.0)
    }


def panels(size: Size) -> dict[str, Panel]:
    """The panels of Fig. 4 in order of their weight: A at constant rates, C and B with the paper's drops."""
    base = size.base()
    return {
        "a": ("lr", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), evolve(base, lr_drops=())),
        "c": ("weight_decay", (0.0, 1e-4, 3e-4, 1e-3, 3e-3), base),
        "b": ("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98), base),
    }


def figure4_configs(size: Size) -> list[TrainConfig]:
    """All runs of Fig. 4, panel by panel, a whole panel with the first seed before any with the second."""
    chosen = [
        evolve(base, **{setting: value}, constrain_norm=constrained, seed=seed)
        for setting, values, base in panels(size).values()
        for seed in SEEDS
        for value in values
        for constrained in NORMS.values()
    ]
    return list({config.key: config for config in chosen}.values())


@cache
def _data(images: int, test_images: int) -> tuple[Dataset, Dataset]:
    return tiny_imagenet("train", per_class=-(-images // 200)), tiny_imagenet("val").first(test_images)


# --- running it ---------------------------------------------------------------------------------------------------


def measure(folder: Path, size: Size, seconds: float, workers: int = 4) -> None:
    """Do what the folder lacks, until the time is up: Fig. 2 (b) first, then the panels of Fig. 4.

    Several runs share the GPU, each in a process of its own, so that one trains while another is being set up. No run
    is begun that would not end in time, judged by the longest one so far.
    """
    _data(size.images, size.test_images)  # decoded once, before several processes want it
    until = time.time() + seconds
    todo: list[tuple[Any, ...]] = [
        (_course, size, folder, name, config) for name, config in figure2b_configs(size).items()
    ]
    todo += [(_run, size, folder, config.key, config) for config in figure4_configs(size)]
    with Workers(workers) as pool:
        futures = {pool.submit(_in_time, until, task): _label(task[3], task[4]) for task in todo}
        for future in as_completed(futures):
            error = future.exception()
            outcome = future.result() if error is None else f"failed: {error!r}"
            print(f"{time.time() - until:+7.1f} s  {futures[future]}  {outcome}", flush=True)


def _label(name: str, config: TrainConfig) -> str:
    kind = "constrained" if config.constrain_norm else "free"
    return f"{name} {kind} lr={config.lr:g} momentum={config.momentum:g} decay={config.weight_decay:g}"


_longest = 0.0  # seconds of a task in this process


def _in_time(until: float, task: tuple) -> str:
    global _longest
    begin = time.time()
    if begin + _longest > until:
        return "no time left"
    work, size, folder, name, config = task
    torch.set_num_threads(1)
    said = work(size, folder, name, config)
    if said != "there":
        _longest = max(_longest, time.time() - begin)
        if size.device != "cpu":
            torch.cuda.empty_cache()
    return f"{said}, {time.time() - begin:.1f} s"


def _course(size: Size, folder: Path, name: str, config: TrainConfig) -> str:
    """A run of Fig. 2 (b) with every filter watched."""
    path = folder / f"course_{name}.pt"
    if path.exists():
        return "there"
    steps = config.epochs * config.steps_per_epoch(size.images)
    watch = FilterWatch(config, every=-(-steps // _NOTES))
    run = train(
        config,
        data=_data(size.images, size.test_images),
        watch=watch,
        stride=max(1, steps // 400),
        progress=False,
    )
    content: dict[str, Any] = {"name": name, "run": json.dumps(records.content_of(run))}
    if run.status == "finished" and run.model is not None:
        content["course"] = watch.course(run.model, run.steps)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return f"{run!r} in {run.duration:.1f} s"


def _run(size: Size, folder: Path, key: str, config: TrainConfig) -> str:
    """A run of Fig. 4, in the file of a sweep."""
    if (folder / f"{key}.json").exists():
        return "there"
    steps = config.epochs * config.steps_per_epoch(size.images)
    run = train(
        config,
        data=_data(size.images, size.test_images),
        compiled=size.compiled,
        stride=max(1, steps // _RECORDS),
        evaluate_every=max(1, config.epochs // _EVALUATIONS),
        progress=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    files.store(folder, records.content_of(run))
    return f"{run!r} in {run.duration:.1f} s"


# --- into book/results --------------------------------------------------------------------------------------------


def store(folder: Path, size: Size, where: Path | None = None) -> list[Path]:
    """Write a result for each of the two figures that the folder has runs of."""
    made = []
    courses = [torch.load(path, weights_only=True) for path in sorted(folder.glob("course_*.pt"))]
    if courses:
        made.append(
            _write(FIGURE_2B, "TK Fig. 2 (b): VGG-11 on Tiny ImageNet from q0 and 2 q0", figure2b(courses), where)
        )
    if list(folder.glob("*.json")):
        title = "TK Fig. 4: VGG-11 on 20,000 images of Tiny ImageNet, 30 epochs, free and constrained norm"
        made.append(_write(FIGURE_4, title, figure4(folder, size), where))
    return made


def figure2b(courses: Iterable[Mapping]) -> dict:
    """What is stored of Fig. 2 (b): losses, verdicts per layer, curves of some filters, final lengths of all."""
    curves, numbers, settings, about, environment = {}, {}, {}, None, {}
    for content in courses:
        name, run = content["name"], json.loads(content["run"])
        config = TrainConfig.from_dict(run["config"])
        settings[name] = config.to_dict()
        about, environment[name] = run["run"]["data"]["train"], run["provenance"]
        numbers[name] = {"status": run["status"], "steps": run["run"]["steps"]}
        curves[name] = {"loss": _smooth(run["run"]["records"])}
        if "course" in content:
            numbers[name]["layers"] = judge(content["course"], config)
            numbers[name]["test_accuracy"] = run["run"]["epochs"]["test_accuracy"][-1]
            curves[name] |= _shown(content["course"])
    return {"settings": settings, "data": about, "curves": curves, "numbers": numbers, "made": environment}


def _smooth(found: Mapping[str, Sequence], parts: int = 100) -> dict:
    """The mini-batch losses, averaged over neighbours."""
    loss, step = (torch.tensor(found[name], dtype=torch.float64) for name in ("loss", "step"))
    groups = [(s.mean().item(), x.mean().item()) for s, x in zip(step.chunk(parts), loss.chunk(parts), strict=True)]
    return dict(zip(("step", "loss"), map(list, zip(*groups, strict=True)), strict=True))


def _shown(course: Mapping) -> dict:
    """r^2 of three filters of each layer as measured and by the laws, and of all filters at the end."""
    shown: dict = {"step": course["step"].tolist(), "filters": {}, "final": {}}
    start = 0
    for layer, count in course["layers"].items():
        own = slice(start, start := start + count)
        found = {name: course[name][:, own] for name in ("r_squared", "persistent", "white", "averaged")}
        order = found["r_squared"][-1].argsort()
        chosen = order[[min(count - 1, int(part * count)) for part in _SHOWN]]
        shown["filters"][layer] = {name: _four(values[:, chosen].T) for name, values in found.items()}
        shown["final"][layer] = {name: _four(values[-1]) for name, values in found.items() if name != "white"}
    return shown


def _four(x: torch.Tensor):
    """As lists of numbers of four digits."""
    return [_four(row) for row in x] if x.ndim > 1 else [float(f"{value:.4g}") for value in x.tolist()]


def figure4(folder: Path, size: Size) -> dict:
    """What is stored of Fig. 4: the panels of which every setting has a run, as the study on the digits has them."""
    found = {}
    for name, (setting, values, base) in panels(size).items():
        configs = [
            evolve(base, **{setting: value}, constrain_norm=constrained, seed=seed)
            for constrained in NORMS.values()
            for value in values
            for seed in SEEDS
        ]
        runs = sweep(configs, folder, run=False)
        ended = [any(record.run for record in group) for group in runs.by(setting, "constrain_norm").values()]
        if all(ended):
            found[name] = runs
    if not found:
        raise results.ResultError(f"{folder} has no whole panel of Fig. 4; call measure again, with more seconds")
    content = figure4_of({name: panels(size)[name] for name in found}, SEEDS, found)
    content["settings"]["seeds"] = {name: _seeds(runs) for name, runs in found.items()}
    some = next(record for runs in found.values() for record in runs if record.run)
    return {**content, "made": {some.key: dict(some.provenance)}}


def _seeds(runs: Sweep) -> list[int]:
    """Those with which every setting was run."""
    return [seed for seed in SEEDS if all(record.run for record in runs.where(seed=seed))]


def _write(name: str, title: str, content: dict, where: Path | None) -> Path:
    """With the provenance of the runs, not of the machine that stores them."""
    runs = list(content.pop("made").values())
    kept = ("nlcompanion", "torch", "numpy", "scipy", "python", "platform", "device", "threads", "made")
    provenance = {key: runs[0][key] for key in kept if key in runs[0]}
    empty: dict[str, Any] = {"settings": {}, "data": None, "curves": {}, "numbers": {}}
    return results.write(name, {"name": name, "title": title, **empty, **content, "provenance": provenance}, where)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.tiny_imagenet", description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("measure", "store"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no run that would end later")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time")
    parser.add_argument("--where", type=Path, help="where to store (default: book/results)")
    options = parser.parse_args(arguments)
    if options.action == "measure":
        measure(options.folder, Size(), options.seconds, options.workers)
    else:
        for path in store(options.folder, Size(), options.where):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    # the workers import what they run, and under -m this file has no name to import it by
    from studies import tiny_imagenet as this

    raise SystemExit(this.main())
