"""The figures of :mod:`studies.tiny_imagenet`, drawn from what is stored in ``book/results``."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlcompanion.book.plotting import COLORS, panels
from nlcompanion.book.results import ResultError, read

FIGURE_2B, FIGURE_4 = "tk_fig2b_tiny_imagenet", "tk_fig4_tiny_imagenet_20000"
_PANELS = {"a": "A: step size", "c": "C: decay", "b": "B: momentum"}
_LAWS = {"persistent": "TK Eq. 17", "averaged": "with the measured P(t)"}


def draw_figure2b(folder: Path | str | None = None, lr: float = 0.01) -> Figure | None:
    """TK Fig. 2 (b): the loss from q0 and from 2 q0, and the length of a filter in each convolution of VGG-11.

    The filter is the median one of its layer by its final length, of the run from q0: measured, by TK's Eq. 17, and
    by the same equation with the part of the gradient that survives the momentum's averaging.

    Args:
        folder: where the result lies; ``book/results`` when None.
        lr: of which pair of runs, 0.01 or 0.1.

    Returns:
        The figure; None where nothing is stored, which is said in words.
    """
    content = _stored(FIGURE_2B, folder)
    if content is None:
        return None
    runs = {scale: f"lr_{lr:g}_scale_{scale:g}" for scale in (1, 2)}
    curves = content["curves"]
    course = curves[runs[1]]
    figure, axes = panels(3, 3, height=2.1, layout="constrained")
    _losses(axes[0, 0], {f"from {scale if scale > 1 else ''}q₀": curves[name]["loss"] for scale, name in runs.items()})
    for axis, (layer, found) in zip(axes.flat[1:], course["filters"].items(), strict=True):
        middle = {name: values[1] for name, values in found.items()}
        for (law, label), color, dash in zip(_LAWS.items(), ("control", "prediction"), ("--", "-"), strict=True):
            axis.semilogy(course["step"], middle[law], dash, color=COLORS[color], label=label)
        some = slice(None, None, 4)
        axis.plot(course["step"][some], middle["r_squared"][some], ".", color=COLORS["measurement"], label="measured")
        regime = content["numbers"][runs[1]]["layers"][layer]
        axis.set_title(f"{layer}: P = {regime['persistence'][1]:.2g}, {regime['regime']}", loc="left", fontsize=9)
        _plain_ticks(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    axes[1, 0].set_ylabel("a filter's r²")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return figure


def _plain_ticks(axis: Axes) -> None:
    """Numbers like 0.5 on a logarithmic axis of one decade."""
    low, high = axis.get_ylim()
    ticks = [value for value in (0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20) if low <= value <= high]
    axis.set_yticks(ticks, [f"{value:g}" for value in ticks])
    axis.minorticks_off()


def _losses(axis: Axes, curves: dict[str, dict]) -> None:
    for (label, found), color in zip(curves.items(), ("neutral", "measurement"), strict=True):
        axis.plot(found["step"], found["loss"], color=COLORS[color], label=label)
    axis.set_title("loss of the mini-batches", loc="left", fontsize=9)
    axis.legend(fontsize=7)


def draw_figure4(folder: Path | str | None = None) -> Figure | None:
    """TK Fig. 4: final accuracy and training loss of free and constrained networks, panel by panel as measured.

    Above, dotted lines are the accuracy with BatchNorm's statistics measured anew, bars the standard error over the
    seeds where there are several. Below, the loss of the smallest (thin) and of a large (thick) value.

    Args:
        folder: where the result lies; ``book/results`` when None.

    Returns:
        The figure; None where nothing is stored, which is said in words.
    """
    content = _stored(FIGURE_4, folder)
    if content is None:
        return None
    names = [name for name in _PANELS if name in content["curves"]]
    seeds = content["settings"]["seeds"]
    titles = [f"{_PANELS[name]} ({len(seeds[name])} seed{'s' * (len(seeds[name]) > 1)})" for name in names]
    figure, axes = panels(len(names), 2, height=2.6, titles=titles, squeeze=False)
    for (top, low), name in zip(axes.T, names, strict=True):
        found, course = content["curves"][name], content["curves"][f"{name}_loss"]
        setting, values = next(iter(content["settings"]["varied"][name].items()))
        large = _large(name, values)
        for kind, color in (("free", COLORS["control"]), ("constrained", COLORS["prediction"])):
            _accuracies(top, found[kind], color, kind)
            for at, width in ((0, 0.8), (large, 2.4)):
                loss = course[kind]["loss_mean"][at]
                if loss:
                    low.semilogy(course["epoch"], loss, color=color, linewidth=width)
        top.set_xticks(range(len(values)), [f"{value:g}" for value in values], rotation=60, fontsize=8)
        low.set_title(f"{setting} {values[0]:g} and {values[large]:g}", loc="left", fontsize=9)
        low.set_xlabel("epoch")
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].set_ylabel("training loss")
    return figure


def _large(name: str, values: list[float]) -> int:
    """The place of a large value that still trains: of the decays the largest, of the other panels one further down."""
    return len(values) - 1 if name == "c" else len(values) * 2 // 3 - 1


def _accuracies(axis: Axes, found: dict, color: str, label: str) -> None:
    numbers = {name: [torch.nan if x is None else x for x in found[name]] for name in found if name != "diverged"}
    places = range(len(numbers["accuracy_mean"]))
    axis.errorbar(places, numbers["accuracy_mean"], numbers["accuracy_sem"], color=color, marker=".", label=label)
    axis.plot(places, numbers["recalibrated_mean"], ":", color=color)


def _stored(name: str, folder: Path | str | None) -> dict | None:
    try:
        return read(name, folder)
    except ResultError as error:
        print(f"There is nothing to draw: {str(error).partition(';')[0]}; on a GPU, python -m studies.tiny_imagenet")
        print("measure FOLDER takes a quarter of an hour, and python -m studies.tiny_imagenet store FOLDER stores it.")
        return None
