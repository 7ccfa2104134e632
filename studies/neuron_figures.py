"""How the chapter on homogeneity draws what neurons keep; each function fills axes or makes one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import nlcompanion as nl
from nlcompanion import Law, Trajectory, descend, integrate
from nlcompanion.book import results
from nlcompanion.book.plotting import COLORS, order_guide, panels
from studies.neuron_balance import DYNAMICS, FAMILIES, Forces, LayerDrift


def stored_curves(name: str, run: str, *keys: str) -> list[Tensor]:
    """Curves of a stored result, such as ``stored_curves("gu_fig1_kmnist", "gd", "t", "reads")``."""
    curves = results.read(name)["curves"][run]
    return [torch.tensor(curves[key]) for key in keys]


def minus(text: str) -> str:
    """Hyphens as minus signs."""
    return text.replace("-", "−")


def draw_norms(axis: Axes, t: Tensor, reads: Tensor, writes: Tensor, names: Sequence[str], p: float = 1) -> None:
    """Two squared norms on the left axis; ``reads - p * writes`` on the right one, in the same units per inch."""
    axis.plot(t, reads, color=COLORS["second"], label=names[0])
    axis.plot(t, writes, color=COLORS["third"], label=names[1])
    low, high = min(reads.min(), writes.min()), max(reads.max(), writes.max())
    span = (1.5 if p == 1 else 2) * (high - low)
    label = "squared norm" if p == 1 else "gain"
    axis.set(xlabel="time $\\eta n$", ylabel=label, ylim=(high - span, high + 0.1 * span))
    twin, gap = axis.twinx(), reads - p * writes
    name = "difference" if p == 1 else f"first $- {p}\\cdot$ second"
    twin.plot(t, gap, color=COLORS["measurement"], label=name)
    twin.set(ylim=(gap[0] - 0.12 * span, gap[0] + 0.98 * span))
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    twin.tick_params(axis="y", colors=COLORS["measurement"])
    place: Any = "upper left" if p == 1 else (0.4, 0.16)
    axis.legend(handles=[*axis.lines, *twin.lines], loc=place)


def draw_rescaled_neuron(axis: Axes) -> None:
    """A small network in which one hidden neuron reads twice and writes half."""
    columns = [[(k, j - n / 2) for j in range(n)] for k, n in enumerate((4, 3, 3))]
    chosen = (1, -0.5)
    for left, right in ((0, 1), (1, 2)):
        for a in columns[left]:
            for b in columns[right]:
                color, width = COLORS["context"], 1.2
                if b == chosen:
                    color, width = COLORS["prediction"], 4
                elif a == chosen:
                    color, width = COLORS["measurement"], 1
                axis.plot(*zip(a, b, strict=True), color=color, linewidth=width, zorder=1)
    for column in columns:
        for place in column:
            face = "black" if place == chosen else "white"
            axis.scatter(*place, s=230, color=face, edgecolor="black", zorder=2)
    axis.set_axis_off()


def draw_plane_of_two_weights(axis: Axes) -> None:
    r"""Level lines of :math:`\frac12(uv-1)^2`, the symmetry along them, and gradient flow along hyperbolas."""
    grid = torch.linspace(0.02, 2.2, 120)
    product, charge = torch.outer(grid, grid), grid**2 - grid[:, None] ** 2
    axis.contour(grid, grid, product, [0.3, 0.6, 1, 1.5, 2.1], colors=COLORS["context"], linewidths=[1, 1, 3, 1, 1])
    levels = (-3.0, -1.5, 0.0, 1.5, 3.0)
    axis.contour(grid, grid, charge, levels, colors=COLORS["prediction"], linestyles="solid")
    for c in levels:
        for low in (0.15, 1.25):
            start = [(low**2 + max(c, 0)) ** 0.5, (low**2 + max(-c, 0)) ** 0.5]
            path = integrate(nl.gradient_flow(), two_weights, start, t_span=(0, 9), rtol=1e-6)
            axis.plot(*path.q.T, color=COLORS["measurement"], linestyle=(0, (2, 1.2)), linewidth=3)
            axis.scatter(start[0], start[1], color=COLORS["measurement"], s=22, zorder=3)
    u = torch.tensor([0.55, 0.8, 1.3, 1.75])
    axis.quiver(u, 1 / u, u, -1 / u, color=COLORS["neutral"], width=0.007, zorder=3)
    axis.set(xlim=(0, 2.2), ylim=(0, 2.2), xlabel="$u$, reads", ylabel="$v$, writes", aspect="equal")


def two_weights(q: Tensor) -> Tensor:
    """The smallest network's loss, one weight in and one out."""
    return 0.5 * (q[0] * q[1] - 1) ** 2


