"""An alert, and what a kind of alert is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.cause import Cause
from nlcompanion.monitoring.watch.sample import Sample


@dataclass(frozen=True)
class Alert:
    """One law that a run has left; made by a :class:`Monitor`.

    Attributes:
        kind: ``"broken gradient"``, ``"frozen"``, ``"decay"``, ``"replicas"``, ``"schedule"``, ``"dead direction"``,
            ``"not finite"`` or ``"replaced"``.
        law: what should hold, in one line.
        tensors: where it does not.
        size: by how much it is left; dimensionless.
        expected: what rounding and noise allow of that.
        since: the first watched step at which it was left.
        seen: the step at which that was certain.
        message: all of it in a sentence, with the reason and what to do.
    """

    kind: str
    law: str
    tensors: tuple[str, ...]
    size: float
    expected: float
    since: int
    seen: int
    message: str

    def __str__(self) -> str:
        return f"{self.kind}, since step {self.since}: {self.message}"


@dataclass
class RunView:
    """What kinds of alerts may look at beside a sample.

    Attributes:
        laws, places: the laws that are watched, and the entries of each among all.
        found: whether each law was found in the run's own gradients, and not given.
        tolerance: of gradients along symmetries, relative to ``|g| |generator|``; None where they are not judged.
        eps: rounding unit of the weights.
        gains: tensors of normalisations.
        optimizer: its name.
        shapes: of the tensors.
        say: takes a note that is no alert.
        ask_evidence: asks for the evidence of the next sample for a law.
        diagnose: the cause that the last such evidence gives, with its law, told which tensors keep another law; None
            without evidence.
        withdraw: takes a found law back, with the reason.
    """

    laws: tuple[Law, ...]
    places: list[slice]
    found: tuple[bool, ...]
    tolerance: float | None
    eps: float
    gains: frozenset[str]
    optimizer: str
    shapes: Mapping[str, tuple[int, ...]]
    say: Callable[[str], None]
    ask_evidence: Callable[[Law], None]
    withdraw: Callable[[Law, str], None]
    diagnose: Callable[[frozenset[str]], tuple[Law, Cause] | None]
    odd: list[tuple[Law, float]] = field(default_factory=list)


class Rule(Protocol):
    """One kind of alert: a test of one law."""

    kind: str

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        """The alerts of a sample; each is told once."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, in numbers and texts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember that again."""


def listed(names: tuple[str, ...] | list[str], most: int = 4) -> str:
    """Some names, as one writes them."""
    names = list(names)
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
