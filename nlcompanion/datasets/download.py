"""Data files: where they are looked for, and how they are verified and fetched through pooch.

Nothing is ever written into a folder that the user names: what is downloaded or decoded goes to the cache.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nlcompanion._arguments import a_path
from nlcompanion._extras import needs, progress_bar

VARIABLE = "NLCOMPANION_DATA"

TIMEOUT = 30.0  # seconds: the longest wait for a connection, and for the next byte of an answer
ATTEMPTS = 3
SLOWEST = 8 * 1024  # bytes per second, averaged over the whole answer once GRACE seconds are over
GRACE = 60.0
_BLOCK = 1 << 16
_PASSING = (408, 429)  # of the answers from 400 to 499, those that may be better the next time


class DataError(RuntimeError):
    """A data set cannot be had: a file is missing, damaged or wrongly laid out, or a download failed.

    The message names the file or the address, what is wrong with it, and what to do.

    Example:
        >>> from nlcompanion import DataError, kmnist
        >>> try:
        ...     kmnist(folder="no-such-folder")
        ... except DataError as error:
        ...     print(str(error).split(";")[0])
        the folder no-such-folder does not exist
    """

    __module__ = "nlcompanion.datasets"


def cache_folder() -> Path:
    """The folder for downloads and decoded images: the operating system's place for caches."""
    with needs("training"):
        import pooch

    return Path(pooch.os_cache("nlcompanion"))


def named_folder(folder: str | os.PathLike | None) -> Path | None:
    """The folder that the caller names, else the one that NLCOMPANION_DATA names, else None."""
    value = folder if folder is not None else os.environ.get(VARIABLE) or None
    if value is None:
        return None
    path = a_path("folder", value).expanduser()
    if not path.is_dir():
        origin = "folder=" if folder is not None else f"the environment variable {VARIABLE}"
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(
            f"the folder {path} {what}; it was named by {origin}, and nothing can be loaded from it; "
            "correct the path, or leave it out to have the data downloaded"
        )
    try:
        os.listdir(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return path


def nowhere(what: str, folder: Path | None) -> DataError:
    places = f"in {folder} or in the cache" if folder else "in the cache"
    return DataError(
        f"{what} not {places} {cache_folder()}, and download=False; without the files there is no data set; allow "
        f"the download, or put them into a folder and name it in the environment variable {VARIABLE}"
    )


def unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); without it the data set is incomplete; check its permissions")


def checksum(path: Path, algorithm: str = "md5") -> str:
    """Hexadecimal checksum of a file's content; MD5 is what the publishers of the data give."""
    with needs("training"):
        import pooch

    try:
        return pooch.file_hash(path, alg=algorithm)
    except OSError as error:
        raise unreadable(path, error) from error


def verify(path: Path, md5: str) -> None:
    """Raise DataError unless the file has the published checksum."""
    found = checksum(path)
    if found != md5:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) has the MD5 checksum {found}, the published file has {md5}; "
            "it is truncated, damaged or another file, and would give wrong data without a warning; "
            "delete it and fetch it again"
        )


def download(url: str, path: Path, *, md5: str, limit: int, progress: bool = True) -> Path:
    """Fetch ``url`` to ``path`` unless a file with this MD5 checksum lies there already.

    pooch downloads into a temporary file beside ``path``, verifies the checksum, renames, and tries again what failed.
    On any failure the temporary file is removed, so a partial file is never taken for a whole one.

    Args:
        limit: the largest number of bytes that is accepted.
    """
    with needs("training"):
        import pooch
        import requests

    registry, urls = {path.name: f"md5:{md5}"}, {path.name: url}
    files = pooch.create(path.parent, "", registry=registry, urls=urls, retry_if_failed=ATTEMPTS - 1)
    try:
        with _quiet(pooch.get_logger()):
            files.fetch(path.name, downloader=partial(_receive, limit=limit, progress=progress))
    except requests.RequestException as error:
        raise _failed(url, str(error)) from error
    except ValueError as error:  # pooch's verdict on the checksum
        raise _failed(url, f"the answer is not the published file ({error})") from error
    except OSError as error:
        raise DataError(
            f"{path.name} could not be kept in {path.parent} ({error}); the download was given up and its "
            f"temporary file removed; make room or mend the permissions there, or put the file into a folder of "
            f"your own and name that folder in the environment variable {VARIABLE}"
        ) from error
    return path


def _failed(url: str, cause: str) -> DataError:
    return DataError(
        f"{url} could not be downloaded: {cause}; nothing was kept; try again later, or fetch the file in another way, "
        f"put it into a folder and name that folder in the environment variable {VARIABLE}"
    )


def _receive(url: str, output_file: str, _pooch: object, *, limit: int, progress: bool) -> None:
    """Write one answer to a file: the bytes as they are stored, not too many of them, and not too few in a long time.

    What another attempt can mend is a RequestException, which makes pooch try again.
    """
    import requests
    import urllib3

    # a server that labels a .gz file as gzip-encoded must not have it unpacked
    asked: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "stream": True, "timeout": TIMEOUT}
    try:
        with requests.get(url, **asked) as answer, open(output_file, "wb") as out:
            if 400 <= answer.status_code < 500 and answer.status_code not in _PASSING:
                raise _failed(url, f"the server answered {answer.status_code} {answer.reason}")
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length", 0)) or None
            name = url.rpartition("/")[2]
            with progress_bar(shown=progress, desc=name, total=total, unit="B", unit_scale=True) as bar:
                for block in _blocks(answer.raw, url, limit):
                    out.write(block)
                    bar.update(len(block))
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


def _blocks(raw: Any, url: str, limit: int) -> Iterator[bytes]:
    """What has come, as it comes: an answer that drips is noticed."""
    began, count = time.monotonic(), 0
    while block := raw.read1(_BLOCK, decode_content=False):
        yield block
        count += len(block)
        if count > limit:
            raise _failed(url, f"the answer is longer than the {limit:,} bytes that the file may have")
        elapsed = time.monotonic() - began
        if elapsed > GRACE and count < SLOWEST * elapsed:
            raise _failed(url, f"only {count / elapsed:,.0f} bytes came per second, less than {SLOWEST:,}")


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's own lines out of notebooks: the progress bar says the same."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
