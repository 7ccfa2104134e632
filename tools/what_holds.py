"""Write ``book/what_holds.md`` from the executed notebooks: ``python -m tools.what_holds --help``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlcompanion.book.register import CHAPTERS, PAGE, PAPERS, VERDICTS, Row, register, rows_by_id

__all__ = ["Finding", "shown_text", "verdicts", "what_holds"]


# --- from executed notebooks to the page --------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A verdict line in an executed notebook.

    Attributes:
        id: the claim.
        text: the whole line.
        notebook: the notebook's stem.
        execution_count: the number of the cell, as the notebook shows it in brackets.
        target: the nearest MyST target ``(check-...)=`` in the Markdown above the cell, or None.
    """

    id: str
    text: str
    notebook: str
    execution_count: int | None
    target: str | None


_TARGET = re.compile(r"^\((check-[^)\s]+)\)=[ \t]*$", re.MULTILINE)
_LINE = re.compile(r"^([a-z]{2}-[a-z0-9-]+) · .+$", re.MULTILINE)


def verdicts(notebooks: Iterable[Path | str]) -> dict[str, Finding]:
    """The verdict lines that the register would print today, by id, read from notebooks' standard output.

    A line counts in the chapter that its row names and nowhere else, and only in its present wording: what an older
    register printed is no verdict.

    Args:
        notebooks: paths of executed ``.ipynb`` files.

    Raises:
        ValueError: a file is not a notebook.
    """
    found: dict[str, Finding] = {}
    for path in map(Path, notebooks):
        for finding in _lines(path):
            row = rows_by_id().get(finding.id)
            if row and row.chapter == path.stem and finding.text in _wordings(row):
                found.setdefault(finding.id, finding)
    return found


def _wordings(row: Row) -> set[str]:
    return {row.line(control=True), row.line(control=row.control_is_mandatory)}


def _lines(path: Path) -> Iterator[Finding]:
    """Everything that looks like a verdict line in one notebook's standard output."""
    target = None
    for cell in _cells(path):
        if cell["cell_type"] == "markdown":
            target = (_TARGET.findall(_joined(cell["source"])) or [target])[-1]
        for match in _LINE.finditer(shown_text(cell)):
            yield Finding(match[1], match[0], path.stem, cell.get("execution_count"), target)


def shown_text(cell: Mapping) -> str:
    """What a cell prints on standard output, and the text form of the verdicts that it displays."""
    texts = []
    for output in cell.get("outputs", ()):
        if output.get("name") == "stdout":
            texts.append(_joined(output["text"]))
        elif "nl-claim" in _joined(output.get("data", {}).get("text/html", "")):
            texts.append(_joined(output["data"]["text/plain"]) + "\n")
    return "".join(texts)


def _uncounted(book: Path) -> list[Finding]:
    """Verdict lines that :func:`verdicts` passes over: another chapter's claims, unknown ids, old wordings."""
    notebooks = sorted(book.glob("*.ipynb"))
    counted = {(finding.notebook, finding.text) for finding in verdicts(notebooks).values()}
    return [line for path in notebooks for line in _lines(path) if (line.notebook, line.text) not in counted]


def _cells(path: Path) -> Sequence[dict]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a notebook that can be read ({error}); its verdicts cannot be told: execute it again"
        ) from error


