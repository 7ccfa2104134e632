"""Sliders that work live and in the static page.

A page has no kernel behind it, so a slider can only choose among pictures that already exist. Each explorer here
draws its frames when the cell runs and links a slider to them in the browser; nothing is computed while it moves.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["explore"]

_MAX_FRAMES = 40  # some 50 KB each: a page should not outweigh the book


def explore(
    draw: Callable[[object], Figure],
    values: Sequence,
    *,
    name: str,
    describe: Callable[[object], str],
    start: int | None = None,
    dpi: int = 110,
) -> widgets.VBox:
    """A slider over pre-drawn figures, one for each value.

    Args:
        draw: ``draw(value) -> Figure``; the figure is closed after it was saved.
        values: what the slider runs over, 2 to 40 of them.
        name: the slider's label. Use Unicode (η, β): widgets do not typeset LaTeX.
        describe: ``describe(value) -> str``, the picture in words, for readers who cannot see it.
        start: index shown first; the middle one by default.
        dpi: resolution of the frames.

    Returns:
        A widget; end the cell with it.

    Raises:
        ValueError: too few or too many values, or ``start`` outside of them.
        TypeError: if ``draw`` returns no figure.

    Example:
        >>> def draw(power):
        ...     figure, axis = plt.subplots()
        ...     _ = axis.plot([0, 1, 2], [0, 1, 2**power])
        ...     return figure
        >>> box = explore(draw, [1, 2, 3], name="power", describe=lambda p: f"x to the power {p}")
        >>> len(box.children)
        2
    """
    values = list(values)
    if not 2 <= len(values) <= _MAX_FRAMES:
        raise ValueError(
            f"{len(values)} values to explore; a slider needs 2 to {_MAX_FRAMES}, each is a picture in the page"
        )
    start = len(values) // 2 if start is None else start
    if not 0 <= start < len(values):
        raise ValueError(f"start = {start} is no index into {len(values)} values")
    frames = [widgets.HTML(_image(draw(value), describe(value), dpi)) for value in values]
    slider = widgets.SelectionSlider(
        options=[(f"{value:g}" if isinstance(value, float) else str(value), i) for i, value in enumerate(values)],
        index=start,
        description=name,
        layout=widgets.Layout(width="min(100%, 32rem)"),
        style={"description_width": "initial"},
    )
    stack = widgets.Stack(frames, selected_index=start)
    widgets.jslink((slider, "index"), (stack, "selected_index"))
    return widgets.VBox([slider, stack])


def _image(figure: Figure, words: str, dpi: int) -> str:
    if not isinstance(figure, Figure):
        raise TypeError(f"draw(value) must return a matplotlib Figure, got {type(figure).__name__}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    words = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<img alt="{words}" style="width: 100%; max-width: 46rem" src="data:image/png;base64,{data}">'
