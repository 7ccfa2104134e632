r"""A claim of the book and its verdict.

The register, ``claims.csv``, holds one row for every equation, table and figure of the two papers and for the laws
beyond them. A check cell of a chapter measures a claim and hands the numbers to :func:`claim`, which compares them with
the row's target and tolerance, demands that a control violates it, and prints one line without any float:

.. code-block:: text

    tk-3 · holds (order 2) · control fails as it must

``python -m nlcompanion.checks`` reads these lines back from the executed notebooks and writes ``what_holds.md``.

===========  ==================================================================  =============
kind         the measured numbers are                                            control
===========  ==================================================================  =============
``exact``    residuals of an identity or of a law along solutions                optional
``order``    slopes of an error against the small parameter, in log-log          optional
``limit``    relative errors of a leading-order formula                          optional
``bound``    quantities that must not exceed the target                          optional
``figure``   the number that stands for a figure                                 optional
``misprint`` residuals of the corrected form; the control, of the printed form   mandatory
``false``    violations of what is true instead; the control, of the statement   mandatory
===========  ==================================================================  =============
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from numbers import Complex, Real
from pathlib import Path

__all__ = ["KINDS", "ClaimError", "Finding", "Row", "Verdict", "check", "claim", "register", "verdicts", "what_holds"]

KINDS = ("exact", "order", "limit", "bound", "figure", "misprint", "false")
PAPERS = {
    "TK": "Noether's Learning Dynamics (TK)",
    "GU": "Noether: The More Things Change, the More Stay the Same (GU)",
    "NL": "Beyond the papers (NL)",
}
CHAPTERS = {
    "euler_lagrange": "Euler-Lagrange",
    "kinetic_symmetry_breaking": "Kinetic symmetry breaking",
    "noethers_learning_dynamics": "Noether's learning dynamics",
    "implicit_adaptivity": "Implicit adaptivity",
    "homogeneity": "Homogeneity",
    "linear_layers": "Linear layers",
    "data_symmetry": "Data symmetry",
    "time_symmetry": "Time symmetry",
    "lie_groups": "Lie groups",
    "your_own_model": "Your own model",
}
PAGE = "what_holds.md"
CONTROL_FAILS = "control fails as it must"
NO_CONTROL = "no control"

_ADVICE = {
    "exact": "float64 throughout, the solver's tolerances, and whether the residual is relative to its terms",
    "order": "the range of the fit (large steps are not asymptotic, small ones drown in rounding), the start",
    "limit": "whether the run has left its transient and stays inside the statement's conditions",
    "bound": "the start (at rest?) and whether sums or means over samples are meant",
    "figure": "the settings of the run: data, step size, number of steps, seed",
    "misprint": "whether `measured` belongs to the corrected form and `control` to the printed one, not the reverse",
    "false": "whether `measured` violates the true statement or `control` keeps the printed one; they may be swapped",
}


class ClaimError(AssertionError):
    """A measurement contradicts its claim, or its control does not violate it."""


@dataclass(frozen=True)
class Row:
    """One row of the register.

    Attributes:
        id: ``tk-...``, ``gu-...`` or, beyond the papers, ``nl-...``; parts of one number carry a suffix.
        paper: ``TK``, ``GU`` or ``NL``.
        source: where it stands there, such as ``Eq. 17``.
        statement: what is verified, in our words, with dollar mathematics; for a misprint the corrected form.
        kind: one of :data:`KINDS`.
        target: the number to be met: 0 for a residual, the slope for an order. Dimensionless.
        tolerance: allowed distance from ``target``, positive.
        chapter: stem of the notebook that verifies it.
        condition: what the statement needs to hold, in a few words; "none" for what holds without any.
    """

    id: str
    paper: str
    source: str
    statement: str
    kind: str
    target: float
    tolerance: float
    chapter: str
    condition: str

    @property
    def control_is_mandatory(self) -> bool:
        return self.kind in ("misprint", "false")

    def excess(self, value: float) -> float:
        """How far ``value`` lies beyond what the row allows; at most 0 when it conforms, NaN for NaN."""
        distance = value - self.target
        return (distance if self.kind == "bound" else abs(distance)) - self.tolerance

    @property
    def allowed(self) -> str:
        """Target and tolerance in words, for messages."""
        if self.kind == "bound":
            return f"at most {self.target:g} is allowed, plus {self.tolerance:g} for rounding"
        return f"{self.target:g} ± {self.tolerance:g} is allowed"

    @property
    def detail(self) -> str:
        """The kind as a reader sees it: ``order 2``, ``leading order``, ``exact``."""
        return {"order": f"order {self.target:g}", "limit": "leading order"}.get(self.kind, self.kind)

    def line(self, control: bool) -> str:
        """The verdict line that a successful check prints."""
        if self.kind == "misprint":
            return f"{self.id} · misprint: fails as printed, holds as corrected"
        if self.kind == "false":
            return f"{self.id} · false: fails as stated, the true statement holds"
        return f"{self.id} · holds ({self.detail}) · {CONTROL_FAILS if control else NO_CONTROL}"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check that passed.

    Attributes:
        id: the claim.
        kind: its kind.
        holds: whether the paper's statement holds as it is printed; False for misprints and false statements, whose
            correction is what was verified.
        text: the line that :func:`claim` prints, the same on every machine.
    """

    id: str
    kind: str
    holds: bool
    text: str


