"""What the reference shows of docstrings: properties as they are written, and no fields that say nothing."""

from __future__ import annotations

from typing import Any

_FIELD = "Alias for field number"
_TYPE = ":type: "


def leave_out_fields(app, what: str, name: str, member: Any, skip: bool, options) -> bool | None:
    """True for the fields of a named tuple, which its class describes; None leaves the decision to others."""
    said = getattr(member, "__doc__", None) or ""
    return True if said.startswith(_FIELD) else None


def mend_property(app, what: str, name: str, member: Any, options, lines: list[str]) -> None:
    """Put a property's first sentence together again.

    Napoleon takes what stands before its colon for the property's type. No property here says its type so.
    """
    if what != "property":
        return
    for k, line in enumerate(lines):
        if line.startswith(_TYPE):
            del lines[k]
            lines[0] = f"{line.removeprefix(_TYPE)}: {lines[0]}"
            return


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-skip-member", leave_out_fields)
    app.connect("autodoc-process-docstring", mend_property, priority=600)  # behind napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
