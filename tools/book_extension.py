"""What the book needs of Sphinx beyond its settings: MathJax from a Python package, and no widget library.

MathJax lies in the package ``django-static-mathjax`` (used for its files alone). One file of it is copied among the
static ones, so that formulas need no network. The controls of the chapters are plain HTML in a page, so the state that
notebooks keep for JupyterLab's widgets is left out of it.
"""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

MATHJAX = "tex-svg-full.js"  # draws with paths: no fonts to be found, so it works from a file too
_STATE = "ipywidgets_state"


def provide_mathjax(app, config) -> None:
    """Put MathJax's one file into a folder of static files and name it in the settings."""
    folder = Path(app.doctreedir).parent / "mathjax"
    folder.mkdir(parents=True, exist_ok=True)
    source = files("mathjax") / "static" / "mathjax" / "es5" / MATHJAX
    shutil.copyfile(str(source), folder / MATHJAX)
    config.html_static_path = [*config.html_static_path, str(folder)]
    config.mathjax_path = MATHJAX


def drop_widget_state(app, env) -> None:
    """Keep the widgets' state, which only a live notebook reads, out of every page."""
    for page in getattr(env, "nb_metadata", {}).values():
        page.get("js_files", {}).pop(_STATE, None)


def mend_bibliography(app, pagename, templatename, context, doctree) -> None:
    """Take the role of a list from bibliographies, whose entries are no items of a list to a screen reader."""
    body = context.get("body") or ""
    context["body"] = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def setup(app) -> dict[str, bool]:
    app.connect("config-inited", provide_mathjax)
    app.connect("env-updated", drop_widget_state)
    app.connect("html-page-context", mend_bibliography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