@cache
def register() -> tuple[Row, ...]:
    """Every row of ``claims.csv``, in its order.

    Example:
        >>> len({row.id for row in register()}) == len(register())
        True
    """
    text = files("nlcompanion").joinpath("claims.csv").read_text(encoding="utf-8")
    return tuple(
        Row(**(raw | {"target": float(raw["target"]), "tolerance": float(raw["tolerance"])}))
        for raw in csv.DictReader(text.splitlines())
    )


@cache
def _rows() -> dict[str, Row]:
    return {row.id: row for row in register()}


def _row(id: str) -> Row:
    if not isinstance(id, str):
        raise TypeError(f"a claim's id is a string such as 'tk-3', got {type(id).__name__}")
    if id not in _rows():
        parts = [known for known in _rows() if known.startswith(id + "-")]
        close = parts or get_close_matches(id, _rows(), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else "register() lists every id"
        raise ValueError(f"claim {id!r} is not in the register, so it has no tolerance to be held to; {hint}")
    return _rows()[id]


def check(id: str, measured, control=None) -> Verdict:
    r"""Compare a measurement with the register's row, without printing.

    Args:
        id: a row of the register.
        measured: one number, or any nesting of sequences, arrays, tensors and mappings of numbers; a mapping's keys
            name the numbers in messages. Dimensionless. Every number must lie within the tolerance of the target
            (for a bound: not above it).
        control: the same shapes, measured where the claim must fail: the wrong exponent, the printed form, a broken
            symmetry. Every number must violate the row. Mandatory for kinds ``misprint`` and ``false``.

    Returns:
        The :class:`Verdict`.

    Raises:
        ClaimError: a number is outside the tolerance, NaN or infinite; the control conforms; nothing was measured.
        TypeError: a bool or something that is no number. A bool would be a check that hides its measurement.
        ValueError: the id is unknown, or a mandatory control is missing.

    Example:
        >>> check("tk-3", {"beta=0": 2.01, "beta=0.9": 1.98}, control=1.02).text
        'tk-3 · holds (order 2) · control fails as it must'
    """
    row = _row(id)
    if control is None and row.control_is_mandatory:
        raise ValueError(
            f"claim {id} is of kind {row.kind} and got no control, so nothing would show that the printed form fails; "
            "pass control=, measured from the formula as printed"
        )
    found = _collect(row, "measured", measured)
    name, value = max(found, key=lambda pair: row.excess(pair[1]))
    if not row.excess(value) <= 0:
        raise _failure(row, f"{name} is {value:.6g}, where {row.allowed}", len(found), _ADVICE[row.kind])
    if control is not None:
        found = _collect(row, "control", control)
        name, value = min(found, key=lambda pair: row.excess(pair[1]))
        if not row.excess(value) > 0:
            raise _failure(
                row,
                f"its control does not fail: {name} is {value:.6g}, and {row.allowed}",
                len(found),
                "whether the control really breaks the claim, and by more than the tolerance; "
                "a check that cannot fail shows nothing",
            )
    return Verdict(row.id, row.kind, not row.control_is_mandatory, row.line(control is not None))


def claim(id: str, measured, control=None) -> None:
    """Assert a claim of the book and print its verdict line.

    What a chapter's check cell calls; :func:`check` says what the arguments are and what is raised. Returns nothing,
    so that a notebook cell shows the printed line alone.

    Example:
        >>> claim("gu-31", [2e-9, -1e-9], control=0.3)
        gu-31 · holds (exact) · control fails as it must
        >>> claim("tk-table1-1", measured=0.0, control={"printed": 0.8})
        tk-table1-1 · misprint: fails as printed, holds as corrected
    """
    print(check(id, measured, control).text)


def _failure(row: Row, fact: str, count: int, advice: str) -> ClaimError:
    among = f" (the worst of {count} numbers)" if count > 1 else ""
    return ClaimError(
        f"claim {row.id} is not supported: {fact}{among}\n"
        f"  statement: {row.statement}\n"
        f"  consequence: no verdict is printed, and {PAGE} lists the claim as open\n"
        f"  look at: {advice}"
    )


def _collect(row: Row, role: str, value) -> list[tuple[str, float]]:
    """The named numbers in ``value``, all finite and at least one."""
    found = list(_numbers(value, role))
    if not found:
        raise _failure(row, f"{role} is empty", 0, "whether the run recorded anything; an empty check shows nothing")
    for name, number in found:
        if not math.isfinite(number):
            raise _failure(
                row, f"{name} is {number}", 0, "where the run diverged; NaN and infinity compare with nothing"
            )
    return found


def _numbers(value, name: str) -> Iterator[tuple[str, float]]:
    # tolist() turns NumPy arrays and torch tensors of any shape into Python numbers, and needs neither library here
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool):
        raise TypeError(
            f"{name} is the bool {value}; a verdict reached beforehand hides its measurement: "
            "pass the residual, the slope or the ratio itself"
        )
    if isinstance(value, Real):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}[{key!r}]")
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{name}[{i}]")
    else:
        fix = "take its absolute value" if isinstance(value, Complex) else "pass numbers, arrays, tensors or mappings"
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, which is no real number; {fix}")


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
            row = _rows().get(finding.id)
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
        streams = (output for output in cell.get("outputs", ()) if output.get("name") == "stdout")
        for match in _LINE.finditer("".join(_joined(stream["text"]) for stream in streams)):
            yield Finding(match[1], match[0], path.stem, cell.get("execution_count"), target)


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

