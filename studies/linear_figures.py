"""How the chapter on linear layers draws its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nlcompanion.book.plotting import COLORS, panels
from studies.linear_networks import Wear


def figure_of_grams(gains: Mapping[str, Sequence[Tensor]]) -> Figure:
    """Heat maps of what the two Gram matrices have gained and of the difference, a row for each network."""
    figure, axes = panels(3, len(gains), height=2.3, sharex=True, sharey=True)
    for row, (name, matrices) in zip(axes, gains.items(), strict=True):
        for axis, matrix in zip(row, matrices, strict=True):
            image = axis.imshow(matrix, cmap="RdBu_r", vmin=-2, vmax=2)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        row[0].set_ylabel(name)
    for axis, title in zip(axes[0], ("gained by $W W^T$", "gained by $W'^T W'$", "difference"), strict=True):
        axis.set_title(title, loc="left")
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def figure_of_residuals(kept: Mapping[str, Tensor], lost: Mapping[str, Tensor]) -> Figure:
    """A row for each dynamics: by how much a law is violated, and by how much its control's."""
    options = {"xlim": (1e-17, 10), "ylim": (len(kept) - 0.5, -0.5), "xlabel": "relative residual"}
    figure, axis = panels(height=1.9, subplot_kw=options)
    names = [f"{name}: {kept[name]:.0e}, control {lost[name]:.1g}" for name in kept]
    axis.semilogx(list(kept.values()), names, "o", color=COLORS["measurement"], markersize=8)
    axis.semilogx([lost[name] for name in kept], names, "o", color=COLORS["control"], markersize=8)
    return figure


def figure_of_spins(t: Tensor, J: Mapping[str, Tensor], J_control: Tensor, fading: Mapping[float, Tensor]) -> Figure:
    """The angular momentum of hidden neurons: kept by Newton, fading with Nesterov, and in steps with momentum.

    Args:
        t: times, ``(T,)``.
        J: antisymmetric matrices along the flows ``"Newton"`` and ``"Nesterov"``, ``(T, d, d)``.
        J_control: those of a layer without the law, under Newton.
        fading: for each momentum the matrices along the steps.
    """
    d = J_control.shape[-1]
    upper = torch.triu_indices(d, d, 1)
    newton, nesterov, control = (M[:, *upper] for M in (J["Newton"], J["Nesterov"], J_control))
    titles = ("Newton: $J$", "Nesterov: $J$", "in steps: $|J|$")
    figure, (left, middle, right) = panels(3, height=2.8, titles=titles)
    left.plot(t, control[:, ::4], color=COLORS["control"], linewidth=0.8)
    left.plot(t, newton, color=COLORS["prediction"], linewidth=1)
    left.set(xlabel="time")
    middle.plot(t, nesterov[:1] * (t[0] / t[:, None]) ** 3, color=COLORS["prediction"], linewidth=1)
    middle.plot(t[::6], nesterov[::6], ".", color=COLORS["measurement"], markersize=4)
    middle.set(xlabel="time")
    for (beta, matrices), color in zip(fading.items(), ("second", "third", "measurement"), strict=True):
        size = matrices.flatten(1).norm(dim=1) / matrices[0].norm()
        steps = range(0, len(size), 5)
        right.semilogy(beta ** torch.arange(len(size)), color=COLORS["prediction"], linewidth=1)
        right.semilogy(steps, size[::5], "o", color=COLORS[color], markersize=4, label=f"β = {beta:g}")
    right.set(xlabel="step $n$", ylim=(1e-6, 5))
    right.legend(loc="lower left")
    return figure


def figure_of_forecasts(t: Tensor, modes: Tensor, sigmoid: Tensor, excess: Mapping[str, Tensor]) -> Figure:
    """Modes over their sigmoids; the excess loss of a balanced network over that of its product alone."""
    titles = ("two layers: ten modes", "three layers: excess loss")
    figure, (left, right) = panels(2, height=3.0, titles=titles)
    left.plot(t, sigmoid, color=COLORS["prediction"], linewidth=1.1)
    left.plot(t[::3], modes[::3], ".", color=COLORS["measurement"], markersize=4)
    left.set(xlabel="time", ylabel="strength in $P$")
    right.semilogy(t, excess["control"], color=COLORS["control"], label="control")
    right.semilogy(t, excess["alone"], color=COLORS["prediction"], label="alone")
    right.semilogy(t[::3], excess["balanced"][::3], ".", color=COLORS["measurement"], label="balanced")
    right.set(xlabel="time", ylabel="$f - f_\\star$")
    right.legend()
    return figure


