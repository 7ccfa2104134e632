"""What an audit found: the table, the laws, the parameters, and what could not be told."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field

from tabulate import tabulate

from nlcompanion._arguments import counted
from nlcompanion.laws.auditing.identities import Identity
from nlcompanion.laws.auditing.parameter_rows import ParameterRow
from nlcompanion.laws.law import Law


@dataclass(frozen=True)
class Line:
    """One family of laws.

    Attributes:
        kind: the symmetry, in one word.
        symmetry: the same in words.
        count: how many independent functions it conserves; 0 where a symmetry has no charge.
        size: how many generators.
        parameters: names.
        moves: the same with their signs: what grows, and what shrinks as it does.
        charge: what is conserved.
        verdict, statement: what the optimiser makes of it.
        defect: the violation at the model's own parameters, eps and data, relative to the terms that should cancel; of
            a dead direction the gradient's size by weight, relative to the largest in the model.
        moved: relative change of the loss at a finite distance along the symmetry, eps aside.
        gap: how clearly the equations told zero from not zero.
    """

    kind: str
    symmetry: str
    count: int
    size: int
    parameters: tuple[str, ...]
    moves: tuple[str, ...]
    charge: str
    verdict: str
    statement: str
    defect: float
    moved: float
    gap: float


@dataclass(frozen=True, repr=False)
class Audit:
    """The continuous symmetries of a model's loss, and what training makes of them; made by :func:`audit`.

    Attributes:
        laws: what is conserved, as :class:`Law`; a :class:`Ledger` takes them as they are.
        identities: what symmetries without a charge say of every gradient, for :func:`check_gradients`.
        lines: one for each family, those without a charge included.
        parameters: one row for each parameter.
        count: independent conserved functions found (of symmetries with a symmetric generator, and translations).
        limits: what was not examined, and what holds on the given data only.
        complete: whether every slice of every tensor was an unknown of its own, so that no law of this class is missed.
        gap: the smallest ratio between what was not zero and what was.
        model, optimizer: names.
    """

    laws: tuple[Law, ...]
    identities: tuple[Identity, ...] = field(repr=False)
    lines: tuple[Line, ...]
    parameters: tuple[ParameterRow, ...]
    count: int
    limits: tuple[str, ...]
    complete: bool
    gap: float
    model: str
    optimizer: str
    size: int
    seconds: float = field(compare=False, default=0.0)

    def to_json(self) -> str:
        """Everything but the laws' tensors, as JSON."""
        lines = [{**asdict(line), "gap": _finite(line.gap)} for line in self.lines]
        return json.dumps(
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "parameters_in_all": self.size,
                "count": self.count,
                "complete": self.complete,
                "gap": _finite(self.gap),
                "laws": lines,
                "parameters": [asdict(row) for row in self.parameters],
                "limits": list(self.limits),
            },
            ensure_ascii=False,
            indent=2,
        )

    def __str__(self) -> str:
        widths = [None, None, 64, 40, None]
        headers, rows = self._table_of_laws()
        laws = tabulate(rows, headers, tablefmt="simple", maxcolwidths=widths if rows else None)
        headers, rows = self._table_of_parameters()
        parameters = tabulate(rows, headers, tablefmt="simple")
        parts = [self._title, laws, "\n".join(self._legend), parameters]
        if self.limits:
            parts.append("\n".join(["limits", *(f"- {limit}" for limit in self.limits)]))
        return "\n\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        laws, parameters = (
            tabulate(rows, headers, tablefmt="html")
            for headers, rows in (self._table_of_laws(), self._table_of_parameters())
        )
        legend = "<br>".join(map(_escaped, self._legend))
        parts = [f"<p>{_escaped(self._title)}</p>", laws, f"<p>{legend}</p>", parameters]
        if self.limits:
            parts.append("<ul>" + "".join(f"<li>{_escaped(limit)}</li>" for limit in self.limits) + "</ul>")
        return "\n".join(parts)

    @property
    def _title(self) -> str:
        complete = (
            "no other symmetry of this kind exists"
            if self.complete
            else "slices were examined in aligned families only: others may exist"
        )
        return (
            f"{self.model}, {counted(self.size, 'parameter')}, {self.optimizer}: "
            f"{counted(self.count, 'conserved function')}; "
            f"{complete} (clear by a factor {_clearness_text(self.gap)})"
        )

    @property
    def _letters(self) -> dict[str, str]:
        """A letter for each formula of the table."""
        formulas = dict.fromkeys(line.statement for line in self.lines)
        return {formula: chr(ord("a") + k) for k, formula in enumerate(formulas)}

    @property
    def _legend(self) -> list[str]:
        return [f"[{letter}] {formula}" for formula, letter in self._letters.items()]

    def _table_of_laws(self) -> tuple[list[str], list[list[str]]]:
        headers = ["symmetry", "laws", "what", "under " + self.optimizer, "defect"]
        rows = []
        for line, like in _grouped(self.lines):
            many = f" (x {len(like)})" if len(like) > 1 else ""
            count = sum(x.count for x in like)
            rows.append(
                [
                    line.symmetry,
                    str(count) if count else f"0 of {sum(x.size for x in like)}",
                    _folded(line.charge) + many,
                    f"{line.verdict} [{self._letters[line.statement]}]",
                    _defect_text(max(x.defect for x in like)),
                ]
            )
        return headers, rows

    def _table_of_parameters(self) -> tuple[list[str], list[list[str]]]:
        headers = ["parameter", "shape", "laws", "weight decay", "group"]
        rows = []
        for row, like in _grouped_rows(self.parameters):
            name = _folded(row.name) if len(like) > 1 else row.name
            many = f" (x {len(like)})" if len(like) > 1 else ""
            rows.append(
                [name + many, "x".join(map(str, row.shape)), ", ".join(row.laws) or "none", row.decay, row.group]
            )
        return headers, rows


def _grouped(lines: tuple[Line, ...]) -> list[tuple[Line, list[Line]]]:
    """Lines that differ in the number of a layer only are told once."""
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault((line.kind, _folded(line.charge), line.verdict, line.statement), []).append(line)
    return [(like[0], like) for like in groups.values()]


def _grouped_rows(rows: tuple[ParameterRow, ...]) -> list[tuple[ParameterRow, list[ParameterRow]]]:
    groups: dict[tuple, list[ParameterRow]] = {}
    for row in rows:
        numbered = bool(re.search(r"\.\d+\.", row.name))
        name = _folded(row.name) if numbered else row.name
        groups.setdefault((name, row.shape, row.laws, row.decay, row.group), []).append(row)
    return [(like[0], like) for like in groups.values()]


def _folded(text: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=[.:])", "*", text)


def _defect_text(defect: float) -> str:
    """Its order; below 1e-13 it is rounding, which differs between processors and says nothing of the law."""
    return f"{defect:.0e}" if defect >= 1e-13 else "< 1e-13"


def _clearness_text(gap: float) -> str:
    """Above 1e8 nobody doubts, and how far is rounding, which differs between processors."""
    return "above 1e+08" if gap > 1e8 else f"of {gap:.0e}"


def _finite(x: float) -> float | None:
    return None if x == float("inf") else x


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
