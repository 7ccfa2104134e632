"""Measured results of long runs and of optional data, kept as small JSON files with their provenance.

Notebooks never read optional data: a figure that needs KMNIST or an hour is drawn from a file that
``python -m studies`` wrote, so that the page and its test are the same everywhere.
A file holds what the run was (``settings``, with every seed, and ``data``), what it measured (``curves`` and
``numbers``), where that comes from (``provenance``), and a checksum of all this: a file that was changed or damaged
is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlcompanion._storage import Damaged, check_entries, read_json, write_json

__all__ = ["ResultError", "read", "thin", "write"]

ENTRIES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "title": str,
    "settings": dict,
    "data": (dict, type(None)),
    "curves": dict,
    "numbers": dict,
    "provenance": dict,
}
_DIGITS = 8
_DEPTH = 99  # a line for every curve: readable, and small in a diff


class ResultError(RuntimeError):
    """A result that is missing, damaged or cannot be stored; the message names the file and the command."""


def thin(curves: Mapping[str, Any], points: int = 200) -> dict[str, list]:
    """About ``points`` entries of each curve, evenly spaced, first and last included.

    Args:
        curves: sequences, arrays or tensors of one length.
        points: how many to keep, at least 2.

    Raises:
        ValueError: if the curves differ in length or ``points`` is below 2.

    Example:
        >>> thin({"t": range(1001)}, points=3)
        {'t': [0, 500, 1000]}
    """
    lengths = {name: len(curve) for name, curve in curves.items()}
    if len(set(lengths.values())) > 1 or points < 2:
        raise ValueError(f"curves of one length and at least 2 points are needed, got {lengths} and {points} points")
    length = next(iter(lengths.values()), 0)
    kept = sorted({round(k * (length - 1) / (points - 1)) for k in range(points)}) if length > points else range(length)
    lists = {name: curve.tolist() if hasattr(curve, "tolist") else list(curve) for name, curve in curves.items()}
    return {name: [curve[k] for k in kept] for name, curve in lists.items()}


# --- files --------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """``book/results`` of the project one works in: above the present folder, else beside this package's source.

    Raises:
        ResultError: if there is none.
    """
    here, source = Path.cwd(), Path(__file__).resolve().parents[1]
    for root in (here, *here.parents, source):
        if (root / "book" / "results").is_dir():
            return root / "book" / "results"
    raise ResultError(
        f"no folder book/results at or above {here}, so there is nowhere to read results from; "
        "work inside the project's folder, or pass folder="
    )


def path_of(name: str, folder_: Path | str | None = None) -> Path:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"a result's name has small letters, digits and underscores, got {name!r}")
    return Path(folder_ or folder()) / f"{name}.json"


def read(name: str, folder: Path | str | None = None) -> dict:
    """A stored result, as a chapter uses it.

    Args:
        name: of the result.
        folder: where the files lie; ``book/results`` of the project when None.

    Returns:
        The dict with ``name``, ``title``, ``settings``, ``data`` (or None), ``curves``, ``numbers``, ``provenance``.

    Raises:
        ResultError: the file is missing or damaged; says how to make it.
        ValueError: ``name`` cannot be a result's.

    Example:
        >>> read("gu_fig1_kmnist")["data"]["name"]
        'kmnist test'
    """
    path = path_of(name, folder)
    remedy = f"make it with: python -m studies {name}"
    try:
        content = read_json(path, ENTRIES)
        _check(content)
    except FileNotFoundError:
        raise ResultError(f"the result {path} does not exist, so its figure cannot be drawn; {remedy}") from None
    except OSError as error:
        raise ResultError(f"the result {path} cannot be read ({error}); mend that, or {remedy}") from error
    except Damaged as error:
        raise ResultError(f"the result {path} is damaged: {error}; {remedy}") from error
    if content["name"] != name:
        raise ResultError(f"the result {path} is another one: it calls itself {content['name']!r}; {remedy}")
    return content


def write(name: str, content: Mapping, folder: Path | str | None = None) -> Path:
    """Store a result in one move, floats rounded to 8 significant digits; a failure leaves the old file.

    Args:
        name: of the result.
        content: JSON's types, and tensors or arrays; keys as :func:`read` returns them.
        folder: as for :func:`read`; made if it does not exist.

    Returns:
        The file's path.

    Raises:
        ResultError: a number is not finite, a key is missing, or the content is of no type that JSON has.
    """
    path = path_of(name, folder)
    lacking = [key for key in ENTRIES if key not in content]
    if lacking:
        raise ResultError(f"the result {name} lacks {', '.join(lacking)} and was not stored; make() adds them")
    plain = _plain(content, name)
    try:
        check_entries(plain, ENTRIES)
        _check(plain)
    except Damaged as error:
        raise ResultError(f"the result {name} was not stored: {error}; mend the recipe that returns it") from error
    write_json(path, plain, depth=_DEPTH)
    return path


def _check(content: Mapping) -> None:
    """Raise Damaged unless the curves are lists of numbers, in dicts."""
    for name, curve in content["curves"].items():
        _check_curve(curve, name)


def _check_curve(curve: object, name: str) -> None:
    if isinstance(curve, dict):
        for key, part in curve.items():
            _check_curve(part, f"{name}.{key}")
    elif isinstance(curve, list):
        for k, part in enumerate(curve):
            if isinstance(part, dict | list):
                _check_curve(part, f"{name}[{k}]")
            elif isinstance(part, str):
                raise Damaged(f"its curve {name} holds the text {part!r}")
    else:
        raise Damaged(f"its curve {name} is {type(curve).__name__}, no list of numbers")


def _plain(value, where: str):
    """The value in JSON's own types."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ResultError(f"{where} is {value}; the run diverged there and nothing was stored; lower its step size")
        return float(f"{value:.{_DIGITS}g}")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{k}]") for k, item in enumerate(value)]
    raise ResultError(f"{where} is of type {type(value).__name__}, which JSON does not have; store numbers and texts")
