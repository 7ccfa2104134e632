"""Make the measured results of the book: ``python -m studies --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nlcompanion.book.results import ResultError
from nlcompanion.datasets.download import DataError
from studies.recipes import make, recipes


def main(argv: Sequence[str] | None = None) -> int:
    """Make results; see ``python -m studies --help``.

    Returns:
        0; 1 if a result that was asked for by name could not be made, or without names not a single one; 2 if a name
        is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="python -m studies",
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
    raise SystemExit(main())
