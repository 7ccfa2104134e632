"""Tiny networks against diffrax, compiled and vmapped: ensembles of flows and descents, and the first trajectory.

Both integrate to the same end: `integrate` with DOP853 at a tolerance of 1e-8, diffrax with Dopri8 at the loosest of
its tolerances that is no less accurate, judged against a run at 1e-12. Its compilation's time is printed beside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from environment import PYTHON
from peer import HERE, ONE_THREAD, Peer, Report, compare, single_thread
from torch.nn.functional import mse_loss

import nlcompanion as nl

WIDTHS, T, STEPS = (10, 11, 11, 1), 20.0, 200
SHAPES = [[out, into] for into, out in pairwise(WIDTHS)]
MEMBERS = (1, 8, 64)
FIRST_OURS = """
import torch
import nlcompanion as nl
torch.set_num_threads(1)
x = torch.linspace(-1, 1, 1000, dtype=torch.float64).view(100, 10)
f = nl.flat_loss(nl.mlp((10, 11, 11, 1), "tanh"), x, torch.sin(3 * x[:, :1]), torch.nn.functional.mse_loss)
run = nl.integrate(nl.gradient_flow(), f, f.q0, t_span=(0, 20), rtol=1e-8, atol=1e-8)
assert run.q.isfinite().all()
"""
FIRST_THEIRS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import with_diffrax
x = np.linspace(-1, 1, 1000).reshape(100, 10)
q = np.random.default_rng(0).uniform(-0.3, 0.3, 242)
np.savez(sys.argv[2], x=x, y=np.sin(3 * x[:, :1]), q=q)
with_diffrax.make("flow", sys.argv[2], [[11, 10], [11, 11], [1, 11]], "flow", t1=20.0, tolerance=1e-8)
with_diffrax.run("flow")
assert np.isfinite(with_diffrax.end("flow")).all()
"""


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 10, generator=g, dtype=torch.float64)
    return x, torch.sin(x @ torch.randn(10, 1, generator=g, dtype=torch.float64))


class Contest:
    """An ensemble here and its starts there."""

    def __init__(self, peer: Peer, members: int):
        self.peer, self.members = peer, members
        x, y = data()
        self.team = nl.ensemble(WIDTHS, "tanh", seeds=members, init="lecun")
        self.f = nl.flat_loss(self.team, x, y, nl.over_members(mse_loss))
        self.starts = self.team.split(self.f.q0)
        self.file = peer.arrays(f"{members}", x=x.numpy(), y=y.numpy(), q=self.starts.numpy())

    def flow(self, tolerance: float) -> torch.Tensor:
        span = {"t_span": (0.0, T), "rtol": tolerance, "atol": tolerance}
        run = nl.integrate(nl.gradient_flow(), self.f, self.f.q0, **span, record=lambda t, q, v: {})
        return self.team.split(run.q[-1])

    def descent(self) -> torch.Tensor:
        rule = nl.sgd(lr=0.05, momentum=0.9)
        return self.team.split(nl.descend(rule, self.f, self.f.q0, steps=STEPS, every=STEPS).q[-1])

    def theirs(self, kind: str, **settings) -> tuple[str, float, torch.Tensor]:
        """A compiled solver's name, the seconds that its first call took, and where it ends."""
        name = f"{kind} {self.members} {settings}"
        self.peer("make", name=name, data=self.file, shapes=SHAPES, kind=kind, **settings)
        before = self.peer.clock()
        self.peer("run", name=name)
        took = self.peer.clock() - before
        return name, took, torch.tensor(self.peer("end", name=name), dtype=torch.float64)

    def time(self, ours, name: str, took: float, report: Report, label: str, target: float | None) -> None:
        def run() -> int:
            ours()
            return self.members

        timings = compare(
            {"diffrax": lambda: self.peer("run", name=name), "ours": run}, clock=self.peer.clock, least=5, budget=8.0
        )
        print(f"{label}, per solve: {timings}; the first call there took {took:.1f} s")
        report.add(f"{label}: ours / diffrax vmapped and compiled, per solve", timings.ratio("ours"), target=target)


def flows(peer: Peer, report: Report, members: int, target: float | None) -> None:
    contest = Contest(peer, members)
    exact = contest.flow(1e-12)
    bound = (contest.flow(1e-8) - exact).abs().max()
    for tolerance in (1e-7, 1e-8, 1e-9, 1e-10):
        name, took, ends = contest.theirs("flow", t1=T, tolerance=tolerance)
        error = (ends - exact).abs().max()
        if error <= bound:
            break
    else:
        raise RuntimeError(f"diffrax does not reach {bound:.1e}")
    print(f"{members} flows: error {bound:.1e} at 1e-8, diffrax's {error:.1e} at {tolerance:.0e}")
    contest.time(lambda: contest.flow(1e-8), name, took, report, f"{members} flows", target)


def descents(peer: Peer, report: Report, members: int, target: float | None) -> None:
    contest = Contest(peer, members)
    name, took, ends = contest.theirs("descent", steps=STEPS, lr=0.05, momentum=0.9)
    apart = (ends - contest.descent()).abs().max()
    if not apart < 1e-9:
        raise RuntimeError(f"the descents end {apart:.1e} apart")
    contest.time(contest.descent, name, took, report, f"{members} descents of {STEPS} steps", target)


def first_trajectory(report: Report) -> None:
    """From the start of an interpreter to the end of one flow: on the wall, of the children alone."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = [PYTHON, "-c", FIRST_THEIRS, HERE, Path(folder) / "data.npz"]

        def run(command: list, extra: dict[str, str]):
            def task() -> int:
                subprocess.run(command, check=True, env={**os.environ, **extra})
                return 1

            return task

        tasks = {"diffrax": run(theirs, ONE_THREAD), "ours": run([sys.executable, "-c", FIRST_OURS], {})}
        timings = compare(tasks, clock=_children, least=3, most=5, budget=60.0)
    print(f"first trajectory, process start included: {timings}")
    report.add(
        "first trajectory of a tiny flow: ours / diffrax, process start included", timings.ratio("ours"), target=0.3
    )


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system if os.name != "nt" else time.perf_counter()


def main() -> int:
    single_thread()
    report = Report("Tiny networks against diffrax, " + "-".join(map(str, WIDTHS)) + ", 100 samples")
    with Peer("with_diffrax") as peer:
        for members in MEMBERS:
            target = 3.0 if members == max(MEMBERS) else None
            descents(peer, report, members, target)
            flows(peer, report, members, target)
    first_trajectory(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
