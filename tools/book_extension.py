"""What the book needs of Sphinx beyond its settings: MathJax from a package, no widget library, a chapter's line.

MathJax lies in the package ``django-static-mathjax`` (used for its files alone). One file of it is copied among the
static ones, so that formulas need no network. The controls of the chapters are plain HTML in a page, so the state that
notebooks keep for JupyterLab's widgets is left out of it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from importlib.resources import files
from pathlib import Path

from nlcompanion.book.register import VERDICTS, rows_by_id
from tools.notebooks import RECORD
from tools.what_holds import verdicts

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


BUTTONS = {
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"},
}


def offer_buttons(app, config) -> None:
    """Buttons to the repository, Colab and Binder, once the settings name a repository."""
    options = config.html_theme_options
    if options.get("repository_url"):
        config.html_theme_options = {**options, **BUTTONS}


WORDS_PER_MINUTE = 180  # of text with formulas


def minutes_to_read(texts: list[str]) -> int:
    return max(1, round(len(" ".join(texts).split()) / WORDS_PER_MINUTE))


def prose(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def in_brief(notebook: dict, claims: list[str]) -> str:
    """What stands below a chapter's title: how its claims fare, how long it takes to read and to execute, with what."""
    minutes = minutes_to_read(prose(notebook))
    counts = Counter(rows_by_id()[id].verdict for id in claims)
    fates = [_counted(counts[verdict], verdict) for verdict in VERDICTS if counts[verdict]]
    parts = [f"{len(claims)} [claims](what_holds.md): {', '.join(fates)}"] if claims else []
    parts.append(f"{minutes} minutes to read")
    record = notebook["metadata"].get(RECORD)
    if record:
        names = {"torch": "PyTorch", "numpy": "NumPy", "scipy": "SciPy"}
        versions = ", ".join(f"{names[name]} {number}" for name, number in record["versions"].items())
        parts.append(f"executed in {record['seconds']} s with {versions}")
    return " · ".join(parts)


def _counted(count: int, verdict: str) -> str:
    return f"{count} {verdict if count == 1 else verdict.replace('holds', 'hold')}"


def put_in_brief(app, docname: str, source: list[str]) -> None:
    """Write that line into a notebook as it is read."""
    path = Path(app.srcdir) / f"{docname}.ipynb"
    if not path.exists():
        return
    notebook = json.loads(source[0])
    opening = notebook["cells"][0]
    title, _, rest = "".join(opening["source"]).partition("\n")
    brief = in_brief(notebook, list(verdicts([path])))
    opening["source"] = f"{title}\n\n{{.nl-brief}}\n{brief}\n{rest}"
    source[0] = json.dumps(notebook)


# They do not say that pages may be read side by side, and keep nothing of a page: one counts the chapters once all have
# been read, the other prepares LaTeX.
_SILENT = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def allow_processes(app, config) -> None:
    for name in _SILENT:
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = app.extensions[name].parallel_write_safe = True


_CHAPTER_ROW = re.compile(r"^\| \[\]\((?P<file>[\w.]+)\)", re.MULTILINE)


def put_reading_times(app, docname: str, source: list[str]) -> None:
    """Write behind each chapter that begins a row of the front page how many minutes it takes to read."""
    if docname != app.config.root_doc:
        return
    folder = (Path(app.srcdir) / docname).parent

    def with_minutes(row: re.Match[str]) -> str:
        text = (folder / row["file"]).read_text(encoding="utf-8")
        texts = prose(json.loads(text)) if row["file"].endswith(".ipynb") else [text]
        return f"{row[0]}, {minutes_to_read(texts)} min"

    source[0] = _CHAPTER_ROW.sub(with_minutes, source[0])


def drop_widget_state(app, env) -> None:
    """Keep the widgets' state, which only a live notebook reads, out of every page."""
    for page in getattr(env, "nb_metadata", {}).values():
        page.get("js_files", {}).pop(_STATE, None)


def mend_bibliography(app, pagename, templatename, context, doctree) -> None:
    """Take the role of a list from bibliographies, whose entries are no items of a list to a screen reader."""
    body = context.get("body") or ""
    context["body"] = body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def name_the_folds(app, pagename, templatename, context, doctree) -> None:
    """Give every fold of the contents a name for screen readers; the theme draws an arrow there and says nothing."""
    contents_of_the_theme = context.get("generate_toctree_html")
    if contents_of_the_theme is None:
        return

    def with_names(*args, **kwargs):
        contents = contents_of_the_theme(*args, **kwargs)
        for summary in contents.select("summary") if hasattr(contents, "select") else ():
            summary["aria-label"] = "Pages below"
        return contents

    context["generate_toctree_html"] = with_names


def setup(app) -> dict[str, bool]:
    app.connect("config-inited", provide_mathjax)
    app.connect("config-inited", offer_buttons)
    app.connect("config-inited", allow_processes)
    app.connect("source-read", put_in_brief)
    app.connect("source-read", put_reading_times)
    app.connect("env-updated", drop_widget_state)
    app.connect("html-page-context", mend_bibliography)
    app.connect("html-page-context", name_the_folds, priority=600)  # after the theme, which puts its function there
    return {"parallel_read_safe": True, "parallel_write_safe": True}
