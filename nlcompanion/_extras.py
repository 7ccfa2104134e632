"""What the base installation leaves out: errors that name the extra to install, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages that come with an extra.

    Raises:
        ImportError: a package is missing; the message names it and the command that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ImportError(
            f"{package} is not installed, which comes with the extra {extra!r} of nlcompanion: "
            f"pip install 'nlcompanion[{extra}]'"
        ) from error


def progress_bar(items: Iterable | None = None, *, shown: bool | None, **options: Any) -> Any:
    """tqdm's bar, on stderr; with ``shown`` None in a terminal only, and nowhere in a process that has no stderr."""
    with needs("training"):
        from tqdm.auto import tqdm

    hidden = True if sys.stderr is None else None if shown is None else not shown
    return tqdm(items, disable=hidden, **options)
