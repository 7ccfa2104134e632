"""TK Fig. 4 drawn from a stored result, and the differences that its claims are about, with their errors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from nlcompanion.book.plotting import COLORS, panels

TITLES = {"a": "A: step size", "b_constant": "B: constant rate", "b": "B: rate drops", "c": "C: decay"}
_COLORS = {"free": COLORS["control"], "constrained": COLORS["prediction"]}


class Difference(NamedTuple):
    """Differences of two means over seeds, one for each value of what varies, and their standard errors."""

    mean: Tensor
    error: Tensor


def gap(content: dict, panel: str, measure: str) -> Difference:
    """Free minus constrained, of ``accuracy``, ``recalibrated`` or ``loss``."""
    curves = content["curves"][panel]
    return _difference(curves["free"], curves["constrained"], measure)


def change(content: dict, panel: str, measure: str, kind: str) -> Difference:
    """Free or constrained, minus itself at the first value of what varies."""
    curve = content["curves"][panel][kind]
    first = {key: [values[0]] * len(values) for key, values in curve.items()}
    return _difference(curve, first, measure)


def _difference(one: dict, other: dict, measure: str) -> Difference:
    mean = _numbers(one[f"{measure}_mean"]) - _numbers(other[f"{measure}_mean"])
    return Difference(mean, torch.hypot(_numbers(one[f"{measure}_sem"]), _numbers(other[f"{measure}_sem"])))


def _numbers(values) -> Tensor:
    return torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)


def draw(content: dict) -> Axes:
    """Accuracies above, training losses below, one column for each panel that was measured.

    Args:
        content: a stored result of ``tk_fig4_digits`` or ``tk_fig4_tiny_imagenet``.

    Returns:
        The axes of the first panel, to which live runs can be added.
    """
    names = [name for name in TITLES if name in content["curves"]]
    titles = [TITLES[name] for name in names]
    _, axes = panels(len(names), 2, height=2.3, titles=titles, squeeze=False)
    for (top, low), name in zip(axes.T, names, strict=True):
        (values,) = content["settings"]["varied"][name].values()
        for kind, color in _COLORS.items():
            _accuracies(top, content["curves"][name][kind], kind, color)
            _losses(low, content["curves"][f"{name}_loss"][kind]["loss_mean"], len(values), color)
        top.set_xticks(range(len(values)), [f"{value:g}" for value in values], rotation=60, fontsize=7)
    axes[0, 0].set(ylabel="accuracy")
    axes[1, 0].set(xlabel="epoch", ylabel="loss")
    axes[0, 0].legend(fontsize=7, loc="lower left")
    return axes[0, 0]


def _accuracies(axis: Axes, curve: dict, kind: str, color: str) -> None:
    places = range(len(curve["accuracy_mean"]))
    axis.errorbar(places, _numbers(curve["accuracy_mean"]), _numbers(curve["accuracy_sem"]), color=color, label=kind)
    axis.plot(places, _numbers(curve["recalibrated_mean"]), ":", color=color)
    diverged = [0.03 if count else torch.nan for count in curve["diverged"]]
    axis.plot(places, diverged, "v", color=color, transform=axis.get_xaxis_transform())


def _losses(axis: Axes, courses: list, values: int, color: str) -> None:
    """The smallest value thin, the last but one thick."""
    for loss, width in zip(courses[:: values - 2], (0.8, 2.4), strict=False):
        axis.semilogy(range(1, len(loss) + 1), loss, color=color, linewidth=width)
