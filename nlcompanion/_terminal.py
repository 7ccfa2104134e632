"""How a command speaks: mistakes of the user's, and lines on stderr whose loss ends nothing."""

from __future__ import annotations

import sys
from contextlib import suppress


class Mistake(Exception):
    """A mistake of the user's, said in one line."""


def say(text: object) -> None:
    """A line on stderr; lost where a process has none, as a daemon, or cannot write to it."""
    if sys.stderr is not None:  # print would take stdout instead
        with suppress(OSError, ValueError):  # a full disk; a stream that was closed
            print(f"nlcompanion: {text}", file=sys.stderr, flush=True)
