"""Figures: one style, one palette, one meaning per colour.

Colours are Okabe and Ito's, told apart by colour-blind readers; amber, sky blue and purple are darkened until each
stands out from a figure's ground by 3 to 1, in the light theme and in the dark. They carry roles, not order: a
prediction is blue and drawn as a line, a measurement is orange and drawn over it, a control that must fail is reddish
purple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLORS", "convergence", "order_guide", "panels", "use_style"]

COLORS = {
    "prediction": "#0072B2",
    "measurement": "#D55E00",
    "control": "#C56FA0",
    "second": "#009E73",
    "third": "#9A6A00",
    "light": "#2598C0",
    "neutral": "#595959",
    "context": "#8A8A8A",  # level lines, and what a figure shows for comparison
}

_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(
        color=[COLORS[k] for k in ("prediction", "measurement", "second", "third", "control", "light")]
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "svg.hashsalt": "nlcompanion",  # the same ids in every run
}


def use_style() -> None:
    """Set matplotlib's defaults to the book's; call it once, in a notebook's import cell.

    Example:
        >>> use_style()
    """
    plt.rcParams.update(_STYLE)


def panels(
    columns: int = 1, rows: int = 1, *, height: float = 2.9, titles: Sequence[str] = (), **options
) -> tuple[Figure, Any]:
    """A figure as wide as the page with ``rows`` times ``columns`` axes.

    Args:
        columns, rows: how many panels.
        height: of one row, in inches; the width is always 7.4.
        titles: short titles, left-aligned, one per panel in reading order.
        options: handed to ``plt.subplots``.

    Returns:
        ``(figure, axes)``; a single ``Axes`` for one panel, else an array as from ``plt.subplots``.

    Raises:
        ValueError: if more titles than panels are given.

    Example:
        >>> figure, (left, right) = panels(2, titles=("flow", "steps"))
        >>> left.get_title(loc="left")
        'flow'
        >>> plt.close(figure)
    """
    if len(titles) > rows * columns:
        raise ValueError(f"{len(titles)} titles for {rows * columns} panels; give one per panel at most")
    figure, axes = plt.subplots(rows, columns, figsize=(7.4, height * rows), **options)
    for axis, title in zip(np.ravel(axes), titles, strict=False):
        axis.set_title(title, loc="left")
    return figure, axes


def order_guide(axis: Axes, x, anchor: float, order: float, label: str | None = None) -> None:
    """A thin reference line of slope ``order`` on a log-log panel, through ``anchor`` at the largest ``x``.

    Args:
        axis: a log-log axis.
        x: the abscissae of the data, positive.
        anchor: the line's value at ``max(x)``.
        order: the slope to draw.
        label: legend entry, ``"order 2"`` and the like by default.

    Raises:
        ValueError: if an ``x`` or the anchor is not positive.

    Example:
        >>> figure, axis = panels()
        >>> axis.set(xscale="log", yscale="log")[0]
        >>> order_guide(axis, [0.1, 0.01], 1e-2, 2)
        >>> plt.close(figure)
    """
    x = np.sort(np.asarray(x, dtype=float))
    if x[0] <= 0 or anchor <= 0:
        raise ValueError(f"a log-log guide needs positive x and anchor, got min x {x[0]:g} and anchor {anchor:g}")
    axis.plot(
        x,
        anchor * (x / x[-1]) ** order,
        color=COLORS["neutral"],
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        label=f"order {order:g}" if label is None else label,
        zorder=1,
    )


def convergence(
    axis: Axes,
    sizes: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    guides: Mapping[str, float] | None = None,
    control: str | None = None,
    orders: bool = False,
    xlabel: str = "step size η",
) -> None:
    """Errors against step sizes on log-log axes, with reference slopes under chosen curves.

    Args:
        axis: where to draw.
        sizes: the step sizes, one per error; they become the ticks.
        curves: ``{name: errors}``, drawn in this order.
        guides: ``{name: order}``: under the curve of that name, a dashed line of that slope.
        control: the curve that must fail, drawn in the colour of controls; the others never have it.
        orders: say each curve's measured order behind its name, from :func:`~nlcompanion.convergence_order`.
        xlabel: what the sizes are.

    Raises:
        ValueError: if a size or an error is not positive, or a guide or the control names no curve.

    Example:
        >>> figure, axis = panels()
        >>> convergence(axis, [0.1, 0.05], {"midpoint": [4e-4, 1e-4]}, guides={"midpoint": 2})
        >>> axis.get_xscale()
        'log'
        >>> plt.close(figure)
    """
    from nlcompanion.dynamics.descent import convergence_order  # not before it is needed: it brings torch

    unknown = {*(guides or ()), *([control] if control else [])} - set(curves)
    if unknown:
        raise ValueError(f"no curve named {', '.join(sorted(unknown))}, as guides or control have it: {list(curves)}")
    others = cycle(("second", "prediction", "third", "measurement"))
    for i, (name, errors) in enumerate(curves.items()):
        if min(errors) <= 0 or min(sizes) <= 0:
            raise ValueError(f"{name} has an error or a size that is not positive; a log-log plot cannot show it")
        color = COLORS["control" if name == control else next(others)]
        order = f": {convergence_order(sizes, errors):.2f}".replace("-", "−") if orders else ""
        axis.loglog(sizes, errors, "os^DvP"[i % 6] + "-", color=color, markersize=5, label=name + order)
    for name, slope in (guides or {}).items():
        largest = int(np.argmax(sizes))
        order_guide(axis, sizes, 0.6 * curves[name][largest], slope, label="_")
    axis.set_xticks(sizes, [f"{size:.2g}" for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.legend()
