r"""A claim of the book and its verdict.

A check cell of a chapter measures a claim and hands the numbers to :func:`claim`, which compares them with the target
and tolerance of the claim's row in :mod:`nlcompanion.book.register`, demands that a control violates it, and shows the
verdict: one line without any measured number where there is only text,

.. code-block:: text

    tk-3 · holds under a condition (order 2) · control fails as it must

and in a notebook the sentence, what was measured, what is allowed and what the control gave. A reader who changes a
cell may make a claim fail: that is said, and the notebook goes on. Where the environment variable
``NLCOMPANION_CLAIMS`` is ``raise``, as in the book's tests, it is an error.

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

import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Complex, Real

from nlcompanion.book.register import PAGE, Row, row_of
from nlcompanion.book.verdict_html import failure_html, verdict_html

__all__ = ["ClaimError", "Failure", "Verdict", "check", "claim"]

RAISE = "NLCOMPANION_CLAIMS"  # "raise": a claim that fails is an error, as in the tests

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
    """A measurement contradicts its claim, or its control does not violate it.

    Attributes:
        row: the claim's row in the register.
        fact: what was measured and what is allowed.
        advice: what to look at.
    """

    def __init__(self, row: Row, fact: str, advice: str):
        super().__init__(
            f"claim {row.id} is not supported: {fact}\n"
            f"  statement: {row.statement}\n"
            f"  consequence: no verdict is printed, and {PAGE} lists the claim as open\n"
            f"  look at: {advice}"
        )
        self.row = row
        self.fact = fact
        self.advice = advice


@dataclass(frozen=True)
class Found:
    """Of several measured numbers the one that decides, with its name and how many there are."""

    name: str
    value: float
    count: int

    @property
    def among(self) -> str:
        return f" (the worst of {self.count} numbers)" if self.count > 1 else ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check that passed.

    Attributes:
        row: the claim's row in the register.
        measured: the number furthest from what the row asks for.
        control: the number of the control that comes closest to it, or None without a control.
        text: the line that :func:`claim` prints, the same on every machine.
    """

    row: Row
    measured: Found
    control: Found | None

    @property
    def text(self) -> str:
        return self.row.line(self.control is not None)

    @property
    def holds(self) -> bool:
        """Whether the paper's statement holds as it is printed, perhaps under a condition."""
        return self.row.verdict.startswith("holds")

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return verdict_html(self.row, self.measured, self.control)


@dataclass(frozen=True, repr=False)
class Failure:
    """A claim that the reader's settings do not support."""

    error: ClaimError

    def __repr__(self) -> str:
        error = self.error
        return f"{error.row.id} · not supported at these settings: {error.fact}; look at: {error.advice}"

    def _repr_html_(self) -> str:
        return failure_html(self.error.row, self.error.fact, self.error.advice)


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
        'tk-3 · holds under a condition (order 2) · control fails as it must'
    """
    row = row_of(id)
    if control is None and row.control_is_mandatory:
        raise ValueError(
            f"claim {id} is of kind {row.kind} and got no control, so nothing would show that the printed form fails; "
            "pass control=, measured from the formula as printed"
        )
    found = _collect(row, "measured", measured)
    name, value = max(found, key=lambda pair: row.excess(pair[1]))
    worst = Found(name, value, len(found))
    if not row.excess(value) <= 0:
        fact = f"{name} is {value:.6g}, where {row.allowed} is allowed{worst.among}"
        raise ClaimError(row, fact, _ADVICE[row.kind])
    return Verdict(row, worst, None if control is None else _failing(row, control))


def claim(id: str, measured, control=None) -> None:
    """Assert a claim of the book and show its verdict.

    What a chapter's check cell calls; :func:`check` says what the arguments are and what is raised. Returns nothing,
    so that a notebook cell shows the verdict alone. A measurement that contradicts its claim is shown as such, and
    raised only where ``NLCOMPANION_CLAIMS`` is ``raise``.

    Example:
        >>> claim("gu-31", [2e-9, -1e-9], control=0.3)
        gu-31 · holds (exact) · control fails as it must
        >>> claim("tk-table1-1", measured=0.0, control={"printed": 0.8})
        tk-table1-1 · misprint: fails as printed, holds as corrected
    """
    try:
        _show(check(id, measured, control))
    except ClaimError as error:
        if os.environ.get(RAISE) == "raise":
            raise
        _show(Failure(error))


def _show(verdict: Verdict | Failure) -> None:
    """As a notebook's output where there is a notebook, else as a line."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        sys.modules["IPython"].display.display(verdict)
    else:
        print(verdict)


def _failing(row: Row, control) -> Found:
    """The control's number that comes closest to conforming; it must not."""
    found = _collect(row, "control", control)
    name, value = min(found, key=lambda pair: row.excess(pair[1]))
    closest = Found(name, value, len(found))
    if not row.excess(value) > 0:
        raise ClaimError(
            row,
            f"its control does not fail: {name} is {value:.6g}, and {row.allowed} is allowed{closest.among}",
            "whether the control really breaks the claim, and by more than the tolerance; "
            "a check that cannot fail shows nothing",
        )
    return closest


def _collect(row: Row, role: str, value) -> list[tuple[str, float]]:
    """The named numbers in ``value``, all finite and at least one."""
    found = list(_numbers(value, role))
    if not found:
        raise ClaimError(row, f"{role} is empty", "whether the run recorded anything: nothing is shown")
    for name, number in found:
        if not math.isfinite(number):
            advice = "where the run diverged; NaN and infinity compare with nothing"
            raise ClaimError(row, f"{name} is {number}", advice)
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
