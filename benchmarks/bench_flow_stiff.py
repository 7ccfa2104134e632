"""A damped particle of small mass: the calls BDF needs, and those RK45 needs, for the same error.

A tanh network of 32 parameters; each solver gets the loosest tolerance that keeps its error, in points and velocities
over the whole span with the initial layer of width m, below the bound. The reference is Radau at 1e-11, and RK45 has to
come ten times nearer to it than the bound. Calls are counted, so their ratios are free of noise; times are single runs.
"""

from __future__ import annotations

import sys
import time
import warnings

import numpy as np
import torch
from _timing import Report, single_thread
from torch.nn.functional import mse_loss

import nlcompanion as nl

MASSES = (1e-1, 1e-2, 1e-3)
T = 20.0
BOUND = 1e-6
LADDER = (1e-6, 1e-7, 1e-8)


def problem() -> nl.FlatLoss:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(4, 1, generator=g, dtype=torch.float64))
    return nl.flat_loss(nl.mlp((4, 5, 2, 1), "tanh", init="lecun"), x, y, mse_loss)


def solve(f: nl.FlatLoss, mass: float, method: str, rtol: float, atol: float):
    """Points and velocities at 20 times in the initial layer and 100 after it, calls, and seconds."""
    layer = min(10 * mass, T / 2)
    times = np.concatenate([np.linspace(0, layer, 21), np.linspace(layer, T, 101)[1:]])
    rule, start = nl.damped(mass, friction=1.0), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that RK45 is a poor choice here is what we measure
        run = nl.integrate(rule, f, f.q0, t_span=(0, T), method=method, rtol=rtol, atol=atol, t_eval=times)
    return torch.cat([run.q, run.v]), run.nfev, time.process_time() - start


def runs(f: nl.FlatLoss, mass: float, method: str, reference: torch.Tensor, until: float) -> list[tuple]:
    """(calls, error, seconds) down the ladder of tolerances, to the first error below ``until``."""
    found = []
    for rtol in LADDER:
        states, calls, seconds = solve(f, mass, method, rtol, rtol / 10)
        found.append((calls, (states - reference).abs().max().item(), seconds))
        if found[-1][1] <= until:
            return found
    raise RuntimeError(f"{method} reaches an error of {until:g} at mass {mass:g} with none of the tolerances tried")


def cheapest(found: list[tuple]) -> tuple:
    return min(run for run in found if run[1] <= BOUND)


def main() -> int:
    single_thread()
    report = Report(f"Damped particle of small mass, errors <= {BOUND:g} over (0, {T:g})")
    f = problem()
    for mass in MASSES:
        reference, *_ = solve(f, mass, "Radau", 1e-11, 1e-13)
        stiff = cheapest(runs(f, mass, "BDF", reference, until=BOUND))
        explicit = runs(f, mass, "RK45", reference, until=BOUND / 10)  # beyond need: it vouches for the reference
        rk45 = cheapest(explicit)
        for method, (calls, error, seconds) in (("BDF", stiff), ("RK45", rk45)):
            print(f"m = {mass:g}: {method} {calls} calls, error {error:.1e}, {seconds:.2g} s")
        print(f"m = {mass:g}: RK45 comes as near to the reference as {explicit[-1][1]:.1e}")
        report.add(f"m = {mass:g}: time of BDF / RK45", stiff[2] / rk45[2])
        target = 1 / 50 if mass == MASSES[-1] else None
        report.add(f"m = {mass:g}: calls of BDF / RK45", stiff[0] / rk45[0], target=target)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
