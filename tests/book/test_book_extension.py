"""What the book's extension of Sphinx adds to pages."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from nlcompanion.book.claims import check
from tools import book_extension, reference
from tools.notebooks import RECORD

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("address", "offered"), [("", False), ("https://example.org/owner/book", True)])
def test_one_address_switches_the_buttons_on(address, offered):
    options = {"repository_url": address, "use_repository_button": False}
    config = SimpleNamespace(html_theme_options=options)
    book_extension.offer_buttons(None, config)
    assert config.html_theme_options["use_repository_button"] is offered
    assert ("launch_buttons" in config.html_theme_options) is offered


def chapter(words: int, record: dict | None):
    verdicts = [check("tk-1", 0.0, control=1.0), check("tk-3", 2.0), check("tk-table1-1", 0.0, control=1.0)]
    outputs = [
        {"output_type": "display_data", "metadata": {}, "data": {"text/plain": repr(v), "text/html": v._repr_html_()}}
        for v in verdicts
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# A title\n\nIts claim. " + "word " * words},
        {"cell_type": "code", "metadata": {}, "source": "", "execution_count": 1, "outputs": outputs},
    ]
    return {"cells": cells, "metadata": {RECORD: record} if record else {}, "nbformat": 4, "nbformat_minor": 5}


def test_a_chapter_says_its_claims_its_length_and_its_execution(tmp_path):
    record = {"seconds": 12, "versions": {"torch": "2.13.0", "numpy": "2.4", "scipy": "1.17"}}
    notebook = chapter(words=1800, record=record)
    (tmp_path / "euler_lagrange.ipynb").write_text(json.dumps(notebook))
    source = [json.dumps(notebook)]
    book_extension.put_in_brief(SimpleNamespace(srcdir=tmp_path), "euler_lagrange", source)
    opening = "".join(json.loads(source[0])["cells"][0]["source"])
    title, brief, rest = opening.split("\n\n", 2)
    assert title == "# A title"
    assert "3 [claims](what_holds.md): 1 holds, 1 holds under a condition, 1 misprint" in brief
    assert "10 minutes to read" in brief
    assert "executed in 12 s with PyTorch 2.13.0, NumPy 2.4, SciPy 1.17" in brief
    assert rest.startswith("Its claim.")


def test_what_is_no_notebook_stays_as_it_is(tmp_path):
    source = ["# A page\n"]
    book_extension.put_in_brief(SimpleNamespace(srcdir=tmp_path), "page", source)
    assert source == ["# A page\n"]


def test_the_front_page_says_how_long_each_chapter_takes(tmp_path):
    (tmp_path / "one.ipynb").write_text(json.dumps(chapter(words=900, record=None)))
    (tmp_path / "other.md").write_text("word " * 360)
    table = "| | afterwards |\n|---|---|\n| [](one.ipynb) | this |\n| [](other.md), an appendix | that |\n"
    app = SimpleNamespace(srcdir=tmp_path, config=SimpleNamespace(root_doc="index"))
    front, elsewhere = [table], [table]
    book_extension.put_reading_times(app, "index", front)
    book_extension.put_reading_times(app, "page", elsewhere)
    assert "| [](one.ipynb), 5 min | this |" in front[0]
    assert "| [](other.md), 2 min, an appendix | that |" in front[0]
    assert elsewhere == [table]


# --- the reference ----------------------------------------------------------------------------------------------------


def test_a_property_keeps_its_sentence():
    """Napoleon has made a type of what stood before the colon."""
    lines = ["what the error is judged by.", "", "More.", "", ":type: The largest that it has been, in radians"]
    reference.mend_property(None, "property", "Tracker.reach", None, None, lines)
    assert lines == ["The largest that it has been, in radians: what the error is judged by.", "", "More.", ""]
    given = ["What it is.", "", ":type: int"]
    reference.mend_property(None, "method", "Tracker.take", None, None, given)  # the control
    assert given[-1] == ":type: int"


def test_fields_that_say_nothing_are_left_out():
    class Pair(NamedTuple):
        """Two numbers."""

        first: float
        second: float

        def both(self):
            """Their sum."""

    assert reference.leave_out_fields(None, "class", "first", Pair.first, False, None) is True
    assert reference.leave_out_fields(None, "class", "both", Pair.both, False, None) is None


def test_the_reference_as_it_is_built():
    folder = ROOT / "_build" / "html" / "book" / "api"
    if not folder.exists():
        pytest.skip("no built book to look at; `make test` builds it first (make book)")
    pages = [page.read_text(encoding="utf-8") for page in folder.glob("*.html")]
    assert not [page for page in pages if "Alias for field number" in page]
    assert not [page for page in pages if "Define the computation performed at every call" in page]  # torch's words
