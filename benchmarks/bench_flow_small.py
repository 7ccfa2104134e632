"""`integrate` on a network of 242 parameters against torchdiffeq's dopri8, at no larger an error.

The job is a trajectory: points at 100 times, as one draws it or checks a law along it. `integrate` runs at a tolerance
of 1e-8. torchdiffeq gets the cheapest of its settings that is at least as accurate: a ladder of tolerances, each with
and without making its steps end on the reported times. Both call the same loss, and both have 100 points to deliver.
"""

from __future__ import annotations

import sys
from bisect import bisect

import torch
from _timing import Report, compare, single_thread
from _torchdiffeq import Motion
from torch.nn.functional import mse_loss

import nlcompanion as nl

T = 20.0
TRAJECTORY = torch.linspace(0, T, 101, dtype=torch.float64)[1:].tolist()
LADDER = [10.0 ** (-k / 2) for k in range(10, 25)]  # 1e-5 to 1e-12


def problem() -> nl.FlatLoss:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 10, generator=g, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(10, 1, generator=g, dtype=torch.float64))
    return nl.flat_loss(nl.mlp((10, 11, 11, 1), "tanh", init="lecun"), x, y, mse_loss)


class Contest:
    """One motion from rest, reported at the same times by both, and a reference on which both agree."""

    def __init__(self, rule: nl.LearningRule, f: nl.FlatLoss, times: list[float]):
        self.rule, self.f, self.times = rule, f, times
        self.v0 = None if rule.massless else torch.zeros(len(f), dtype=torch.float64)
        self.motion = Motion(rule, f, f.q0)
        self.tried: dict[tuple[float, bool], tuple[float, int]] = {}
        self.reference = self.ours(1e-13).q
        self.agreement = self.error(self.theirs(1e-13, land=True))

    def ours(self, tolerance: float) -> nl.Trajectory:
        options = {"t_span": (0.0, T), "t_eval": self.times, "rtol": tolerance, "atol": tolerance}
        return nl.integrate(self.rule, self.f, self.f.q0, self.v0, **options)

    def theirs(self, tolerance: float, land: bool) -> torch.Tensor:
        times = [0.0, *self.times]
        return self.motion.solve(times, method="dopri8", rtol=tolerance, atol=tolerance, land=land)

    def error(self, points: torch.Tensor) -> float:
        return (points - self.reference).abs().max().item()

    def rival(self, bound: float) -> tuple[float, bool]:
        """torchdiffeq's cheapest setting with an error within the bound: a tolerance, and whether steps land."""
        found = []
        for land in (False, True):
            good = bisect(LADDER, False, key=lambda tolerance, land=land: self.cost(tolerance, land)[0] <= bound)
            if good < len(LADDER):
                found.append((self.cost(LADDER[good], land)[1], LADDER[good], land))
        if not found:
            raise RuntimeError(f"torchdiffeq reaches an error of {bound:.1e} with none of its settings")
        return min(found)[1:]

    def cost(self, tolerance: float, land: bool) -> tuple[float, int]:
        """torchdiffeq's error and calls with a setting."""
        if (tolerance, land) not in self.tried:
            self.tried[tolerance, land] = self.error(self.theirs(tolerance, land)), self.motion.calls
        return self.tried[tolerance, land]

    def run(self, tolerance: float, **rounds) -> float:
        """The ratio of the times of whole runs, ours at this tolerance."""
        ours = self.ours(tolerance)
        bound = self.error(ours.q)
        if not self.agreement < bound / 10:
            raise RuntimeError(f"the references differ by {self.agreement:.1e}, too much to judge {bound:.1e}")
        setting = self.rival(bound)
        error, calls = self.cost(*setting)

        def integrate() -> int:
            self.ours(tolerance)
            return 1

        def torchdiffeq() -> int:
            self.theirs(*setting)
            return 1

        timings = compare({"torchdiffeq": torchdiffeq, "integrate": integrate}, **rounds)
        print(
            f"{self.rule.name}, {len(self.times)} reported, tolerance {tolerance:.0e}: {ours.nfev} calls, error "
            f"{bound:.1e}; torchdiffeq at {setting[0]:.0e}{', landing' if setting[1] else ''}: {calls} calls, "
            f"error {error:.1e}; {timings}"
        )
        return timings.ratio("integrate")


def main() -> int:
    single_thread()
    f = problem()
    report = Report(f"Flows of {len(f)} parameters, time of integrate / torchdiffeq dopri8 at no larger an error")
    for name, rule in (("gradient flow", nl.gradient_flow()), ("damped", nl.damped(mass=1.0, friction=0.2))):
        growth = {"least": 2, "most": 2, "warm": False}
        report.add(f"{name}, end point only, tolerance 1e-8", Contest(rule, f, [T]).run(1e-8, **growth))
        contest = Contest(rule, f, TRAJECTORY)
        for tolerance in (1e-6, 1e-10):
            report.add(f"{name}, trajectory, tolerance {tolerance:.0e}", contest.run(tolerance, **growth))
        report.add(f"{name}, trajectory, tolerance 1e-08", contest.run(1e-8, least=5, budget=6.0), target=0.55)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
