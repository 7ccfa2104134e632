"""What it costs to book every step of training, and how much of the machine a step uses.

Full-batch SGD with momentum on 1,000 synthetic images: the loop as PyTorch has it, with its charges noted at each step,
and with a `Ledger` that splits each step's change of each charge into causes; one charge per layer, or one per neuron.
The machine's own speed is that of a large matrix product.
"""

from __future__ import annotations

import itertools
import sys

import torch
from _digit_loop import IMAGES, Copies, DigitLoop
from _timing import Report, Timings, compare, single_thread
from torch.nn.functional import cross_entropy

import nlcompanion as nl

WIDTHS = {  # how many loops alike, their steps in a round, and how many rounds
    50: (4, 6, {"least": 5, "budget": 5.0}),
    200: (4, 4, {"least": 7, "budget": 20.0}),
    800: (1, 2, {"least": 5, "most": 5}),
}
PRODUCT = 1536  # side of the matrices whose product shows the machine's peak
BARE, PEAK = "bare loop", "matrix product"
CHARGES, CHARGES_EACH = "charges", "charges, per neuron"
LEDGER, LEDGER_EACH = "ledger", "ledger, per neuron"
WATCHES = (BARE, CHARGES, CHARGES_EACH, LEDGER, LEDGER_EACH)


class Loop(DigitLoop):
    """The loop, booked as ``watch`` says."""

    def __init__(self, width: int, dtype: torch.dtype, watch: str):
        super().__init__(width, dtype, WIDTHS[width][1])
        laws = nl.homogeneous_laws(nl.flat_loss(self.model, self.x[:1], self.y[:1], cross_entropy))
        totals = [law.total for law in laws]
        self.laws, self.charges = {CHARGES: totals, CHARGES_EACH: laws}.get(watch, []), []
        self.after = self.note if self.laws else None
        self.ledger = None
        if watch in (LEDGER, LEDGER_EACH):
            self.ledger = nl.Ledger(laws if watch == LEDGER_EACH else totals, self.model, self.optimizer, every=100)

    @torch.no_grad()
    def note(self) -> None:
        self.charges += [law.charge(self.model) for law in self.laws]


def operations(width: int) -> float:
    """Multiplications and additions of a step: each weight twice forward and twice backward, and twice more for what
    the layers before it need."""
    widths = (784, width, width, width, 10)
    weights = [a * b for a, b in itertools.pairwise(widths)]
    return 2.0 * IMAGES * (3 * sum(weights) - weights[0])


def measure(width: int, dtype: torch.dtype) -> Timings:
    a, b = torch.randn(2, PRODUCT, PRODUCT, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def product() -> int:
        a @ b
        return 1

    count, _, rounds = WIDTHS[width]

    def copies(watch: str) -> Copies:
        return Copies(lambda: Loop(width, dtype, watch), count)

    tasks = {watch: copies(watch) for watch in WATCHES}
    timings = compare({**tasks, PEAK: product}, control=copies(BARE), **rounds)
    for watch in (LEDGER, LEDGER_EACH):
        for loop in tasks[watch].loops:  # a fast ledger that books nothing, or wrongly, would be none
            loop.ledger.check()
    print(f"width {width}, {dtype}: {timings}")
    return timings


def main() -> int:
    single_thread()
    report = Report("A training step of 784-d-d-d-10 on 1,000 images, with its charges booked")
    for width in WIDTHS:
        for dtype in (torch.float32, torch.float64):
            timings, name = measure(width, dtype), f"d = {width}, {str(dtype).removeprefix('torch.')}"
            paper = width == 200
            for what, layers, neurons in (("charges", CHARGES, CHARGES_EACH), ("ledger", LEDGER, LEDGER_EACH)):
                ratios = timings.ratio(layers), timings.ratio(neurons)
                report.add(f"{name}: {what} of the layers / bare", ratios[0], target=1.05 if paper else None)
                report.add(f"{name}: {what} of all neurons / bare", ratios[1], target=1.10 if paper else None)
            peak = 2.0 * PRODUCT**3 / operations(width) / timings.ratio(PEAK)  # product's speed / bare step's
            report.add(f"{name}: matrix-product peak / bare step", peak, target=1 / 0.6 if paper else None)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
