"""A figure's caption stands in the cell below it, so that a notebook shows it; on the page it belongs to the figure.

In a notebook the caption is a Markdown cell of its own, a figure without a picture::

    :::{figure}
    :name: fig-two-motions
    One integrator, two motions.
    :::

JupyterLab (with jupyterlab-myst) shows and numbers it where it stands. Before Sphinx reads the notebook, the caption of
a picture is handed to the cell that draws it, and that of a control to a directive that puts both into one figure.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

CAPTION = re.compile(r"\A:::\{figure\}\n:name: (?P<name>\S+)\n(?P<text>.+)\n:::\s*\Z", re.DOTALL)
_CONTROL = "application/vnd.jupyter.widget-view+json"


def caption_of(cell: dict) -> tuple[str, str] | None:
    """The name and the text of a caption, or None for any other cell."""
    found = CAPTION.match("".join(cell["source"])) if cell["cell_type"] == "markdown" else None
    return (found["name"], found["text"]) if found else None


def shows(cell: dict, kind: str) -> bool:
    """Whether one of a cell's outputs is of this MIME type, or of a type that begins so."""
    outputs = cell.get("outputs", []) if cell["cell_type"] == "code" else []
    return any(mime.startswith(kind) for output in outputs for mime in output.get("data", {}))


def join_captions(notebook: dict) -> dict:
    """The notebook with every caption at the picture or the control above it."""
    cells: list[dict] = []
    for cell in notebook["cells"]:
        caption = caption_of(cell)
        if caption is None:
            cells.append(cell)
            continue
        name, text = caption
        if not cells or cells[-1]["cell_type"] != "code":
            raise ValueError(f"the caption {name} stands below no cell that draws; move it there")
        if shows(cells[-1], "image/"):
            about = cells[-1]["metadata"].setdefault("mystnb", {})
            about["figure"] = {"caption": text, "name": name}
        elif shows(cells[-1], _CONTROL):
            cell["source"] = f"````{{control-caption}}\n:name: {name}\n\n{text}\n````"
            cells.append(cell)
        else:
            raise ValueError(f"the caption {name} stands below a cell that shows neither a picture nor a control")
    return {**notebook, "cells": cells}


class ControlCaption(SphinxDirective):
    """A figure with a caption; :class:`ControlIntoFigure` puts the control into it."""

    has_content = True
    option_spec = {"name": directives.unchanged_required}  # noqa: RUF012  (docutils' own form)

    def run(self) -> list[nodes.Node]:
        caption = nodes.caption()
        text = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, text)
        caption.extend(text[0].children)
        figure = nodes.figure("", caption, classes=["nl-control"])
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure]


class ControlIntoFigure(SphinxTransform):
    """Move the output above a control's caption into the figure of that caption."""

    default_priority = 210  # before references are resolved

    def apply(self, **kwargs) -> None:
        for figure in list(self.document.findall(lambda node: "nl-control" in _classes(node, nodes.figure))):
            above = figure.parent[figure.parent.index(figure) - 1]
            (output,) = list(above.findall(lambda node: "cell_output" in _classes(node, nodes.container)))
            figure.parent.remove(figure)
            for part in reversed(output.children):
                figure.insert(0, part)
            output.children = []
            output.append(figure)


def _classes(node: nodes.Node, kind: type[nodes.Element]) -> list[str]:
    return node["classes"] if isinstance(node, kind) else []


def read_captions(app, docname: str, source: list[str]) -> None:
    if (Path(app.srcdir) / f"{docname}.ipynb").exists():
        source[0] = json.dumps(join_captions(json.loads(source[0])))


def setup(app) -> dict[str, bool]:
    app.connect("source-read", read_captions)
    app.add_directive("control-caption", ControlCaption)
    app.add_transform(ControlIntoFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
