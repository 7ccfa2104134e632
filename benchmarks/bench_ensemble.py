"""An ensemble of tiny networks against a Python loop over them.

Both train full batches by `descend` with the same loss, and must end at the same weights. The target is for 32 members
of 10-16-16-1 on 32 samples; the other lines vary members, width and samples, up to where a single network is no longer
tiny and there is nothing left to save.
"""

from __future__ import annotations

import sys

import torch
from _timing import Report, compare, single_thread
from torch.nn.functional import mse_loss

import nlcompanion as nl

STEPS = 20


def contest(widths: tuple[int, ...], members: int, samples: int, **rounds) -> float:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, widths[0], generator=g, dtype=torch.float64)
    y = torch.randn(samples, widths[-1], generator=g, dtype=torch.float64)
    team = nl.ensemble(widths, "tanh", seeds=members)
    f = nl.flat_loss(team, x, y, nl.over_members(mse_loss))
    singles = [nl.flat_loss(nl.mlp(widths, "tanh", seed=seed), x, y, mse_loss) for seed in range(members)]
    rule, ends = nl.sgd(lr=0.05, momentum=0.9), {}

    def loop() -> int:
        ends["loop"] = torch.stack([nl.descend(rule, g, g.q0, steps=STEPS, every=STEPS).q[-1] for g in singles])
        return STEPS

    def ensemble() -> int:
        ends["ensemble"] = team.split(nl.descend(rule, f, f.q0, steps=STEPS, every=STEPS).q[-1])
        return STEPS

    timings = compare({"loop": loop, "ensemble": ensemble}, **rounds)
    apart = (ends["loop"] - ends["ensemble"]).abs().max()
    if not apart < 1e-12:
        raise RuntimeError(f"ensemble and loop end {apart:.1e} apart")
    shape = "-".join(map(str, widths))
    print(f"{members} of {shape}, {samples} samples, per step: {timings}")
    return timings.ratio("ensemble")


def main() -> int:
    single_thread()
    report = Report("Ensemble / Python loop, one step of heavy ball for all members")
    report.add("32 of 10-16-16-1, 32 samples", contest((10, 16, 16, 1), 32, 32, least=5), target=0.15)
    for widths, members, samples in (
        ((10, 16, 16, 1), 128, 32),
        ((10, 16, 16, 1), 512, 32),
        ((10, 4, 4, 1), 32, 32),
        ((10, 64, 64, 1), 32, 32),
        ((10, 16, 16, 1), 32, 128),
        ((10, 16, 16, 1), 32, 512),
    ):
        shape = "-".join(map(str, widths))
        ratio = contest(widths, members, samples, least=2, most=4, budget=3.0)
        report.add(f"{members} of {shape}, {samples} samples", ratio)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
