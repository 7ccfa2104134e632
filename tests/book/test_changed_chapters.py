"""A reader changes one thing, and the chapter goes on: each chapter is executed with the changes that it proposes.

The table under *Change one thing* is read as it stands: a line of the chapter's code, what to write instead, and which
claims are *not supported* afterwards. All changes of a chapter are made at once. No cell may fail, and just the claims
that the table names may come out unsupported.
"""

import ast
import os
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from nlcompanion.book.claims import RAISE

BOOK = Path(__file__).resolve().parents[2] / "book"
REFERENCE = {"errata"}  # no experiment to vary
CHAPTERS = sorted(path for path in BOOK.glob("*.ipynb") if path.stem not in REFERENCE)
ROW = re.compile(r"^\| `(?P<old>[^`|]+)` \| `(?P<new>[^`|]+)` \| (?P<expect>[^|]+) \|$", re.MULTILINE)
UNSUPPORTED = re.compile(r"^(\S+) · not supported at these settings", re.MULTILINE)


class Change(NamedTuple):
    old: str
    new: str
    unsupported: frozenset[str]  # claims that the text expects to lose


def section(notebook) -> str:
    """What stands under the heading, with the table."""
    found = [cell.source for cell in notebook.cells if re.search(r"^## Change one thing$", cell.source, re.MULTILINE)]
    assert len(found) == 1, f"{len(found)} sections named 'Change one thing'; a chapter has one"
    return found[0]


def changes(notebook) -> list[Change]:
    found = []
    for row in ROW.finditer(section(notebook)):
        claims = re.findall(r"`([a-z]+(?:-[\w.]+)+)`", row["expect"])
        lost = claims if "not supported" in row["expect"] else []
        found.append(Change(row["old"], row["new"], frozenset(lost)))
    return found


def changed(notebook, proposed: list[Change]):
    """A copy of the notebook with these changes; each must find its line in just one code cell."""
    copy = nbformat.from_dict(notebook)
    for change in proposed:
        places = [cell for cell in copy.cells if cell.cell_type == "code" and change.old in cell.source]
        assert len(places) == 1, f"{change.old!r} stands in {len(places)} code cells, not in one"
        assert places[0].source.count(change.old) == 1, f"{change.old!r} stands more than once in its cell"
        places[0].source = places[0].source.replace(change.old, change.new)
        ast.parse(places[0].source)
    return copy


def unsupported(notebook) -> set[str]:
    """The claims that an executed notebook shows as not supported."""
    shown = [
        output.get("data", {}).get("text/plain", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    return {claim for text in shown for claim in UNSUPPORTED.findall(text)}


def run(notebook):
    """Execute as a reader does, who has set nothing that would make a claim an error."""
    kernel = {name: value for name, value in os.environ.items() if name not in (RAISE, "MPLBACKEND")}
    kernel |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BOOK.parent)}
    place = {"metadata": {"path": str(BOOK)}}
    # outputs may come late on a busy machine, and one that is missing is a claim that nobody hears of
    client = NotebookClient(notebook, timeout=600, iopub_timeout=60, kernel_name="python3", resources=place)
    client.execute(env=kernel)
    return notebook


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_proposes_changes_that_can_be_made(path):
    notebook = nbformat.read(path, as_version=4)
    proposed = changes(notebook)
    assert 3 <= len(proposed) <= 6, f"{len(proposed)} changes; three to six are enough to try"
    assert section(notebook).count("\n|") == len(proposed) + 2, "a row of the table could not be read"
    assert all(change.old != change.new for change in proposed)
    changed(notebook, proposed)


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_changed_chapter_goes_on_to_its_end(path):
    notebook = nbformat.read(path, as_version=4)
    proposed = changes(notebook)
    expected = {claim for change in proposed for claim in change.unsupported}
    assert unsupported(run(changed(notebook, proposed))) == expected