def modes_drawer(
    t: Tensor, measured: Mapping[float, Tensor], predicted: Mapping[float, Tensor], strength: Tensor
) -> Callable[[float], Figure]:
    """``draw(r)`` for a slider: the modes at one imbalance, and the excess loss among all the others."""

    def draw(r: float) -> Figure:
        figure, (left, right) = panels(2, height=2.9, titles=(f"imbalance r = {r:g}", "excess loss"))
        left.plot(t, predicted[r], color=COLORS["prediction"], linewidth=1.1)
        left.plot(t[::3], measured[r][::3], ".", color=COLORS["measurement"], markersize=4)
        left.set(xlabel="time", ylabel="strength in $P$", ylim=(-0.01, 0.33))
        for other, modes in measured.items():
            look = {"color": COLORS["context"], "linewidth": 1}
            if other == r:
                look = {"color": COLORS["measurement"], "zorder": 3}
            right.plot(t, (modes - strength).square().sum(1) / 2, **look)
        right.set(xlabel="time", ylim=(-0.01, 0.31))
        return figure

    return draw


def time_at(values: Tensor, times: Tensor, level: float) -> float:
    """When a rising sequence passes a level, by linear interpolation.

    Example:
        >>> time_at(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0]), 0.5)
        0.25
    """
    after = int((values >= level).nonzero()[0])
    share = (level - values[after - 1]) / (values[after] - values[after - 1])
    return float(times[after - 1] + share * (times[after] - times[after - 1]))


def figure_of_arrival(
    t: Tensor,
    guaranteed: Mapping[str, tuple[Tensor, Tensor]],
    stuck: tuple[Tensor, float],
    escapes: tuple[Sequence[float], Sequence[float], Sequence[float]],
) -> Figure:
    """Excess losses under their guarantees, one on a saddle, and the time to leave it.

    Args:
        guaranteed: by colour, the losses of a start and the rate of its guarantee.
        stuck: the losses of a start without one, and the height of its saddle.
        escapes: imbalances, predicted times, measured times.
    """
    figure, (left, right) = panels(2, height=3.1, titles=("three starts", "time to leave the saddle"))
    for color, (losses, rate) in guaranteed.items():
        left.semilogy(t, losses[0] * torch.exp(-2 * rate * t), "--", color=COLORS[color])
        left.semilogy(t, losses, color=COLORS[color])
    losses, height = stuck
    left.semilogy(t, height + 0 * t, ":", color=COLORS["measurement"])
    left.semilogy(t, losses, color=COLORS["measurement"])
    left.set(xlabel="time", ylabel="$f - f_\\star$", ylim=(1e-8, 1))
    imbalances, predicted, measured = escapes
    right.semilogx(imbalances, predicted, color=COLORS["prediction"])
    right.semilogx(imbalances, measured, "o", color=COLORS["measurement"])
    right.set(xlabel="imbalance $c$", ylabel="time", ylim=(0, 95))
    return figure


def draw_wear(axis: Axes, worn: Mapping[float, Wear]) -> None:
    """The length of the mean charge over seeds, measured and predicted, for each size of a batch."""
    for size, wear in worn.items():
        measured, predicted = (C.mean(1).flatten(1).norm(dim=1) for C in (wear.charge, wear.forecast))
        axis.plot(wear.steps, measured, color=COLORS["measurement"], linewidth=3)
        axis.plot(wear.steps, predicted, color=COLORS["prediction"], linewidth=1.5)
        axis.text(510, measured[-1], "all" if math.isinf(size) else f"b = {size}", va="center")
    axis.set(xlabel="step", ylabel="$|C|$", xlim=(0, 690), ylim=(0, None))
