"""What it costs to watch every step of training, or every 20th as a `Monitor` does unless it is told otherwise.

Full-batch SGD with momentum on 1,000 synthetic images, as in `bench_training_step`: the loop as PyTorch has it, and
with a `Monitor` beside it that has found the laws of the layers by itself.
"""

from __future__ import annotations

import sys

import torch
from _digit_loop import Copies, DigitLoop
from _timing import Report, Timings, compare, single_thread

import nlcompanion as nl

WIDTHS = {  # how many loops alike, and how many rounds
    50: (4, {"least": 5, "budget": 8.0}),
    200: (4, {"least": 5, "budget": 20.0}),
    800: (1, {"least": 3, "most": 3}),
}
STEPS = 20  # of a loop in a round: one of them is watched at the default stride
BARE, DEFAULT, EACH = "bare loop", "every 20th step", "every step"
STRIDES = {DEFAULT: 20, EACH: 1}


class Loop(DigitLoop):
    """The loop, watched at a stride."""

    def __init__(self, width: int, dtype: torch.dtype, watch: str):
        super().__init__(width, dtype, STEPS)
        self.monitor = None
        if watch in STRIDES:
            self.monitor = nl.Monitor(self.model, self.optimizer, every=STRIDES[watch])


def measure(width: int, dtype: torch.dtype) -> Timings:
    count, rounds = WIDTHS[width]

    def copies(watch: str) -> Copies:
        return Copies(lambda: Loop(width, dtype, watch), count)

    tasks = {watch: copies(watch) for watch in (BARE, DEFAULT, EACH)}
    timings = compare(tasks, control=copies(BARE), **rounds)
    watched = [loop.monitor for watch in STRIDES for loop in tasks[watch].loops]
    for monitor in watched:  # a fast monitor that watches nothing, or is wrong, would be none
        assert len(monitor.laws) == 3, monitor.notes
        assert not monitor.alerts, monitor.alerts
        assert monitor.stopped is None, monitor.stopped
    print(f"width {width}, {dtype}: {timings}")
    return timings


def main() -> int:
    single_thread()
    report = Report("A training step of 784-d-d-d-10 on 1,000 images, watched by a monitor")
    for width in WIDTHS:
        for dtype in (torch.float32, torch.float64):
            timings, name = measure(width, dtype), f"d = {width}, {str(dtype).removeprefix('torch.')}"
            paper = width == 200
            report.add(
                f"{name}: monitor at its default stride / bare", timings.ratio(DEFAULT), target=1.02 if paper else None
            )
            report.add(f"{name}: monitor at every step / bare", timings.ratio(EACH), target=1.05 if paper else None)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
