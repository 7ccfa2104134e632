"""Grids of parameters: what every run tries, and what the slow tests add."""

from collections.abc import Collection
from itertools import product

import pytest


def covering(*axes: Collection) -> list:
    """All combinations of some axes, for ``pytest.mark.parametrize``.

    A diagonal that meets every value of every axis is tried in each run; the others are slow tests.

    Example:
        >>> [(param.values, bool(param.marks)) for param in covering("ab", [1, 2])]
        [(('a', 1), False), (('a', 2), True), (('b', 1), True), (('b', 2), False)]
    """
    lists = [list(axis) for axis in axes]
    longest = max(map(len, lists))
    diagonal = {tuple(k % len(axis) for axis in lists) for k in range(longest)}
    found = []
    for place in product(*(range(len(axis)) for axis in lists)):
        values = [axis[k] for axis, k in zip(lists, place, strict=True)]
        found.append(pytest.param(*values, marks=() if place in diagonal else pytest.mark.slow))
    return found