def draw_rails(axis: Axes, law: Law, path: Trajectory) -> None:
    """Every third neuron's reading and writing length along a flow, over the hyperbolas through the starts."""
    sides = [law.sides(q) for q in path.q]
    reads = torch.stack([side[0] for side in sides])[:, ::3].sqrt()
    writes = torch.stack([side[1] for side in sides])[:, ::3].sqrt()
    w = torch.linspace(0, 1, 100)
    for charge, start in zip(law.charge(path.q[0])[::3], writes[0], strict=True):
        rail = w[w > start - 0.04]
        axis.plot((rail**2 + charge).clamp(min=0).sqrt(), rail, color=COLORS["prediction"], linewidth=0.9)
    axis.plot(reads, writes, color=COLORS["measurement"], linewidth=2.4, alpha=0.8)
    axis.scatter(reads[0], writes[0], color=COLORS["measurement"], s=18, zorder=3)
    axis.set(xlabel="reads, $|W^{(3)}_{i:}|$", xlim=(0.44, 0.96), ylim=(0.18, 0.74))


def draw_forces(axis: Axes, t: Tensor, force: Sequence[Tensor], norms: Sequence[Tensor]) -> None:
    """The forces on two layers and their difference; above them, how far the norms have moved."""
    pull, push = force
    axis.plot(t, pull, color=COLORS["measurement"], linewidth=4)
    axis.plot(t, push, color=COLORS["prediction"])
    axis.plot(t, pull - push, color=COLORS["neutral"])
    first, second = (round((side[-1] - side[0]).item(), 2) for side in norms)
    axis.set_title(minus(f"moved {first:.2f} - {second:.2f} = {first - second:.2f}"), loc="right", fontsize=8)


def figure_of_forces(live: Mapping[str, Forces], stored: Mapping[str, Sequence[Tensor]], dt: float) -> Figure:
    """Figures 1 b and c of GU: computed on digits above, stored of KMNIST below.

    Args:
        live: for each algorithm the forces of a run.
        stored: for each, times, both forces and both norms.
        dt: time per step of the live runs.
    """
    names = list(live)
    titles = [f"{name}, {data}" for data in ("digits", "KMNIST") for name in names]
    figure, axes = panels(len(names), 2, height=2.2, titles=titles, sharex=True)
    for (upper, lower), name in zip(axes.T, names, strict=True):
        forces = live[name]
        steps = torch.arange(1, len(forces.kicks[0]) + 1)
        draw_forces(upper, dt * steps, forces.kicks, forces.norms)
        t, pull, push, reads, writes = (curve[:76] for curve in stored[name])
        draw_forces(lower, t, (pull, push), (reads, writes))
        lower.set_xlabel("time $\\sqrt{\\eta}\\,n$")
    for axis in axes[:, 0]:
        axis.set_ylabel("force")
    return figure


