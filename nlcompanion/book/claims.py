r"""A claim of the book and its verdict.

The register, ``claims.csv``, holds one row for every equation, table and figure of the two papers and for the laws
beyond them. A check cell of a chapter measures a claim and hands the numbers to :func:`claim`, which compares them with
the row's target and tolerance, demands that a control violates it, and prints one line without any float:

.. code-block:: text

    tk-3 · holds (order 2) · control fails as it must

``python -m tools.what_holds`` reads these lines back from the executed notebooks and writes ``what_holds.md``.

===============  ====================================================================  =========
kind             the measured numbers are                                              control
===============  ====================================================================  =========
``exact``        residuals of an identity or of a law along solutions                  optional
``order``        slopes of an error against the small parameter, in log-log            optional
``limit``        relative errors of a leading-order formula                            optional
``bound``        quantities that must not exceed the target                            optional
``figure``       the number that stands for a figure                                   optional
``misprint``     residuals of the corrected form; the control, of the printed form     mandatory
``false``        violations of what is true instead; the control, of the statement     mandatory
``unsupported``  what is found where the paper leaves it open; the control, its guess  mandatory
===============  ====================================================================  =========
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from numbers import Complex, Real

__all__ = ["KINDS", "ClaimError", "Row", "Verdict", "check", "claim", "register"]

KINDS = ("exact", "order", "limit", "bound", "figure", "misprint", "false", "unsupported")
CORRECTED = ("misprint", "false", "unsupported")  # what holds is not what the paper says
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
    "unsupported": "whether `measured` is what was found and `control` what the paper supposes, not the reverse",
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
        return self.kind in CORRECTED

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
        if self.kind == "unsupported":
            return f"{self.id} · unsupported: the measurement says otherwise where the paper leaves it open"
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
    text = files("nlcompanion.book").joinpath("claims.csv").read_text(encoding="utf-8")
    return tuple(
        Row(target=float(raw.pop("target")), tolerance=float(raw.pop("tolerance")), **raw)
        for raw in csv.DictReader(text.splitlines())
    )


@cache
def rows_by_id() -> dict[str, Row]:
    return {row.id: row for row in register()}


def _row(id: str) -> Row:
    if not isinstance(id, str):
        raise TypeError(f"a claim's id is a string such as 'tk-3', got {type(id).__name__}")
    if id not in rows_by_id():
        parts = [known for known in rows_by_id() if known.startswith(id + "-")]
        close = parts or get_close_matches(id, rows_by_id(), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else "register() lists every id"
        raise ValueError(f"claim {id!r} is not in the register, so it has no tolerance to be held to; {hint}")
    return rows_by_id()[id]


def check(id: str, measured, control=None) -> Verdict:
    r"""Compare a measurement with the register's row, without printing.

    Args:
        id: a row of the register.
        measured: one number, or any nesting of sequences, arrays, tensors and mappings of numbers; a mapping's keys
            name the numbers in messages. Dimensionless. Every number must lie within the tolerance of the target
            (for a bound: not above it).
        control: the same shapes, measured where the claim must fail: the wrong exponent, the printed form, a broken
            symmetry. Every number must violate the row. Mandatory for kinds ``misprint``, ``false`` and
            ``unsupported``.

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
        raise _claim_error(row, f"{name} is {value:.6g}, where {row.allowed}", len(found), _ADVICE[row.kind])
    if control is not None:
        found = _collect(row, "control", control)
        name, value = min(found, key=lambda pair: row.excess(pair[1]))
        if not row.excess(value) > 0:
            raise _claim_error(
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


def _claim_error(row: Row, fact: str, count: int, advice: str) -> ClaimError:
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
        raise _claim_error(row, f"{role} is empty", 0, "whether the run recorded anything: nothing is shown")
    for name, number in found:
        if not math.isfinite(number):
            raise _claim_error(
                row, f"{name} is {number}", 0, "where the run diverged; NaN and infinity compare with nothing"
            )
    return found


def _numbers(value, name: str) -> Iterator[tuple[str, float]]:
    # tolist() turns NumPy arrays and torch tensors of any shape into Python numbers, and needs neither library here
    if hasattr(value, "tolist"):
        try:
            value = value.tolist()
        except (RuntimeError, NotImplementedError) as error:  # meta and sparse tensors
            raise TypeError(f"{name} is a {type(value).__name__} without plain numbers in it; make it dense") from error
    if isinstance(value, bool):
        raise TypeError(
            f"{name} is the bool {value}; a verdict reached beforehand hides its measurement: "
            "pass the residual, the slope or the ratio itself"
        )
    if isinstance(value, Real):
        try:
            yield name, float(value)
        except OverflowError:
            raise TypeError(
                f"{name} is an integer beyond floating-point numbers; pass a ratio or a logarithm"
            ) from None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}[{key!r}]")
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{name}[{i}]")
    else:
        fix = "take its absolute value" if isinstance(value, Complex) else "pass numbers, arrays, tensors or mappings"
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, which is no real number; {fix}")
