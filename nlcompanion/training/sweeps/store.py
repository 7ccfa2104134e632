"""What a sweep keeps on disk (private): one JSON file per run, a checkpoint while it runs, a lock while it is at work.

.. code-block:: text

    folder/KEY.json              the finished, diverged or failed run of the configuration whose hash is KEY
    folder/KEY.json.corrupt      a damaged file that was found in its place, for you to look at; then .1.corrupt, ...
    folder/checkpoints/KEY.pt    where to resume; gone once the run is stored
    folder/.locks/KEY.lock       empty; held, not merely present, while a process works on the run
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlcompanion._storage import Damaged, read_json, write_json

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
