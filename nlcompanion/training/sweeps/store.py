"""What a sweep keeps on disk: one JSON file per run, a checkpoint while it runs, a lock while it is at work.

.. code-block:: text

    folder/KEY.json              the finished, diverged or failed run of the configuration whose hash is KEY
    folder/KEY.json.corrupt      a damaged file that was found in its place, for you to look at; then .1.corrupt, ...
    folder/checkpoints/KEY.pt    where to resume; gone once the run is stored
    folder/.locks/KEY.lock       empty; held, not merely present, while a process works on the run
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlcompanion._extras import needs
from nlcompanion._storage import Damaged, read_json, write_json

with needs("training"):
    from filelock import FileLock, Timeout

FORMAT = 1
ENDED = ("finished", "diverged", "failed")
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "key": str,
    "status": str,
    "config": dict,
    "run": (dict, type(None)),
    "error": (str, type(None)),
    "provenance": dict,
}


PATIENCE = 5.0  # seconds to wait for a lock until one asks who has it


class SweepError(RuntimeError):
    """A sweep that cannot go on: no folder, no workers. What was finished is stored; the message says how to go on."""

    __module__ = "nlcompanion.training"


def result_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def checkpoint_path(folder: Path, key: str) -> Path:
    return folder / "checkpoints" / f"{key}.pt"


# --- results --------------------------------------------------------------------------------------------------------


def store(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a run's file in one move, with a checksum."""
    path = result_path(folder, content["key"])
    write_json(path, {"format": FORMAT, **content})
    return path


def stored(folder: Path, key: str) -> dict[str, Any] | None:
    """The content of a run's file, or None if there is none.

    Raises:
        Damaged: the file is there, but it is not what :func:`store` wrote.
    """
    try:
        content = read_json(result_path(folder, key), _ENTRIES)
    except FileNotFoundError:
        return None
    if content["format"] != FORMAT:
        raise Damaged(f"its format is {content['format']!r}, this version of nlcompanion reads {FORMAT}")
    if content["key"] != key:
        raise Damaged(f"it is the run {content['key']!r}")
    return content


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
    locks nothing. A file system without such locks gets a file whose presence is the lock.

    Args:
        wait: whether to wait for the other.

    Raises:
        SweepError: the lock is such a file, and nobody here can tell whether the process that made it is still there.
    """
    path = folder / ".locks" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)  # a new object: threads exclude each other, too
    try:
        lock.acquire(timeout=PATIENCE if wait else 0, poll_interval=0.2)
    except Timeout:
        if not wait:
            yield False
            return
        if not _locks_end_with_their_holder(path.parent):
            _check_holder(path, key)
        lock.acquire(poll_interval=0.2)
    try:
        yield True
    finally:
        lock.release()


def _locks_end_with_their_holder(folder: Path) -> bool:
    """Whether the file system of a folder has locks of the operating system; tried on a file of its own."""
    try:
        import fcntl
    except ImportError:  # Windows, whose locks end with their process everywhere
        return True
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _check_holder(path: Path, key: str) -> None:
    """Raise SweepError unless the file names a process of this machine, which filelock itself knows to be there."""
    try:
        written = path.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return  # given back just now
    if written[1:2] == [socket.gethostname()]:
        return
    holder = f"process {written[0]} on {written[1]}" if len(written) > 1 else "a process that left no name"
    raise SweepError(
        f"{holder} holds the run {key}, and cannot be asked whether it still works on it: the file system of {path} "
        "has no locks that end with their process; if it is no more, delete that file; if it works, wait for it; then "
        "call sweep again, which keeps what is finished"
    )
