"""What a sweep keeps on disk (private): one JSON file per run, a checkpoint while it runs, a lock while it is at work.

.. code-block:: text

    folder/KEY.json              the finished, diverged or failed run of the configuration whose hash is KEY
    folder/KEY.json.corrupt      a damaged file that was found in its place, for you to look at; then .1.corrupt, ...
    folder/checkpoints/KEY.pt    where to resume; gone once the run is stored
    folder/.locks/KEY.lock       empty; held, not merely present, while a process works on the run
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from nlcompanion._storage import replacing

FORMAT = 1
ENDED = ("finished", "diverged", "failed")
_ENTRIES = ("format", "key", "status", "config", "run", "error", "provenance", "sha256")


class Damaged(ValueError):
    """A file that is not what it should be; the message says in what."""


def result_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def checkpoint_path(folder: Path, key: str) -> Path:
    return folder / "checkpoints" / f"{key}.pt"


# --- results --------------------------------------------------------------------------------------------------------


def store(folder: Path, content: Mapping) -> Path:
    """Write a run's file in one move; its checksum is that of all other entries."""
    path = result_path(folder, content["key"])
    entries = {"format": FORMAT, **content}
    entries["sha256"] = _checksum(entries)
    lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in entries.items()]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the content does
    return path


def stored(folder: Path, key: str) -> dict | None:
    """The content of a run's file, or None if there is none.

    Raises:
        Damaged: the file is there, but it is not what :func:`store` wrote.
    """
    try:
        data = result_path(folder, key).read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one; the other is of thousands of brackets
        raise Damaged(f"it is no JSON ({error})") from error
    missing = [entry for entry in _ENTRIES if entry not in content] if isinstance(content, dict) else list(_ENTRIES)
    if missing:
        raise Damaged(f"it lacks {', '.join(missing)}")
    if content["format"] != FORMAT:
        raise Damaged(f"its format is {content['format']!r}, this version of nlcompanion reads {FORMAT}")
    if content["sha256"] != _checksum(content):
        raise Damaged("its content does not fit its checksum")
    if content["key"] != key:
        raise Damaged(f"it is the run {content['key']!r}")
    return content


def _checksum(content: Mapping) -> str:
    rest = {entry: value for entry, value in content.items() if entry != "sha256"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _no_constant(name: str):
    raise Damaged(f"it holds {name}, which is no number")


def tidy(folder: Path, key: str, *, checkpoint: bool) -> None:
    """Remove what a killed process left of this run, and its checkpoint; to be called under the run's lock."""
    path = checkpoint_path(folder, key)
    for final in (result_path(folder, key), path):
        for partial in final.parent.glob(f".{final.name}.*.part"):
            partial.unlink(missing_ok=True)
    if checkpoint:
        path.unlink(missing_ok=True)


# --- locks ----------------------------------------------------------------------------------------------------------


@contextmanager
def run_lock(folder: Path, key: str, *, wait: bool) -> Iterator[bool]:
    """Hold a run's lock, so that one process at a time works on it; gives False if another has it.

    The lock is the operating system's and ends with the process that holds it, killed or not: the file that stays
    locks nothing.

    Args:
        wait: whether to wait for the other.
    """
    from filelock import FileLock, Timeout

    path = folder / ".locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)  # a new object: threads exclude each other, too
    try:
        lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
