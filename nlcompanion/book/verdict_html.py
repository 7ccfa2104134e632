"""A verdict as a notebook and a page show it: the sentence, what was measured, what is allowed, the control."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from nlcompanion.book.register import Row

if TYPE_CHECKING:
    from nlcompanion.book.claims import Found

__all__ = ["failure_html", "formulas", "verdict_html"]

_DOLLARS = re.compile(r"\$([^$]+)\$")
# what the pages' style sheet does better; a live notebook has only this
_BOX = "border-left: 3px solid currentColor; padding-left: 0.8em; margin: 0.6em 0"


def formulas(text: str) -> str:
    r"""Text with dollar mathematics as HTML; formulas become ``\(...\)``, which pages and notebooks both draw.

    Example:
        >>> formulas("at $a < b$ & more")
        'at <span class="math notranslate nohighlight">\\(a &lt; b\\)</span> &amp; more'
    """
    return _DOLLARS.sub(r'<span class="math notranslate nohighlight">\\(\1\\)</span>', escape(text, quote=False))


def verdict_html(row: Row, measured: Found, control: Found | None) -> str:
    """A passed check: the verdict with its claim, then the numbers, then the way to the register."""
    furthest = f" (the furthest of {measured.count} numbers)" if measured.count > 1 else ""
    numbers = f"Measured {_number(measured)}{furthest}; allowed: {_allowed(row)}."
    if control is not None:
        closest = f" (the closest of {control.count} numbers)" if control.count > 1 else ""
        numbers += f" The control gives {_number(control)}{closest} and fails, as it must."
    style = "holds" if row.verdict.startswith("holds") else "differs"
    return _box(row, style, row.verdict.capitalize(), numbers)


def failure_html(row: Row, fact: str, advice: str) -> str:
    """A failed check at settings that the reader chose."""
    numbers = f"{escape(fact[:1].upper() + fact[1:])}. Look at: {escape(advice)}."
    return _box(row, "fails", "Not supported at these settings", numbers)


def _box(row: Row, style: str, verdict: str, numbers: str) -> str:
    # the link is for pages, whose style sheet shows it: a notebook has no such page to go to
    link = f'<a class="nl-claim-link" style="display: none" href="what_holds.html#{row.id}">In the register</a>'
    needs = f" <em>Needs:</em> {formulas(row.condition)}." if row.condition not in ("", "none") else ""
    return (
        f'<div class="nl-claim nl-claim-{style}" style="{_BOX}">'
        f"<div><strong>{verdict}</strong> <code>{row.id}</code> {formulas(row.statement)}{needs}</div>"
        f"<div><small>{numbers} {link}</small></div></div>"
    )


def _number(found: Found) -> str:
    """A measured number, marked: it differs between processors in its rounding."""
    return f'<span class="nl-number">{_digits(found.value)}</span>'


def _allowed(row: Row) -> str:
    if row.kind == "bound":
        return f"at most {_digits(row.target)}, plus {_digits(row.tolerance)} for rounding"
    return f"{_digits(row.target)} ± {_digits(row.tolerance)}"


def _digits(value: float) -> str:
    """Three digits; a power of ten as people write it."""
    text = f"{value:.3g}"
    if "e" not in text:
        return text.replace("-", "−")
    mantissa, exponent = text.split("e")
    factor = "" if mantissa == "1" else f"{mantissa} · "
    return f"{factor}10<sup>{int(exponent)}</sup>".replace("-", "−")