def _joined(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


# five columns with formulas need the width that other pages give to their own table of contents
_FRONT_MATTER = """\
---
html_theme.sidebar_secondary.remove: true
---
"""

_INTRODUCTION = """\
Every equation, table and figure of the two papers, and every law this book adds, is a claim that code has to earn.
A check cell in a chapter measures it and compares the number with a tolerance that was fixed beforehand; where the
verdict mentions a control, the same check was made to fail on purpose, and did. The page sets what a paper says beside
what was found. It is written from the executed notebooks by `python -m tools.what_holds`; a claim without a verdict
there is **open**.
"""

_KINDS = """\
Behind each verdict stands what was measured: *exact*, an identity or a law along solutions, to rounding or to the
solver's accuracy; *order p*, an error that falls as that power of the small parameter, its slope measured; *leading
order*, a formula within a stated small error; *bound*, an inequality; *figure*, a picture of the paper made again, with
a number that stands for it.
"""

_CORRECTIONS = {
    "misprint": "holds as corrected, fails as printed",
    "false": "what we find holds, the paper's statement fails",
    "unsupported": "what we find holds, the paper's guess fails",
}

# The controls are shown by the script that serves them: without it there is nothing to search with.
_CONTROLS = """\
```{raw} html
<form class="nl-find" role="search" hidden>
  <label>Search the claims <input type="search" name="words" placeholder="momentum, Eq. 17, tk-3"></label>
  <label>Verdict <select name="verdict"><option value="">all</option></select></label>
  <output aria-live="polite"></output>
</form>
<script defer src="../_static/what_holds.js"></script>
```
"""


def what_holds(book: Path | str) -> str:
    """The page ``what_holds.md``, written from the executed notebooks of ``book``.

    Args:
        book: the folder with the notebooks.

    Raises:
        ValueError: the folder has no notebooks, or one of them cannot be read.
    """
    notebooks = sorted(Path(book).glob("*.ipynb"))
    if not notebooks:
        raise ValueError(f"{book} holds no notebooks, so there are no verdicts to read; name the book's folder")
    found = verdicts(notebooks)
    chapters = {path.stem for path in notebooks}
    parts = [_FRONT_MATTER, "# What holds", _INTRODUCTION, _summary(found), _legend(), _KINDS, _CONTROLS]
    for paper, title in PAPERS.items():
        rows = [row for row in register() if row.paper == paper]
        entries = [_entry(row, found.get(row.id), chapters) for row in rows]
        says = ("the paper says",) if paper != "NL" else ()
        header = ("claim", *says, "we find", "verdict", "where")
        parts += [f"## {title}", _table(header, entries)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(found: Mapping[str, Finding]) -> str:
    """How many claims of each paper have which verdict."""
    counts = []
    for paper in PAPERS:
        rows = [row for row in register() if row.paper == paper]
        shown = [row.verdict for row in rows if row.id in found]
        by_verdict = [shown.count(verdict) for verdict in VERDICTS]
        counts.append([*by_verdict, len(rows) - len(shown), len(rows)])
    total = [sum(column) for column in zip(*counts, strict=True)]
    *_, without, claims = total
    sentence = f"{claims - without} of {claims} claims have a verdict, {without} are open."
    rows = [[name, *map(str, row)] for name, row in zip([*PAPERS, "together"], [*counts, total], strict=True)]
    return sentence + "\n\n" + _table(("", *VERDICTS, "open", "claims"), rows)


def _legend() -> str:
    meanings = [f"*{verdict}*: {meaning}" for verdict, meaning in VERDICTS.items()]
    return "The verdicts. " + "; ".join(meanings) + "."


def _entry(row: Row, finding: Finding | None, chapters: set[str]) -> list[str]:
    """One row of the table: the claim, what the paper says, what is found, the verdict, where to see it."""
    chapter = CHAPTERS[row.chapter]
    where = f"{{doc}}`{chapter} <{row.chapter}>`" if row.chapter in chapters else chapter
    # an anchor of its own, and an entry of the index, which the search finds before all text
    name = f"`{row.id}`{{#{row.id}}} {{index}}`{row.source} <single: {row.id}>`"
    needs = row.condition if row.condition != "none" else ""
    statement = f"{row.statement} *Needs:* {needs}." if needs else row.statement
    says = [row.paper_says] if row.paper != "NL" else []
    if finding is None:
        return [name, *says, statement, "**open**", where]
    if finding.target:
        where += f", {{ref}}`cell {finding.execution_count} <{finding.target}>`"
    control = "" if "control" not in finding.text else "; " + finding.text.rpartition(" · ")[2]
    detail = _CORRECTIONS.get(row.kind, row.detail + control)
    return [name, *says, statement, f"**{row.verdict}** ({detail})", where]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; see ``python -m tools.what_holds --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.what_holds", description=f"Write {PAGE} from the book's executed notebooks."
    )
    parser.add_argument("--book", type=Path, default=Path("book"), help="folder of the notebooks (default: book)")
    parser.add_argument("--check", action="store_true", help=f"change nothing; exit 1 if {PAGE} is out of date")
    options = parser.parse_args(argv)
    try:
        page = what_holds(options.book)
        for finding in _uncounted(options.book):
            print(f"{finding.notebook}: the line {finding.text!r} does not count; see verdicts()", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    target = options.book / PAGE
    current = target.read_text(encoding="utf-8") if target.exists() else None
    if options.check and page != current:
        state = "is out of date" if current is not None else "does not exist"
        print(f"{target} {state}; run: python -m tools.what_holds --book {options.book}", file=sys.stderr)
        return 1
    if page != current:
        partial = target.with_suffix(".part")  # replaced in one move: an interrupted run leaves the old page
        partial.write_text(page, encoding="utf-8", newline="\n")
        partial.replace(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
