"""Captions stand below their figures in notebooks, and belong to them on the pages."""

import pytest

from tools.captions import caption_of, join_captions

CAPTION = ":::{figure}\n:name: fig-two\nTwo curves, {eq}`eq-x`.\n:::"
CONTROL = "application/vnd.jupyter.widget-view+json"


def text(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(*kinds):
    outputs = [{"output_type": "display_data", "data": {kind: ""}} for kind in kinds]
    return {"cell_type": "code", "metadata": {}, "source": "draw()", "outputs": outputs}


def joined(*cells):
    return join_captions({"cells": list(cells), "metadata": {}})["cells"]


def test_the_caption_of_a_picture_goes_to_the_cell_that_draws_it():
    (cell,) = joined(code("image/png"), text(CAPTION))
    assert cell["metadata"]["mystnb"]["figure"] == {"caption": "Two curves, {eq}`eq-x`.", "name": "fig-two"}


def test_the_caption_of_a_control_becomes_a_directive():
    _, cell = joined(code(CONTROL, "text/html"), text(CAPTION))
    assert cell["source"] == "````{control-caption}\n:name: fig-two\n\nTwo curves, {eq}`eq-x`.\n````"


def test_other_cells_stay():
    cells = [text("# A title"), code("image/png"), text("A figure has a :::{figure} somewhere.")]
    assert joined(*cells) == cells
    assert caption_of(cells[2]) is None


@pytest.mark.parametrize("above", [text("words"), code(), code("text/plain")], ids=["text", "nothing", "print"])
def test_a_caption_below_no_figure_is_told(above):
    with pytest.raises(ValueError, match="the caption fig-two stands below"):
        joined(above, text(CAPTION))
