"""Files that are replaced in one move or set aside, and JSON that carries its own checksum."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

CHECKSUM = "sha256"  # the entry that holds it


class Damaged(ValueError):
    """A file that is not what it should be; the message says in what."""


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


# --- JSON with a checksum -------------------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any], *, depth: int = 1) -> None:
    """Store ``content`` in one move, with the checksum of all other entries as its last one.

    Args:
        path: of the file; its folder is made if need be.
        content: in JSON's types; every number finite.
        depth: so many levels of entries stand on lines of their own; the rest is one line each.
    """
    lines = _lines({**content, CHECKSUM: checksum(content)}, depth, "  ")
    # half a character, as in the name of a file that is no text, is written as JSON's own escape
    text = ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8", errors="backslashreplace")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the content does


def _lines(content: Mapping[str, Any], depth: int, indent: str) -> list[str]:
    lines = []
    for key, value in content.items():
        if depth > 1 and isinstance(value, dict) and value:
            body = "{\n" + ",\n".join(_lines(value, depth - 1, indent + "  ")) + f"\n{indent}}}"
        else:
            body = json.dumps(value, ensure_ascii=False, allow_nan=False)
        lines.append(f"{indent}{json.dumps(key)}: {body}")
    return lines


def read_json(path: Path, entries: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The content that :func:`write_json` stored, without its checksum.

    Args:
        path: of the file.
        entries: those that it must have, and of which types.

    Raises:
        Damaged: it is no JSON, lacks an entry, has one of another type, a number that is not finite, or other content
            than its checksum says.
        OSError: it cannot be read; FileNotFoundError if it is not there.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one; the other is of thousands of brackets
        raise Damaged(f"it is no JSON ({error})") from error
    found = content if isinstance(content, dict) else {}
    if missing := [name for name in entries if name not in found]:
        raise Damaged(f"it lacks {', '.join(missing)}")
    if CHECKSUM not in content:
        raise Damaged(f"it has no checksum (its entry {CHECKSUM}), as files of earlier versions")
    stored = content.pop(CHECKSUM)
    if stored != checksum(content):
        raise Damaged("its content does not fit its checksum")
    check_entries(content, entries)
    return content


def check_entries(content: Mapping[str, Any], entries: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raise Damaged unless every entry has its type."""
    for name, kind in entries.items():
        value = content[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            raise Damaged(f"its {name} is {type(value).__name__} and must be {wanted}")


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of all entries but the checksum itself."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _no_number(name: str) -> NoReturn:
    raise Damaged(f"it holds {name}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Damaged(f"it holds {text[:20]}, which is beyond float64")
    return number
