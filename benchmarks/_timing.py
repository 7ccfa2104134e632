"""Ratios of running times, on a machine that may be doing other things.

Every task runs once per round, in a new random order, next to a copy of the baseline: what that copy's ratio to the
baseline differs from 1 is the noise of the whole run. Rounds go on while that is large.

The clock is the processor time of this one thread. On an idle machine that is the time on the wall; on a shared one it
leaves out the time in which a neighbour had the core.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

CONTROL = "the same again"
NOISE = 0.04  # a difference below this is none


@dataclass(frozen=True)
class Timings:
    """Seconds per unit of work: one number per round for each task, the rounds in step."""

    seconds: dict[str, list[float]]
    baseline: str

    def median(self, task: str) -> float:
        return statistics.median(self.seconds[task])

    def ratio(self, task: str, other: str | None = None) -> float:
        """The median over the rounds of one task's time by another's (the baseline's when not given)."""
        pairs = zip(self.seconds[task], self.seconds[other or self.baseline], strict=True)
        return statistics.median(a / b for a, b in pairs)

    @property
    def noise(self) -> float:
        return abs(self.ratio(CONTROL) - 1)

    def __str__(self) -> str:
        rounds = len(self.seconds[self.baseline])
        shown = ", ".join(f"{task} {_shown(self.median(task))}" for task in self.seconds if task != CONTROL)
        return f"{shown}; {rounds} rounds, {self.baseline} to itself {self.ratio(CONTROL):.3f}"


def compare(
    tasks: dict[str, Callable[[], int]],
    *,
    least: int = 3,
    most: int = 15,
    budget: float = 10.0,
    warm: bool = True,
    clock: Callable[[], float] = time.process_time,
    control: Callable[[], int] | None = None,
    seed: int = 0,
) -> Timings:
    """Time tasks against the first of them.

    Args:
        tasks: functions that do some work and return how many units of it (calls, runs); the first is the baseline.
        least, most: rounds to take; beyond ``least``, they end when the noise is below ``NOISE`` / 2.
        budget: seconds on the wall after which noise below ``NOISE`` will do.
        warm: whether to run each task once beforehand, since first calls allocate and import.
        clock: processor time; ``time.perf_counter`` where the work is done in other processes.
        control: the same work as the baseline's, on tensors of its own; the baseline itself if not given.
        seed: of the order of the tasks.
    """
    baseline = next(iter(tasks))
    tasks = {**tasks, CONTROL: control or tasks[baseline]}
    timings = Timings({name: [] for name in tasks}, baseline)
    order, shuffle = list(tasks), random.Random(seed).shuffle
    if warm:
        for run in set(tasks.values()):
            run()
    begin = time.perf_counter()
    for count in range(most):
        late = time.perf_counter() > begin + budget
        if count >= least and timings.noise < (NOISE if late else NOISE / 2):
            break
        shuffle(order)
        for name in order:
            start = clock()
            units = tasks[name]()
            timings.seconds[name].append((clock() - start) / units)
    return timings


class Report:
    """The lines a benchmark ends with: one per ratio, and 1 as the exit status if a target was missed."""

    def __init__(self, title: str):
        print(f"{title}\n{_machine()}\n")
        self.rows: list[tuple[str, float, float | None]] = []

    def add(self, name: str, ratio: float, *, target: float | None = None) -> None:
        """A ratio, and what it must not exceed."""
        self.rows.append((name, ratio, target))

    def finish(self) -> int:
        width = max(len(name) for name, *_ in self.rows)
        missed = 0
        print()
        for name, ratio, target in self.rows:
            line = f"{name:{width}}  {ratio:.3g}"
            if target is not None:
                missed += ratio > target
                line += f"   target <= {target:.3g}: {'missed' if ratio > target else 'met'}"
            print(line)
        return 1 if missed else 0


def single_thread() -> None:
    """One thread for torch and NumPy alike, the way the book's notebooks and tests run."""
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    torch.set_flush_denormal(True)


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
