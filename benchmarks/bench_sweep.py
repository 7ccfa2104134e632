"""A sweep of short runs: with one and with two worker processes, and what it adds to the training itself.

Runs of a tenth of a second, far shorter than real ones, so that files, checkpoints and locks weigh as much as they can.
Workers are warm: each costs an import of torch once, some seconds, which the figure leaves out. With worker processes
the time is that on the wall, so a busy machine shows in it; one that has a single free core gains nothing from the
second worker.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from _timing import Report, compare, single_thread

from nlcompanion import TrainConfig, sweep
from nlcompanion.training import train
from nlcompanion.training.sweeps.workers import Workers

CONFIGS = [TrainConfig(epochs=5, subset=128, batch_size=32, seed=seed) for seed in range(4)]


def fresh(executor) -> int:
    """A sweep in an empty folder: how many runs it did."""
    with tempfile.TemporaryDirectory() as folder:
        return len(sweep(CONFIGS, folder, executor).runs)


def main() -> int:
    single_thread()
    report = Report("Sweeps of short runs")
    with Workers(1) as one, Workers(2) as two, tempfile.TemporaryDirectory() as folder:
        tasks = {"1 worker": lambda: fresh(one), "2 workers": lambda: fresh(two)}
        timings = compare(tasks, budget=15.0, most=9, clock=time.perf_counter)
        print(timings)
        report.add("2 workers / 1 worker, time on the wall", timings.ratio("2 workers"))

        stored = Path(folder) / "stored"
        sweep(CONFIGS, stored)
        tasks = {
            "train": lambda: len([train(config, progress=False) for config in CONFIGS]),
            "sweep": lambda: fresh(None),
            "sweep again": lambda: len(sweep(CONFIGS, stored)),
        }
        timings = compare(tasks, budget=10.0, most=7)
        print(timings)
        report.add("in this process: sweep / the same calls of train", timings.ratio("sweep"))
        report.add("all runs stored: sweep / the same calls of train", timings.ratio("sweep again"))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
