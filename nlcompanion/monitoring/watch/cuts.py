"""How tensors are cut into slices whose squares are summed, and the place of each sum among all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
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


def rows_of(shape: Shape) -> Cut:
    """One slice for each row of a matrix or filter of a convolution; vectors are one slice."""
    return Cut(shape, (0,)) if len(shape) > 1 else Cut(shape, ())


def axis_of(shape: Shape, axis: int) -> Cut:
    return Cut(shape, (axis,))


class Cuts:
    """All cuts of all tensors, each with its place in a long vector of sums.

    Args:
        shapes: of the tensors, by name.
        more: further cuts beside the rows of each tensor.
    """

    def __init__(self, shapes: Mapping[str, Shape], more: Iterable[tuple[str, Cut]] = ()):
        of: dict[str, dict[Cut, None]] = {name: {rows_of(shape): None} for name, shape in shapes.items()}
        for name, cut in more:
            of[name][cut] = None
        self.shapes = dict(shapes)
        self.of = {name: tuple(cuts) for name, cuts in of.items()}
        pairs = [(name, cut) for name, cuts in self.of.items() for cut in cuts]
        self.place = dict(zip(pairs, _consecutive(cut.count for _, cut in pairs), strict=True))
        self.size = sum(cut.count for _, cut in pairs)
        self.rows = {name: self.place[name, rows_of(shape)] for name, shape in shapes.items()}


def _consecutive(sizes: Iterable[int]) -> list[slice]:
    ends = [0, *itertools.accumulate(sizes)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]
