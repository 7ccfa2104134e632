"""A control over pictures drawn beforehand: a slider that works in the page, and as a widget in a live notebook.

Where motion is the point, a button plays the frames in turn. Nothing moves by itself: the reader starts it, pauses it,
and has no such button if the system asks for reduced motion; the slider remains.

A page has no kernel behind it, so a slider can only choose among pictures that already exist. Each explorer draws its
frames when the cell runs. Its output has two forms, and whoever shows it takes the one it can: plain HTML with a few
lines of script for the page, a widget of ipywidgets for JupyterLab.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from html import escape

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["Explorer", "explore"]

_MAX_FRAMES = 40  # some 20 KB each: a page should not outweigh the book
_COLOURS = 128  # of a frame; line drawings need no more, and take a third of the room

_MILLISECONDS = 250  # that a frame stays while the frames are played

_SCRIPT = """
for (const box of document.querySelectorAll(".nl-explorer:not([data-ready])")) {
  box.dataset.ready = "";
  const slider = box.querySelector("input");
  const output = box.querySelector("output");
  const frames = box.querySelectorAll("img");
  const names = JSON.parse(box.dataset.values);
  const show = () => {
    const chosen = Number(slider.value);
    frames.forEach((frame, index) => { frame.hidden = index !== chosen; });
    output.value = names[chosen];
    slider.setAttribute("aria-valuetext", names[chosen]);
  };
  slider.addEventListener("input", show);
  show();
  const play = box.querySelector("button");
  if (!play || matchMedia("(prefers-reduced-motion: reduce)").matches) continue;
  play.hidden = false;
  let timer = 0;
  const pause = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  const next = () => {
    if (slider.value === slider.max) return pause();
    slider.value = Number(slider.value) + 1;
    show();
  };
  play.addEventListener("click", () => {
    if (timer) return pause();
    if (slider.value === slider.max) { slider.value = 0; show(); }
    play.textContent = "Pause";
    timer = setInterval(next, Number(box.dataset.milliseconds));
  });
  slider.addEventListener("input", pause);
}
"""


class Explorer:
    """A slider and its frames; made by :func:`explore`, shown by ending a cell with it.

    Attributes:
        name: the slider's label.
        values: what the slider runs over, as text.
        start: index of the frame shown first.
        frames: the pictures, PNG.
        words: each picture in words.
        motion: whether a button plays the frames in turn.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[str],
        start: int,
        frames: Sequence[bytes],
        words: Sequence[str],
        motion: bool = False,
    ):
        self.name, self.values, self.start = name, tuple(values), start
        self.frames, self.words, self.motion = tuple(frames), tuple(words), motion
        self._widget: widgets.VBox | None = None

    @property
    def html(self) -> str:
        """The control as HTML that needs nothing else: for a page, with or without a network."""
        name, first = escape(self.name), escape(self.values[self.start])
        last = len(self.values) - 1
        slider = (
            f'<input type="range" min="0" max="{last}" step="1" value="{self.start}" aria-label="{name}" '
            f'aria-valuetext="{first}">'
        )
        label = f'<label class="nl-explorer-label"><span>{name}</span>{slider}<output>{first}</output></label>'
        button = '<button type="button" class="nl-explorer-play" hidden>Play</button>' if self.motion else ""
        frames = [
            _image(frame, words, hidden=index != self.start)
            for index, (frame, words) in enumerate(zip(self.frames, self.words, strict=True))
        ]
        values = escape(json.dumps(self.values, ensure_ascii=False))
        return "\n".join(
            [
                f'<div class="nl-explorer" data-values="{values}" data-milliseconds="{_MILLISECONDS}">',
                f'<div class="nl-explorer-head">{label}{button}</div>',
                *frames,
                "</div>",
                f"<script>{_SCRIPT}</script>",
            ]
        )

    @property
    def widget(self) -> widgets.VBox:
        """The control for a live notebook; its slider and its pictures are linked in the browser."""
        if self._widget is None:
            frames = [widgets.HTML(_image(frame, words)) for frame, words in zip(self.frames, self.words, strict=True)]
            slider = widgets.SelectionSlider(
                options=[(value, index) for index, value in enumerate(self.values)],
                index=self.start,
                description=self.name,
                layout=widgets.Layout(width="min(100%, 32rem)"),
                style={"description_width": "initial"},
            )
            stack = widgets.Stack(frames, selected_index=self.start)
            widgets.jslink((slider, "index"), (stack, "selected_index"))
            self._widget = widgets.VBox([self._with_play(slider), stack])
        return self._widget

    def _with_play(self, slider: widgets.SelectionSlider) -> widgets.Widget:
        """The slider alone, or beside a button that moves it."""
        if not self.motion:
            return slider
        play = widgets.Play(value=self.start, min=0, max=len(self.values) - 1, interval=_MILLISECONDS)
        widgets.jslink((play, "value"), (slider, "index"))
        return widgets.HBox([play, slider])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        text = f"{self.name}: {', '.join(self.values)}"
        return {**self.widget._repr_mimebundle_(), "text/html": self.html, "text/plain": text}