def table_of_laws(measured: Mapping[tuple[str, str, bool], tuple[Tensor, Tensor]], bias: bool) -> str:
    """GU's Table 2, or 3 with biases, in Markdown: how far each law is off, and its control in brackets.

    A law that holds says below which power of ten; the rest is rounding and the solver's doing. Where it does not hold,
    the table says by how much it is off.
    """
    lines = ["| activation | " + " | ".join(DYNAMICS) + " |", "|---" * (1 + len(DYNAMICS)) + "|"]
    for name, family in FAMILIES.items():
        cells = []
        for dynamics in DYNAMICS:
            off, failed = measured[name, dynamics, bias]
            held = f"below $10^{{{family.exponent}}}$" if off < 10**family.exponent else f"{off:.1g}"
            cells.append(f"{held} ({failed:.1%})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure_of_bounds(newton: LayerDrift, nesterov: LayerDrift) -> Figure:
    """The differences of layers, the slope of the sum of their absolute values, and the drift below its bounds."""
    figure, axes = panels(3, height=2.9, titles=("differences", "slope of $\\sum|D_h|$", "total drift"))
    left, middle, right = axes
    left.plot(newton.t, newton.D.T, label=["$D_1$", "$D_2$", "$D_3$"])
    left.legend()
    slope, t = newton.slope_of_absolute_values, newton.t
    first = int((newton.D.sign().diff(dim=1) != 0).any(0).nonzero()[0])
    allowed = 8 * newton.unit[-1] / t[-1] ** 2 * (t[first:] - t[first])
    middle.plot(t, slope, color=COLORS["measurement"])
    middle.plot(t[first:], slope[first] + allowed, color=COLORS["prediction"])
    for run, bound, color in ((newton, 4 * newton.unit, "measurement"), (nesterov, nesterov.unit, "second")):
        right.loglog(run.t[9:], run.total[9:], color=COLORS[color])
        right.loglog(run.t[9:], bound[9:], color=COLORS[color], linestyle="--")
        factor = f"÷ {bound[-1] / run.total[-1]:.0f}"
        right.text(3.2, run.total[-1] / 40, factor, ha="right", color=COLORS[color])
    for axis in axes:
        axis.set_xlabel("time")
    return figure


def draw_drift(axis: Axes, runs: Mapping[str, tuple[Tensor, float, float]], predicted: Tensor) -> None:
    """Drifts in plain descent, each with its end, the place of its label, and the sum that predicts one of them."""
    for name, (change, across, up) in runs.items():
        axis.plot(change.cumsum(0), color=COLORS["measurement"], linewidth=4)
        axis.text(across, up, minus(f"{name}:\n{change.sum():.4f}"), ha="right", va="center")
    axis.plot(predicted.cumsum(0), color=COLORS["prediction"])
    axis.set(xlabel="step $n$", ylabel="drift")


def draw_account(axis: Axes, account: nl.Account) -> None:
    """What moved a layer's charge, by cause, and the sum of the causes over the measured change."""
    if len(account.change) < 2:
        raise ValueError("the ledger kept totals only, so there is no curve to draw; make it with every=1")
    sums = {name: cause.sum(1) for name, cause in account.cumulative.items()}
    axis.plot(sums["change"], color=COLORS["measurement"], linewidth=4, label="measured")
    axis.plot(sums["change"] - sums["residual"], color=COLORS["prediction"])
    for name, color in {"finite_step": "second", "momentum": "third", "decay": "neutral"}.items():
        axis.plot(sums[name], color=COLORS[color], label=name.replace("_", " "))
    axis.legend()
    axis.set(xlabel="step $n$")


STEPS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
START = (0.05, 1.4)  # reading and writing weight
FLOW_CHARGE = START[1] ** 2 - START[0] ** 2  # which gradient flow keeps
# at its minimum, where u v = 1, the loss of two weights has the curvature u^2 + v^2
EDGE = 2 / (FLOW_CHARGE**2 + 4) ** 0.5


def descent_of_two_weights(eta: float) -> Tensor:
    """The points of gradient descent on the smallest network, for time 8."""
    return descend(nl.sgd(lr=eta), two_weights, START, steps=round(8 / eta)).q


@cache
def charge_lost(eta: float) -> float:
    """By how much the charge has fallen at the end of it."""
    u, v = descent_of_two_weights(eta)[-1]
    return float(FLOW_CHARGE - (v**2 - u**2))


def figure_of_step(eta: float) -> Figure:
    """Gradient descent in the plane of two weights, off the hyperbola of gradient flow; the charge against the step."""
    path = descent_of_two_weights(eta)
    figure, (plane, drift) = panels(2, height=3.1, titles=("two weights", "charge lost"))
    grid = torch.linspace(0.02, 2.2, 120)
    plane.plot(grid, 1 / grid, color=COLORS["context"])
    plane.plot(grid, (grid**2 + FLOW_CHARGE).sqrt(), color=COLORS["prediction"])
    plane.plot(*path.T, "o-", color=COLORS["measurement"], markersize=5, linewidth=1)
    plane.set(xlabel="$u$, reads", ylabel="$v$, writes", xlim=(0, 1.5), ylim=(0.6, 1.9), aspect="equal")
    drift.loglog(STEPS, [charge_lost(step) for step in STEPS], color=COLORS["context"], linewidth=1)
    order_guide(drift, STEPS[:4], charge_lost(STEPS[3]), 1)
    drift.loglog(eta, charge_lost(eta), "o", color=COLORS["measurement"], markersize=8)
    drift.axvline(EDGE, color=COLORS["control"], linestyle="--", linewidth=1, label="edge")
    drift.set(xlabel="step $\\eta$", ylim=(0.01, 3), xticks=[0.05, 0.1, 0.2, 0.5], xticklabels=[0.05, 0.1, 0.2, 0.5])
    drift.minorticks_off()
    drift.legend(loc="lower right")
    return figure


def step_in_words(eta: float) -> str:
    """A frame of that control, for readers who cannot see it."""
    return f"Descent with step {eta:g}: it loses {charge_lost(eta):.3f} of its charge {FLOW_CHARGE:.2f}."