```{raw} html
<style>
  .bd-main .bd-content .bd-article-container { max-width: 75em; }
  .bd-article section section table { font-size: 0.85em; }
</style>
```
"""

_INTRODUCTION = """\
Every equation, table and figure of the two papers, and every law this book adds, is a claim that code has to earn.
A check cell in a chapter measures it and compares the number with a tolerance that was fixed beforehand; where the
verdict mentions a control, the same check was made to fail on purpose, and did. This page is written from the executed
notebooks by `python -m nlcompanion.checks`. A claim without a verdict line is **open**.
"""

_LEGEND = """\
The kinds: *exact*, an identity or a law along solutions, to rounding or to the solver's accuracy; *order p*, an error
that falls as that power of the small parameter, its slope measured; *leading order*, a formula within a stated small
error; *bound*, an inequality; *figure*, a picture of the paper made again, with a number that stands for it;
*misprint*, a formula that fails as printed and holds as given here; *false*, a statement that no correction of a symbol
saves, with what is true instead.
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
    header = ("claim", "statement", "kind", "verdict", "where")
    parts = [_FRONT_MATTER, "# What holds", _INTRODUCTION, _summary(found), _LEGEND]
    for paper, title in PAPERS.items():
        rows = [_entry(row, found.get(row.id), chapters) for row in register() if row.paper == paper]
        parts += [f"## {title}", _table(header, rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(found: Mapping[str, Finding]) -> str:
    counts = []
    for paper in PAPERS:
        rows = [row for row in register() if row.paper == paper]
        shown = [row for row in rows if row.id in found]
        wrong = [sum(row.kind == kind for row in shown) for kind in ("misprint", "false")]
        counts.append([len(shown) - sum(wrong), *wrong, len(rows) - len(shown), len(rows)])
    total = [sum(column) for column in zip(*counts, strict=True)]
    sentence = f"{total[4] - total[3]} of {total[4]} claims have a verdict, {total[3]} are open."
    rows = [[name, *map(str, row)] for name, row in zip([*PAPERS, "together"], [*counts, total], strict=True)]
    header = ("", "holds", "misprint, corrected", "false, replaced", "open", "claims")
    return sentence + "\n\n" + _table(header, rows)


def _entry(row: Row, finding: Finding | None, chapters: set[str]) -> list[str]:
    chapter = CHAPTERS[row.chapter]
    where = f"{{doc}}`{chapter} <{row.chapter}>`" if row.chapter in chapters else chapter
    name = f"`{row.id}` {row.source}"
    needs = row.condition if row.condition != "none" else ""
    statement = f"{row.statement} *Needs:* {needs}." if needs else row.statement
    if finding is None:
        return [name, statement, row.detail, "**open**", where]
    if finding.target:
        where += f", {{ref}}`cell {finding.execution_count} <{finding.target}>`"
    verdict = finding.text.removeprefix(f"{row.id} · ").removeprefix(f"{row.kind}: ")
    verdict = verdict.replace(f" ({row.detail})", "").replace(" · ", "; ")  # the kind has its own column
    return [name, statement, row.detail, verdict, where]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; see ``python -m nlcompanion.checks --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m nlcompanion.checks", description=f"Write {PAGE} from the book's executed notebooks."
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
        print(f"{target} {state}; run: python -m nlcompanion.checks --book {options.book}", file=sys.stderr)
        return 1
    if page != current:
        partial = target.with_suffix(".part")  # replaced in one move: an interrupted run leaves the old page
        partial.write_text(page, encoding="utf-8", newline="\n")
        partial.replace(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
