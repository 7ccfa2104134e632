"""How tensors are cut into slices whose squares are summed, and the place of each sum among all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """A tensor seen in the shape ``view`` and cut along its axes ``keep``: one slice for each index of these."""

    view: Shape
    keep: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.view[k] for k in self.keep)

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes that are summed over."""
        return tuple(k for k in range(len(self.view)) if k not in self.keep)


def axis_of(shape: Shape, axis: int) -> Cut:
    return Cut(shape, (axis,))


class Cuts:
    """Some cuts of some tensors, each with its place in a long vector of sums."""

    def __init__(self, cuts: Iterable[tuple[str, Cut]]):
        pairs = list(dict.fromkeys(cuts))
        self.of: dict[str, list[Cut]] = {}
        for name, cut in pairs:
            self.of.setdefault(name, []).append(cut)
        pairs = [(name, cut) for name, cuts in self.of.items() for cut in cuts]
        ends = [0, *itertools.accumulate(cut.count for _, cut in pairs)]
        self.place = {pair: slice(*span) for pair, span in zip(pairs, itertools.pairwise(ends), strict=True)}
        self.size = ends[-1]
