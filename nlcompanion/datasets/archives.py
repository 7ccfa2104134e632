"""Archives read in place (private): nothing is unpacked to disk, so nothing can land outside a folder.

What remains to be guarded against is refused with a DataError: names that climb out or are absolute, links,
devices, members given twice, sizes without bounds (zip and gzip bombs), and archives cut short or damaged.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from nlcompanion.datasets.download import DataError, unreadable

LARGEST_MEMBER = 16 << 20  # bytes; an image has about 2 KB, the longest list 3 MB
LARGEST_TOTAL = 1 << 30  # bytes unpacked, headers included; the official archive has about 0.3 GB
MOST_MEMBERS = 250_000  # the official archive has about 120,000

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


def refused(archive: Path, what: str) -> DataError:
    return DataError(
        f"{archive} holds {what}; the official archives hold no such thing, so nothing is read from this one; "
        "fetch it again from its publisher"
    )


def damaged(path: Path, error: Exception | str) -> DataError:
    return DataError(
        f"{path} is truncated or damaged ({error or 'no details'}); nothing is read from it; fetch it again"
    )


def safe_name(name: str, archive: Path) -> str:
    """The member's name without a leading ``./``, or a DataError where it could mean a place outside."""
    clean = name.removeprefix("./").rstrip("/")
    parts = clean.split("/")
    if clean in ("", "."):
        return ""
    # an absolute name has an empty first part; backslashes and colons mean places on Windows
    if any(part in ("", ".", "..") for part in parts) or any(
        character in "\\:" or not character.isprintable() for character in clean
    ):
        raise refused(archive, f"the unsafe name {name!r}")
    return clean


def read_limited(file: IO[bytes], name: str, archive: Path) -> bytes:
    """The rest of a file, however large it says it is, up to LARGEST_MEMBER."""
    data = file.read(LARGEST_MEMBER + 1)
    if len(data) > LARGEST_MEMBER:
        raise refused(archive, f"the member {name!r} of more than {LARGEST_MEMBER:,} bytes")
    return data


@contextmanager
def open_zip(path: Path, wanted: Callable[[str], bool]) -> Iterator[dict[str, Entry]]:
    """The wanted regular files of a zip archive; each is read (and its CRC checked) when it is asked for."""

    def read(info: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(info) as file:
                return read_limited(file, info.filename, path)
        except DataError:
            raise
        except _DAMAGE as error:
            raise damaged(path, error) from error

    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    with archive:
        entries: dict[str, Entry] = {}
        members = archive.infolist()
        _check_totals(path, len(members), sum(info.file_size for info in members))
        for info in members:
            # orig_filename: zipfile cuts a name at a zero byte, and turns the separators of Windows
            name = safe_name(info.orig_filename, path)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise refused(path, f"the member {name!r}, which is a link or a device")
            if info.file_size > LARGEST_MEMBER:
                raise refused(path, f"the member {name!r} of {info.file_size:,} bytes")
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
            name = safe_name(member.name, path)
            if member.size > LARGEST_MEMBER:
                raise refused(path, f"the member {name!r} of {member.size:,} bytes")
            if member.isdir():
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise refused(path, f"the member {name!r}, which is a link, a device or no plain file")
            if wanted(name):
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
        for member in archive:
            if safe_name(member.name, path):
                return member.name
    return ""


def _add(entries: dict[str, Entry], name: str, entry: Entry) -> None:
    if name in entries:
        raise refused(entry.origin, f"{name!r} twice")
    entries[name] = entry


def _check_totals(path: Path, count: int, size: int) -> None:
    if count > MOST_MEMBERS:
        raise refused(path, f"more than {MOST_MEMBERS:,} members")
    if size > LARGEST_TOTAL:
        raise refused(path, f"more than {LARGEST_TOTAL:,} bytes")


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
def _open_tar(path: Path) -> Iterator[tuple["_Forward", tarfile.TarFile]]:
    with open(path, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        source = _Forward(cast(BinaryIO, gzip.GzipFile(fileobj=plain) if zipped else plain), path)
        with tarfile.open(fileobj=cast(Any, source), mode="r:") as archive:
            yield source, archive


class _Forward:
    """A tar archive's bytes, read once from front to back, bounded, with an eye on how they end.

    tarfile takes a damaged header, and an archive cut between two members, for a regular end; and it never
    reads as far as gzip's checksum. ``expect_end`` makes up for both.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path = file, path
        self.position = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        if size > LARGEST_MEMBER:  # an extended header can claim any size, and is read at once
            raise refused(self._path, f"a member of {size:,} bytes")
        data = self._file.read(size)
        self.position += len(data)
        self._last = data
        if self.position > LARGEST_TOTAL:
            raise refused(self._path, f"more than {LARGEST_TOTAL:,} bytes")
        return data

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
        while True:
            if self._last.strip(b"\0"):
                raise damaged(self._path, f"before byte {self.position:,} stands no valid header of a member")
            if not self.read(1 << 16):
                return
