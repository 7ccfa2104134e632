"""The register of claims: one row for every equation, table and figure of the two papers and for the laws beyond them.

``claims.csv`` holds it. A row says what the paper says, what is found, under which condition, and the number that a
measurement has to meet.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

__all__ = ["KINDS", "VERDICTS", "Row", "register", "row_of", "rows_by_id"]

KINDS = ("exact", "order", "limit", "bound", "figure", "misprint", "false", "unsupported")
CORRECTED = ("misprint", "false", "unsupported")  # what is measured is not what the paper says; a control shows it
VERDICTS = {
    "holds": "what the paper says is what is found",
    "holds under a condition": "it holds where the condition is met, which the paper does not name",
    "misprint": "it fails as printed and holds once a symbol is mended",
    "false": "it has no such cure, and something else is true instead",
    "not supported": "the paper leaves it open or hedges, and measurements say otherwise",
    "not reproduced": "a figure made again shows something else",
}
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


@dataclass(frozen=True)
class Row:
    """One row of the register.

    Attributes:
        id: ``tk-...``, ``gu-...`` or, beyond the papers, ``nl-...``; parts of one number carry a suffix.
        paper: ``TK``, ``GU`` or ``NL``.
        source: where it stands there, such as ``Eq. 17``.
        paper_says: what the paper says, in our words, with dollar mathematics; "" beyond the papers.
        statement: what is found and verified, likewise; for a misprint the corrected form.
        verdict: one of :data:`VERDICTS`: how the two compare.
        kind: one of :data:`KINDS`: what the measured numbers are.
        target: the number to be met: 0 for a residual, the slope for an order. Dimensionless.
        tolerance: allowed distance from ``target``, positive.
        chapter: stem of the notebook that verifies it.
        condition: what the statement needs to hold, in a few words; "none" for what holds without any.
    """

    id: str
    paper: str
    source: str
    paper_says: str
    statement: str
    verdict: str
    kind: str
    target: float
    tolerance: float
    chapter: str
    condition: str

    @property
    def control_is_mandatory(self) -> bool:
        return self.kind in CORRECTED

    def excess(self, value: float) -> float:
        """How far ``value`` lies beyond what the row allows; at most 0 when it conforms, NaN for NaN."""
        distance = value - self.target
        return (distance if self.kind == "bound" else abs(distance)) - self.tolerance

    @property
    def allowed(self) -> str:
        """Target and tolerance in words."""
        if self.kind == "bound":
            return f"at most {self.target:g}, plus {self.tolerance:g} for rounding"
        return f"{self.target:g} ± {self.tolerance:g}"

    @property
    def detail(self) -> str:
        """The kind as a reader sees it: ``order 2``, ``leading order``, ``exact``."""
        return {"order": f"order {self.target:g}", "limit": "leading order"}.get(self.kind, self.kind)

    def line(self, control: bool) -> str:
        """The verdict line that a successful check prints."""
        ending = CONTROL_FAILS if control else NO_CONTROL
        lines = {
            "misprint": "misprint: fails as printed, holds as corrected",
            "false": "false: fails as stated, the true statement holds",
            "not supported": "not supported: the measurement says otherwise where the paper leaves it open",
            "not reproduced": f"not reproduced: the figure made again shows something else · {ending}",
        }
        return f"{self.id} · " + lines.get(self.verdict, f"{self.verdict} ({self.detail}) · {ending}")


@cache
def register() -> tuple[Row, ...]:
    """Every row of ``claims.csv``, in its order.

    Example:
        >>> len({row.id for row in register()}) == len(register())
        True
    """
    text = files("nlcompanion.book").joinpath("claims.csv").read_text(encoding="utf-8")
    return tuple(
        Row(target=float(raw.pop("target")), tolerance=float(raw.pop("tolerance")), **raw)
        for raw in csv.DictReader(text.splitlines())
    )


@cache
def rows_by_id() -> dict[str, Row]:
    return {row.id: row for row in register()}


def row_of(id: str) -> Row:
    """The row with this id.

    Raises:
        TypeError: the id is no string.
        ValueError: there is no such row; close ids are named.
    """
    if not isinstance(id, str):
        raise TypeError(f"a claim's id is a string such as 'tk-3', got {type(id).__name__}")
    if id not in rows_by_id():
        parts = [known for known in rows_by_id() if known.startswith(id + "-")]
        close = parts or get_close_matches(id, rows_by_id(), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else "register() lists every id"
        raise ValueError(f"claim {id!r} is not in the register, so it has no tolerance to be held to; {hint}")
    return rows_by_id()[id]
