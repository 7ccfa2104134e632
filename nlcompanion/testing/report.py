"""What a check found: one row for each law, and the error that a broken one raises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

LAWFUL, BROKEN, CANNOT_TELL = "lawful", "broken", "cannot tell"


class LawError(AssertionError):
    """A law is broken: the message names the law, the tensors, the defect and the floor it stands above."""


@dataclass(frozen=True)
class LawCheck:
    """One law, held against one set of tensors.

    Attributes:
        law: what should vanish, in writing.
        tensors: the tensors that it binds.
        head: which head, step or block, where the law has several.
        defect: the largest difference over the sum of the absolute terms (dimensionless).
        floor: the defect that rounding may leave there (dimensionless).
        visible: the smallest fault, as a share of one side of the law, that stands above the floor.
        verdict: ``"lawful"``, ``"broken"``, or ``"cannot tell"`` if a fault as large as ``resolution`` could hide.
        survives: what may be done to the gradients of a whole model without breaking it; empty for single layers.
    """

    law: str
    tensors: str
    head: str
    defect: float
    floor: float
    visible: float
    verdict: str
    survives: tuple[str, ...] = ()


def _defect_and_floor(check: LawCheck) -> tuple[str, str]:
    """Below the floor all is rounding, which chooses the entry looked at, too: digits that say nothing of the law."""
    if check.defect <= check.floor:
        return "below floor", "-"
    return f"{check.defect:.1e}", f"{check.floor:.1e}"


@dataclass(frozen=True)
class Report:
    """The laws checked, in order, and what could not be checked and why."""

    checks: tuple[LawCheck, ...]
    limits: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[LawCheck, ...]:
        """The checks whose verdict is ``"broken"``, the worst first."""
        found = [check for check in self.checks if check.verdict == BROKEN]
        return tuple(sorted(found, key=lambda check: -check.defect / max(check.floor, 1e-300)))

    @property
    def verdict(self) -> str:
        """``"broken"`` if one law is; else ``"cannot tell"`` if one hides or none was checked; else ``"lawful"``."""
        if self.broken:
            return BROKEN
        told = self.checks and all(check.verdict == LAWFUL for check in self.checks)
        return LAWFUL if told else CANNOT_TELL

    @property
    def surviving(self) -> dict[str, int]:
        """How many laws of a whole model's gradient survive what is done to it after the backward pass."""
        return dict(Counter(what for check in self.checks for what in check.survives))

    def raise_if_broken(self) -> None:
        """Raise :class:`LawError` for the worst broken law."""
        if not self.broken:
            return
        worst = self.broken[0]
        where = f" ({worst.head})" if worst.head else ""
        others = f"; {len(self.broken) - 1} more broken" if len(self.broken) > 1 else ""
        raise LawError(
            f"{worst.law} fails for {worst.tensors}{where}: defect {worst.defect:.2e}, where rounding explains "
            f"{worst.floor:.1e}{others}"
        )

    def raise_unless_lawful(self) -> None:
        """Raise :class:`LawError` if a law is broken, hides below the floor, or none could be checked."""
        self.raise_if_broken()
        if not self.checks:
            raise LawError("no law was checked: " + ("; ".join(self.limits) or "nothing here has one"))
        hidden = [check for check in self.checks if check.verdict == CANNOT_TELL]
        if hidden:
            worst = max(hidden, key=lambda check: check.visible)
            raise LawError(
                f"{worst.law} for {worst.tensors} cannot be told: a fault of {worst.visible:.0%} of it hides below "
                "rounding; use more samples, larger gradients or a finer dtype, or pass a larger resolution="
            )

    def __str__(self) -> str:
        head = ("law", "tensors", "head", "defect", "floor", "visible", "verdict")
        rows = [(c.law, c.tensors, c.head, *_defect_and_floor(c), f"{c.visible:.1e}", c.verdict) for c in self.checks]
        widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
        notes = [f"surviving {what}: {count} of these laws" for what, count in self.surviving.items()]
        limits = [f"not checked: {limit}" for limit in self.limits]
        return "\n".join([line.rstrip() for line in lines] + notes + limits)
