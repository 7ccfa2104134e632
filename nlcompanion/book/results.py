"""Measured results of long runs and of optional data, kept as small JSON files with their provenance.

Notebooks never read optional data: a figure that needs KMNIST or an hour is drawn from a file that this module wrote,
so that the page and its test are the same everywhere.

.. code-block:: text

    python -m nlcompanion.results                  # make every result whose data can be had
    python -m nlcompanion.results gu_fig1_kmnist   # make this one
    python -m nlcompanion.results --list

A result is a function without arguments, registered by :func:`result`, that returns what the file shall hold besides
the provenance: ``settings`` (with every seed), ``data`` (:func:`describe` of a data set, if one was used), ``curves``
and ``numbers``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from nlcompanion._files import DataError, replacing

__all__ = ["Recipe", "ResultError", "describe", "make", "read", "recipes", "result", "thin", "write"]

# modules whose import registers their results
_EXPERIMENTS = ("nlcompanion._experiments", "nlcompanion._experiments_adaptivity", "nlcompanion._experiments_time")
_KEYS = ("name", "title", "settings", "data", "curves", "numbers", "provenance")
_DIGITS = 8


class ResultError(RuntimeError):
    """A result that is missing, damaged or cannot be stored; the message names the file and the command."""


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
    for module in _EXPERIMENTS:
        import_module(module)
    return dict(_RECIPES)


# --- what an experiment returns -----------------------------------------------------------------------------------


def describe(dataset) -> dict:
    """What identifies a :class:`nlcompanion.datasets.Dataset` in a result: its name, size, origin and checksum.

    The checksum is SHA-256 of the images' bytes and the labels' bytes (little-endian int64), whatever files they came
    from.

    Example:
        >>> from nlcompanion import digits
        >>> about = describe(digits("test").first(10))
        >>> about["name"], about["samples"], len(about["sha256"])
        ('digits test', 10, 64)
    """
    checksum = sha256(dataset.images.contiguous().numpy().tobytes())
    checksum.update(dataset.labels.numpy().astype("<i8").tobytes())
    return {
        "name": dataset.name,
        "samples": len(dataset),
        "sha256": checksum.hexdigest(),
        "source": dataset.source,
        "licence": dataset.licence,
    }


def thin(curves: Mapping[str, Sequence], points: int = 200) -> dict[str, list]:
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
    remedy = f"make it with: python -m nlcompanion.results {name}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultError(f"the result {path} does not exist, so its figure cannot be drawn; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"the result {path} cannot be read ({error}); {remedy}") from error
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"the result {path} is damaged ({error}); {remedy}") from error
    missing = [key for key in _KEYS if key not in content] if isinstance(content, dict) else list(_KEYS)
    if missing or content["name"] != name:
        wrong = f"it lacks {', '.join(missing)}" if missing else f"it calls itself {content['name']!r}"
        raise ResultError(f"the result {path} is not what it should be: {wrong}; {remedy}")
    return content


def _no_constant(name: str):
    raise ValueError(f"it holds {name}, which is no number")


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
    lacking = [key for key in _KEYS if key not in content]
    if lacking:
        raise ResultError(f"the result {name} lacks {', '.join(lacking)} and was not stored; make() adds them")
    text = "{\n" + ",\n".join(_entries(_plain(content, name))) + "\n}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


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


def _entries(content: dict, indent: str = "  ") -> list[str]:
    """Lines of JSON with one curve per line: readable, and small in a diff."""
    lines = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            body = "{\n" + ",\n".join(_entries(value, indent + "  ")) + f"\n{indent}}}"
        else:
            body = json.dumps(value, ensure_ascii=False, allow_nan=False)
        lines.append(f"{indent}{json.dumps(key)}: {body}")
    return lines


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
    empty = {"settings": {}, "data": None, "curves": {}, "numbers": {}}
    head = {"name": name, "title": known[name].title}
    return write(name, {**head, **empty, **content, "provenance": _provenance(duration)}, folder)


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


def _provenance(duration: float) -> dict:
    packages = ("nlcompanion", "torch", "numpy", "scipy")
    return {
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": "cpu",
        "threads": 1,
        "made": date.today().isoformat(),
        "duration_seconds": round(duration, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make results; see ``python -m nlcompanion.results --help``.

    Returns:
        0; 1 if a result that was asked for by name could not be made, or without names not a single one; 2 if a name
        is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="python -m nlcompanion.results",
        description="Run the book's long experiments and store what they measure in book/results.",
        epilog="Without names, results whose data cannot be had are skipped.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which results to make; all of them without names")
    parser.add_argument("--list", action="store_true", help="list the names and stop")
    parser.add_argument("--folder", type=Path, help="where to store them (default: book/results)")
    options = parser.parse_args(argv)
    known = recipes()
    if options.list:
        for recipe in known.values():
            print(f"{recipe.name}  {recipe.title}")
        return 0
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"no such result: {', '.join(unknown)}; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    names = options.names or list(known)
    made = [_make_or_say_why(name, options.folder) for name in names]
    return 0 if (all(made) if options.names else any(made)) else 1


def _make_or_say_why(name: str, folder: Path | None) -> bool:
    print(f"{name}: running", flush=True)
    try:
        path = make(name, folder)
    except DataError as error:
        print(f"{name}: skipped, its data cannot be had: {error}", file=sys.stderr, flush=True)
        return False
    except ResultError as error:
        print(f"{name}: not stored: {error}", file=sys.stderr, flush=True)
        return False
    print(f"{name}: wrote {path}", flush=True)
    return True


if __name__ == "__main__":
    # under -m this file is __main__; the experiments register with the module of its proper name
    from nlcompanion import results

    raise SystemExit(results.main())
