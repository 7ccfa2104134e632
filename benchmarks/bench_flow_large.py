"""What `integrate` adds to the gradients it cannot do without, from 200 to a million parameters.

DOP853 with charges recorded at each step, on networks of the paper's shape with 1,000 synthetic images, against the
same number of bare PyTorch gradients, and per call against torchdiffeq's dopri5 (which records nothing).
"""

from __future__ import annotations

import sys

import torch
from _timing import Report, Timings, compare, single_thread
from _torchdiffeq import Motion
from torch.nn.functional import cross_entropy

import nlcompanion as nl

IMAGES = 1000
PAPER = (784, 200, 200, 200, 10)
GROWTH = {  # widths, time of gradient flow, rounds: some 40 calls for the largest, a hundred for the others
    "10^2": ((10, 8, 8, 10), 20.0, {"least": 5, "budget": 3.0}),
    "10^4": ((64, 96, 32, 10), 8.0, {"least": 5, "budget": 4.0}),
    "10^6": ((784, 800, 400, 200, 10), 1.0, {"least": 2, "most": 2, "warm": False}),  # 10 s a round
}
TOLERANCES = {"rtol": 1e-6, "atol": 1e-9}


def problem(widths: tuple[int, ...]):
    """Sparse non-negative inputs, as pixels are; squared ReLUs, smooth enough for an eighth-order method."""
    g = torch.Generator().manual_seed(0)
    ink = torch.rand(IMAGES, widths[0], generator=g) < 0.2
    x = ink * torch.rand(IMAGES, widths[0], generator=g, dtype=torch.float64)
    y = torch.randint(widths[-1], (IMAGES,), generator=g)
    model = nl.mlp(widths, nl.RePU(2), init="kaiming")
    return model, x, y, nl.flat_loss(model, x, y, cross_entropy)


def measure(widths: tuple[int, ...], rule: nl.LearningRule, t1: float, **rounds) -> Timings:
    model, x, y, f = problem(widths)
    parameters = list(model.parameters())
    layers, repeats = list(f.slices.values()), 50 if len(f) < 1e5 else 5

    def gradients() -> int:
        for _ in range(repeats):
            torch.autograd.grad(cross_entropy(model(x), y), parameters)
        return repeats

    def charges(t, q, v) -> dict:
        """|W_k|^2 - 2 |W_k+1|^2 of each pair of layers, which gradient flow conserves."""
        norms = [q[layer] @ q[layer] for layer in layers]
        return {f"{k}": norms[k] - 2 * norms[k + 1] for k in range(len(norms) - 1)}

    def flow() -> int:
        run = nl.integrate(rule, f, f.q0, v0, t_span=(0, t1), record=charges, **TOLERANCES)
        drift = max((c - c[0]).abs().max().item() for c in run.record.values())
        if rule.massless and not drift < 1e-4:
            raise RuntimeError(f"the charges drift by {drift:.2g}: this is not the flow")
        return run.nfev

    v0 = None if rule.massless else torch.zeros(len(f), dtype=torch.float64)
    motion = Motion(rule, f, f.q0)

    def rival() -> int:
        motion.solve((0.0, t1), method="dopri5", **TOLERANCES)
        return motion.calls

    timings = compare({"bare gradient": gradients, "integrate": flow, "torchdiffeq": rival}, **rounds)
    print(f"{len(f):9,} parameters, {rule.name}, per call: {timings}")
    return timings


def main() -> int:
    single_thread()
    report = Report("Flows of networks on 1,000 images: DOP853 with charges recorded")
    overhead, rivalry = "integrate / (calls x gradient)", "integrate / torchdiffeq dopri5, per call"
    for size, (widths, t1, rounds) in GROWTH.items():
        timings = measure(widths, nl.gradient_flow(), t1, **rounds)
        report.add(f"{size} parameters: {overhead}", timings.ratio("integrate"))
        report.add(f"{size} parameters: {rivalry}", timings.ratio("integrate", "torchdiffeq"))
    timings = measure(PAPER, nl.sgd(lr=0.1, momentum=0.9), 1.0, least=2, most=2, warm=False)
    report.add(f"784-200-200-200-10 with momentum: {overhead}", timings.ratio("integrate"))
    report.add(f"784-200-200-200-10 with momentum: {rivalry}", timings.ratio("integrate", "torchdiffeq"))
    timings = measure(PAPER, nl.gradient_flow(), 5.0, least=4, warm=False)
    report.add(f"784-200-200-200-10: {overhead}", timings.ratio("integrate"), target=1.20)
    report.add(f"784-200-200-200-10: {rivalry}", timings.ratio("integrate", "torchdiffeq"), target=0.85)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
