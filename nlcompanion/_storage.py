"""Files that are replaced in one move, or set aside."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place at the end, or vanishes on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``*.corrupt``, next to those that were there before; its new path."""
    count = 0
    while (aside := path.with_name(f"{path.name}.{count}.corrupt" if count else f"{path.name}.corrupt")).exists():
        count += 1
    path.rename(aside)
    return aside
