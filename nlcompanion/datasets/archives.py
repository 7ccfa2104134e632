"""Archives read in place: nothing is unpacked to disk, so nothing can land outside a folder.

What remains to be guarded against is refused with a DataError: names that climb out or are absolute, links,
devices, members given twice, sizes without bounds (zip and gzip bombs) or below zero, and archives cut short or
damaged. Every size is looked at before anything is read.
"""

from __future__ import annotations

import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

from nlcompanion.datasets.download import DataError, unreadable

LARGEST_MEMBER = 16 << 20  # bytes; an image has about 2 KB, the longest list 3 MB
LARGEST_TOTAL = 1 << 30  # bytes unpacked, headers included; the official archive has about 0.3 GB
MOST_MEMBERS = 250_000  # the official archive has about 120,000

# an empty part (of an absolute name), one or two dots, and what means a place on Windows
_UNSAFE = re.compile(r"[\\:]|(^|/)\.{0,2}(/|$)")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # zipfile: an unknown kind of compression
    RuntimeError,  # zipfile: an encrypted member
    ValueError,  # tarfile: numbers in a header that are none
    OverflowError,
)


class Entry(NamedTuple):
    """One regular file: where it is from, for messages, and how to get its content."""

    origin: Path
    read: Callable[[], bytes]


def damaged(path: Path, error: Exception | str) -> DataError:
    return DataError(
        f"{path} is truncated or damaged ({error or 'no details'}); nothing is read from it; fetch it again"
    )


def read_file(path: Path) -> bytes:
    """The content of a file, unless it is too large to be one of ours."""
    try:
        with open(path, "rb") as file:
            return _read(file, LARGEST_MEMBER, path, path.name)
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def open_zip(path: Path, wanted: Callable[[str], bool]) -> Iterator[dict[str, Entry]]:
    """The wanted regular files of a zip archive; each is read (and its CRC checked) when it is asked for."""

    def read(info: zipfile.ZipInfo) -> bytes:
        with archive.open(info) as file:
            return _read(file, info.file_size, path, info.filename)

    with _damage_of(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_totals(path, len(members), sum(info.file_size for info in members))
        entries: dict[str, Entry] = {}
        for info in members:
            kind = stat.S_IFMT(info.external_attr >> 16)
            # orig_filename: zipfile cuts a name at a zero byte, and turns the separators of Windows
            name = _admitted(path, info.orig_filename, info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not info.is_dir() and wanted(name):
                _add(entries, name, Entry(path, partial(read, info)))
        yield entries


def read_tar(path: Path, wanted: Callable[[str], bool]) -> dict[str, Entry]:
    """The wanted regular files of a tar archive, plain or gzipped, read in one pass and held in memory."""
    entries: dict[str, Entry] = {}
    with _damage_of(path), _open_tar(path) as (source, archive):
        for count, member in enumerate(archive, start=1):
            archive.members.clear()  # type: ignore[attr-defined]  # one pass: tarfile's own list would only grow
            _check_totals(path, count, source.position)
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            name = _admitted(path, member.name, member.size, plain or member.isdir())
            if plain and wanted(name):
                source.seek(member.offset_data)
                content = source.read(member.size)
                if len(content) != member.size:
                    raise damaged(path, f"{name} breaks off")
                _add(entries, name, Entry(path, partial(bytes, content)))
        source.expect_end()
    return entries


def first_name(path: Path) -> str:
    """The name of the first member of a tar archive, as it is written there."""
    with _damage_of(path), _open_tar(path) as (_, archive):
        return next((member.name for member in archive if member.name.strip("./")), "")


def _admitted(path: Path, name: str, size: int, plain: bool) -> str:
    """The member's name without a leading ``./``, or a DataError for what no official archive holds."""
    clean = name.removeprefix("./").rstrip("/")
    if clean not in ("", ".") and (_UNSAFE.search(clean) or not clean.isprintable()):
        raise _refused(path, f"the unsafe name {name!r}")
    if not 0 <= size <= LARGEST_MEMBER:
        raise _refused(path, f"the member {name!r} of {size:,} bytes")
    if not plain:
        raise _refused(path, f"the member {name!r}, which is a link, a device or no plain file")
    return clean


def _read(file: IO[bytes], size: int, path: Path, name: str) -> bytes:
    """A whole file, which may have ``size`` bytes."""
    data = file.read(size + 1)  # one more than that: enough to notice
    if len(data) > size:
        raise _refused(path, f"the member {name!r} of more than {size:,} bytes")
    return data


def _refused(archive: Path, what: str) -> DataError:
    return DataError(
        f"{archive} holds {what}; the official archives hold no such thing, so nothing is read from this one; "
        "fetch it again from its publisher"
    )


def _add(entries: dict[str, Entry], name: str, entry: Entry) -> None:
    if name in entries:
        raise _refused(entry.origin, f"{name!r} twice")
    entries[name] = entry


def _check_totals(path: Path, count: int, size: int) -> None:
    if count > MOST_MEMBERS:
        raise _refused(path, f"more than {MOST_MEMBERS:,} members")
    if size > LARGEST_TOTAL:
        raise _refused(path, f"more than {LARGEST_TOTAL:,} bytes")


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def _open_tar(path: Path) -> Iterator[tuple[_Forward, tarfile.TarFile]]:
    with open(path, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        source = _Forward(cast(IO[bytes], gzip.GzipFile(fileobj=plain)) if zipped else plain, path)
        with tarfile.open(fileobj=source, mode="r:") as archive:  # type: ignore[call-overload]
            yield source, archive


class _Forward:
    """A tar archive's bytes, read once from front to back, bounded, with an eye on how they end.

    tarfile takes a damaged header, and an archive cut between two members, for a regular end; and it never
    reads as far as gzip's checksum. ``expect_end`` makes up for both.
    """

    def __init__(self, file: IO[bytes], path: Path):
        self._file, self._path = file, path
        self.position = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        # an extended header can claim any size, and is read at once; below zero means all there is
        if not 0 <= size <= LARGEST_MEMBER:
            raise _refused(self._path, f"a member of {size:,} bytes")
        self._last = self._file.read(size)
        self.position += len(self._last)
        _check_totals(self._path, 0, self.position)
        return self._last

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> int:
        while self.position < position and self.read(min(position - self.position, 1 << 16)):
            pass
        if self.position > position:
            raise tarfile.ReadError("the archive would have to be read backwards")
        return self.position

    def expect_end(self) -> None:
        """Raise DataError unless a block of zeros was read last and only zeros follow."""
        if len(self._last) < tarfile.BLOCKSIZE:
            raise damaged(self._path, "the mark at its end is missing")
        while not self._last.strip(b"\0"):
            if not self.read(1 << 16):
                return
        raise damaged(self._path, f"before byte {self.position:,} stands no valid header of a member")