def explore(
    draw: Callable[[object], Figure],
    values: Sequence,
    *,
    name: str,
    describe: Callable[[object], str],
    start: int | None = None,
    dpi: int = 110,
    motion: bool = False,
) -> Explorer:
    """A slider over pre-drawn figures, one for each value.

    Args:
        draw: ``draw(value) -> Figure``; the figure is closed after it was saved.
        values: what the slider runs over, 2 to 40 of them.
        name: the slider's label. Use Unicode (η, β): controls do not typeset LaTeX.
        describe: ``describe(value) -> str``, the picture in words, for readers who cannot see it.
        start: index shown first; the middle one by default.
        dpi: resolution of the frames.
        motion: offer a button that plays the frames in turn, for values that are times.

    Returns:
        An :class:`Explorer`; end the cell with it.

    Raises:
        ValueError: too few or too many values, or ``start`` outside of them.
        TypeError: if ``draw`` returns no figure.

    Example:
        >>> def draw(power):
        ...     figure, axis = plt.subplots()
        ...     _ = axis.plot([0, 1, 2], [0, 1, 2**power])
        ...     return figure
        >>> slider = explore(draw, [1, 2, 3], name="power", describe=lambda p: f"x to the power {p}")
        >>> slider.values, slider.start
        (('1', '2', '3'), 1)
    """
    values = list(values)
    if not 2 <= len(values) <= _MAX_FRAMES:
        raise ValueError(
            f"{len(values)} values to explore; a slider needs 2 to {_MAX_FRAMES}, each is a picture in the page"
        )
    start = len(values) // 2 if start is None else start
    if not 0 <= start < len(values):
        raise ValueError(f"start = {start} is no index into {len(values)} values")
    frames = [_picture(draw(value), dpi) for value in values]
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return Explorer(name, texts, start, frames, [describe(value) for value in values], motion)


def _picture(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG of few colours; it is closed."""
    if not isinstance(figure, Figure):
        raise TypeError(f"draw(value) must return a matplotlib Figure, got {type(figure).__name__}")
    figure.set_dpi(dpi)
    figure.set_facecolor("white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig draws a figure twice, the first time to lay it out; a draw lays it out as well
    plt.close(figure)
    small = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    picture.convert("RGB").quantize(_COLOURS).save(small, format="png", optimize=True)
    return small.getvalue()


def _image(picture: bytes, words: str, hidden: bool = False) -> str:
    data = base64.b64encode(picture).decode("ascii")
    attribute = " hidden" if hidden else ""
    style = "width: 100%; max-width: 46rem"
    return f'<img alt="{escape(words)}"{attribute} style="{style}" src="data:image/png;base64,{data}">'
