"""Recipes: functions without arguments whose results the book keeps in files.

.. code-block:: text

    python -m studies                  # make every result whose data can be had
    python -m studies gu_fig1_kmnist   # make this one
    python -m studies --list

A result is a function registered by :func:`result` that returns what the file shall hold besides the provenance:
``settings`` (with every seed), ``data`` (:func:`nlcompanion.datasets.describe` of a data set, if one was used),
``curves`` and ``numbers``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nlcompanion._provenance import provenance
from nlcompanion.book.results import ResultError, path_of, write

__all__ = ["Recipe", "make", "recipes", "result"]

# modules whose import registers their results
STUDIES = (
    "studies.forecasts",
    "studies.homogeneity",
    "studies.implicit_adaptivity",
    "studies.time_symmetry",
    "studies.transfers",
)


@dataclass(frozen=True)
class Recipe:
    """How a result is made.

    Attributes:
        name: of the function and of the file.
        title: what it is, in one line.
        run: the function; returns ``settings``, ``data``, ``curves`` and ``numbers``, those that it has.
    """

    name: str
    title: str
    run: Callable[[], dict]


_RECIPES: dict[str, Recipe] = {}


def result(title: str) -> Callable[[Callable[[], dict]], Callable[[], dict]]:
    """Register the function below as a result, by its name.

    Args:
        title: what it is, in one line; ``--list`` shows it.

    Raises:
        ValueError: if another function has the name already.

    Example:
        >>> @result("the answer")
        ... def an_answer():
        ...     return {"numbers": {"answer": 42.0}}
        >>> recipes()["an_answer"].title
        'the answer'
        >>> del _RECIPES["an_answer"]
    """

    def register(run: Callable[[], dict]) -> Callable[[], dict]:
        name = run.__name__
        if name in _RECIPES:
            raise ValueError(f"there is a result {name} already, its file would be overwritten; choose another name")
        _RECIPES[name] = Recipe(name, title, run)
        return run

    return register


def recipes() -> Mapping[str, Recipe]:
    """All registered results by name.

    Example:
        >>> "gu_fig1_kmnist" in recipes()
        True
    """
    for module in STUDIES:
        import_module(module)
    return dict(_RECIPES)


# --- making them --------------------------------------------------------------------------------------------------


def make(name: str, folder: Path | str | None = None) -> Path:
    """Run a result's experiment, on one CPU thread, and store it.

    Raises:
        ResultError: there is no result of this name, or what it gave cannot be stored.
        DataError: its data cannot be had.
    """
    known = recipes()
    if name not in known:
        raise ResultError(f"there is no result {name!r} to make; there are {', '.join(sorted(known))}")
    _writable(path_of(name, folder))  # nowhere to store it: say so before the run, not after
    provenance(0.0)  # nor can a result be stored of a package that is not installed
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same last bits everywhere
    torch.set_flush_denormal(True)
    began = time.perf_counter()
    try:
        content = known[name].run()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    duration = time.perf_counter() - began
    empty: dict[str, Any] = {"settings": {}, "data": None, "curves": {}, "numbers": {}}
    head = {"name": name, "title": known[name].title}
    return write(name, {**head, **empty, **content, "provenance": provenance(duration)}, folder)


def _writable(path: Path) -> None:
    """Raise ResultError unless a file can be put there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ResultError(
            f"the result {path} cannot be stored ({error}), so it was not made; name another folder, or mend the "
            "permissions there"
        ) from error
