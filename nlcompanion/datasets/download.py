"""Data files (private): where they are looked for, how they are checked, how they are fetched.

Nothing is ever written into a folder that the user names: what is downloaded or decoded goes to the cache.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "NLCOMPANION_DATA"

TIMEOUT = 30.0  # seconds: the longest wait for a connection, and for the next byte of an answer
ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
SLOWEST = 8 * 1024  # bytes per second, averaged over the whole download once GRACE seconds are over
GRACE = 60.0
_BLOCK = 1 << 16


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
    import pooch

    return Path(pooch.os_cache("nlcompanion"))


def named_folder(folder: str | os.PathLike | None) -> Path | None:
    """The folder that the caller names, else the one that NLCOMPANION_DATA names, else None."""
    value = folder if folder is not None else os.environ.get(VARIABLE) or None
    if value is None:
        return None
    path = Path(value).expanduser()
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


def checksum(path: Path, algorithm: str = "md5") -> str:
    """Hexadecimal checksum of a file's content; MD5 is what the publishers of the data give."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); without it the data set is incomplete; check its permissions")


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

    pooch downloads into a temporary file beside ``path``, verifies the checksum and renames; on any failure
    the temporary file is removed, so a partial file is never taken for a whole one. Within one call a cut
    answer is continued where it stopped if the server can do so; the next call starts clean.

    Args:
        limit: the largest number of bytes that is accepted.
    """
    import pooch

    def downloader(url: str, output_file: str, _pooch: object) -> None:
        _fetch(url, output_file, path.name, limit, progress)

    try:
        with _quiet(pooch.get_logger()):
            pooch.retrieve(url, known_hash=f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)
    except ValueError as error:  # pooch's verdict on the checksum
        raise _failed(path.name, url, f"the answer is not the published file ({error})") from error
    except OSError as error:  # errors of the network never get here: _fetch turns them into DataError
        raise DataError(
            f"{path.name} could not be kept in {path.parent} ({error}); the download was given up and its "
            f"temporary file removed; make room or mend the permissions there, or put the file into a folder of "
            f"your own and name that folder in the environment variable {VARIABLE}"
        ) from error
    return path


def _failed(name: str, url: str, cause: str) -> DataError:
    return DataError(
        f"{name} could not be downloaded from {url}: {cause}; nothing was kept; try again later, or fetch the "
        f"file in another way, put it into a folder and name that folder in the environment variable {VARIABLE}"
    )


class _Interrupted(Exception):
    """The answer broke off or did not come: worth another attempt."""


def _fetch(url: str, output_file: str, name: str, limit: int, progress: bool) -> None:
    """Download into the temporary file ``output_file``, in at most ATTEMPTS attempts."""
    from tqdm.auto import tqdm

    cause = ""
    with (
        open(output_file, "wb") as out,
        tqdm(desc=name, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE * attempt)
            try:
                return _receive(url, out, bar, name, limit)
            except _Interrupted as error:
                cause = str(error)
    raise _failed(name, url, f"{cause} (attempt {ATTEMPTS} of {ATTEMPTS})")


def _receive(url: str, out, bar, name: str, limit: int) -> None:
    """Append one answer to ``out``, after the bytes that an earlier, cut answer has left there."""
    import requests
    import urllib3

    start = out.tell()
    # The bytes as they are stored: a server that labels a .gz file as gzip-encoded must not have it unpacked.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            _check_status(answer, url, name)
            if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                start = out.seek(0)
                out.truncate()
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isascii() and length.isdigit() else None
            bar.reset(total)
            bar.update(start)
            _copy(answer.raw, out, bar, limit, lambda cause: _failed(name, url, cause))
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _Interrupted(_plainly(error)) from error
    except requests.RequestException as error:  # a bad address, endless redirections: waiting does not help
        raise _failed(name, url, str(error)) from error
    if total is not None and out.tell() < total:  # urllib3 before 2 takes this for a regular end
        raise _Interrupted(f"the answer broke off after {out.tell():,} of {total:,} bytes")


def _check_status(answer, url: str, name: str) -> None:
    if answer.status_code in (200, 206):
        return
    said = f"the server answered {answer.status_code} {answer.reason or ''}".rstrip()
    if answer.status_code >= 500 or answer.status_code in (408, 416, 429):
        raise _Interrupted(said)
    raise _failed(name, url, said)


def _copy(raw, out, bar, limit: int, failed) -> None:
    """Copy the answer's bytes to ``out``; refuse too many of them, and too few of them in a long time."""
    # read1 returns whatever is there, so that an answer that drips is noticed; older urllib3 has only read
    read = getattr(raw, "read1", raw.read)
    began, first = time.monotonic(), out.tell()
    while block := read(_BLOCK, decode_content=False):
        out.write(block)
        bar.update(len(block))
        if out.tell() > limit:
            raise failed(f"the answer is longer than the {limit:,} bytes that the file may have")
        elapsed = time.monotonic() - began
        rate = (out.tell() - first) / max(elapsed, 1e-9)
        if elapsed > GRACE and rate < SLOWEST:
            raise failed(f"only {rate:,.0f} bytes came per second, less than {SLOWEST:,}")


def _plainly(error: Exception) -> str:
    """The cause without the libraries' nesting, which names objects and addresses in memory."""
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {TIMEOUT:g} s"
    text = str(error)
    if isinstance(error, requests.ReadTimeout) or "timed out" in text.lower():
        return f"the server sent nothing for {TIMEOUT:g} s"
    for sign, meaning in (
        ("refused", "the connection was refused"),
        ("resol", "the server's name could not be resolved; there may be no network"),
        ("unreachable", "the network is unreachable"),
        ("CERTIFICATE", "the server's certificate is not valid"),
        ("IncompleteRead", "the answer broke off"),
        ("reset", "the connection was reset"),
        ("aborted", "the connection was closed without an answer"),
    ):
        if sign in text:
            return meaning
    return text


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's own lines out of notebooks: the progress bar says the same."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
