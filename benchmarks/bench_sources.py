"""What it costs to read the sources of activations that have no symmetry: hooks at every GELU of a training loop.

Full-batch SGD with momentum on 1,000 synthetic images, as in `bench_training_step`, through a network of GELUs: the
loop as PyTorch has it, with the hooks alone, which add up one source for each neuron, and with a `Ledger` that books
the laws with these sources.
"""

from __future__ import annotations

import sys

import torch
from _digit_loop import Copies, DigitLoop
from _timing import Report, Timings, compare, single_thread
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion.monitoring.sources import SourceReader

STEPS = {50: 10, 200: 5, 800: 5}
BARE, HOOKS, LEDGER = "bare loop", "hooks alone", "ledger"


class Loop(DigitLoop):
    """The loop, and what listens to it."""

    def __init__(self, width: int, watch: str):
        super().__init__(width, torch.float32, STEPS[width], activation="gelu")
        self.ledger = None
        if watch == BARE:
            return
        found = nl.audit(self.model, self.x[:64], self.y[:64], cross_entropy).laws
        laws = [law for law in found if law.sources]
        assert len(laws) == 3, laws
        if watch == LEDGER:
            self.ledger = nl.Ledger(laws, self.model, self.optimizer)
        else:
            sources = [source for law in laws for source in law.sources]
            self.after = SourceReader(self.model, sources, next(self.model.parameters())).take


def measure(width: int) -> Timings:
    def copies(watch: str) -> Copies:
        return Copies(lambda: Loop(width, watch), 1 if width > 200 else 4)

    tasks = {watch: copies(watch) for watch in (BARE, HOOKS, LEDGER)}
    timings = compare(tasks, least=5, budget=12.0, control=copies(BARE))
    for loop in tasks[LEDGER].loops:
        loop.ledger.check()  # books that do not balance would be none
    print(f"width {width}: {timings}")
    return timings


def main() -> int:
    single_thread()
    report = Report("A training step of 784-d-d-d-10 with GELU on 1,000 images, with the sources of its laws read")
    for width in STEPS:
        timings = measure(width)
        report.add(f"d = {width}: hooks / bare", timings.ratio(HOOKS))
        report.add(f"d = {width}: ledger with the hooks / bare", timings.ratio(LEDGER))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
