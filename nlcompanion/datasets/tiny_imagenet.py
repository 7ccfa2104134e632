"""Tiny ImageNet: files found, verified, selected, decoded once, kept decoded in the cache."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from nlcompanion._arguments import described, flag
from nlcompanion._extras import needs, progress_bar
from nlcompanion._storage import replacing
from nlcompanion.datasets.archives import Entry, first_name, open_zip, read_file, read_tar
from nlcompanion.datasets.dataset import Dataset, check_split
from nlcompanion.datasets.download import (
    DataError,
    cache_folder,
    checksum,
    download,
    named_folder,
    nowhere,
    unreadable,
    verify,
)

__all__ = ["tiny_imagenet"]

ROOT = "tiny-imagenet-200"
ZIP = f"{ROOT}.zip"
_FORMAT = 1  # of the decoded files in the cache
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LISTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")
_NAMES = {
    "train": re.compile(r"train/(n\d{8})/images/\1_(\d{1,5})\.JPEG"),
    "val": re.compile(r"val/images/(val)_(\d{1,5})\.JPEG"),
}


@dataclass(frozen=True)
class Official:
    """What the publishers say about their data set."""

    url: str = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    md5: str = "90528d7ca1a48142e341f4ef8d21d0de"
    size: int = 248_100_043  # bytes
    classes: int = 200
    train: int = 500  # images per class
    val: int = 50
    side: int = 64  # pixels
    digests: str | None = "tiny_imagenet.csv"  # beside this module; see _check_published


OFFICIAL = Official()


@dataclass(frozen=True)
class Source:
    """Where the images are: an unpacked folder, the official zip, or several tars."""

    kind: str  # "folder", "zip" or "tars"
    place: Path  # the folder itself, the zip, or the folder of the tars
    tars: tuple[Path, ...] = ()

    def identity(self, split: str) -> str:
        """A text that changes whenever the images could have changed."""
        if self.kind == "zip":
            return verify_zip(self.place)
        if self.kind == "tars":
            return " ".join(sorted(checksum(path, "sha256") for path in self.tars))
        digest = hashlib.sha256(str(self.place.resolve()).encode())
        for name, path in sorted(_walk(self.place, split)):
            try:
                found = path.stat()
            except OSError as error:
                raise unreadable(path, error) from error
            digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def open(self, split: str) -> Iterator[dict[str, Entry]]:
        """The split's images and the lists, by their names inside ``tiny-imagenet-200/``."""
        prefix = f"{ROOT}/"

        def wanted(name: str) -> bool:
            inner = name.removeprefix(prefix)
            return inner != name and (inner in _LISTS or _NAMES[split].fullmatch(inner) is not None)

        if self.kind == "zip":
            with open_zip(self.place, wanted) as entries:
                yield {name.removeprefix(prefix): entry for name, entry in entries.items()}
        elif self.kind == "tars":
            yield self._merged(prefix, wanted)
        else:
            yield {name: Entry(path, partial(read_file, path)) for name, path in _walk(self.place, split)}

    def _merged(self, prefix: str, wanted: Callable[[str], bool]) -> dict[str, Entry]:
        merged: dict[str, Entry] = {}
        for path in self.tars:
            for name, entry in read_tar(path, wanted).items():
                inner = name.removeprefix(prefix)
                if inner in merged and inner not in _LISTS:
                    raise DataError(
                        f"{name} is in {merged[inner].origin} and in {path}; the same images would count twice; "
                        "take one of the two archives away"
                    )
                merged[inner] = entry
        return merged


class Decoded(NamedTuple):
    """A selection of images, as it is kept in the cache."""

    images: np.ndarray  # (N, 3, side, side), unsigned bytes
    labels: np.ndarray  # (N,)
    names: tuple[str, ...]  # of the classes
    gaps: bool  # whether later images took the place of missing ones


def find(folder: Path) -> Source | None:
    """The data set in a folder or in its sub-folder ``tiny-imagenet``: unpacked, as the zip, or as tars."""
    if (folder / "wnids.txt").is_file():
        return Source("folder", folder)
    for place in (folder, folder / "tiny-imagenet"):
        if (place / ROOT).is_dir():
            return Source("folder", place / ROOT)
        if (place / ZIP).is_file():
            return Source("zip", place / ZIP)
        tars = sorted(path for path in place.glob("*") if path.name.endswith(_TAR_SUFFIXES) and path.is_file())
        # other archives may lie in the same folder: the first name says whose it is
        if ours := tuple(path for path in tars if ROOT in first_name(path).split("/")):
            return Source("tars", place, ours)
    return None


def locate(folder: Path | None, may_download: bool, progress: bool) -> Source:
    """The source in the named folder, else the official zip in the cache, downloaded if it is not there."""
    if folder is not None and (source := find(folder)) is not None:
        return source
    path = cache_folder() / "tiny-imagenet" / ZIP
    if may_download:
        download(OFFICIAL.url, path, md5=OFFICIAL.md5, limit=OFFICIAL.size, progress=progress)
    elif not path.is_file():
        raise nowhere("Tiny ImageNet is", folder)
    return Source("zip", path)


def verify_zip(path: Path) -> str:
    size = path.stat().st_size
    if size != OFFICIAL.size:
        raise DataError(
            f"{path} has {size:,} bytes, the published file has {OFFICIAL.size:,}; it is truncated or another file, "
            "and nothing is read from it; delete it and fetch it again"
        )
    verify(path, OFFICIAL.md5)
    return OFFICIAL.md5


def load(source: Source, split: str, classes: int, per_class: int, progress: bool) -> Decoded:
    """The images of the first classes, the first of each, from the cache or else from the source."""
    path, key = _cached(source.identity(split), split, classes, per_class)
    found = _recall(path, key)
    if found is None:
        with source.open(split) as entries:
            names, chosen, gaps = _choose(source, entries, split, classes, per_class)
            images = _decode(chosen, progress)
        found = Decoded(images, np.tile(np.arange(classes, dtype=np.int64), per_class), names, gaps)
        _keep(path, key, found)
    if found.gaps:
        warnings.warn(
            f"{source.place} lacks some of the first {per_class} training images of a class, and later ones took "
            "their place; results will differ from those on the complete data set",
            stacklevel=3,
        )
    return found


def _walk(root: Path, split: str) -> Iterator[tuple[str, Path]]:
    """The lists and the split's images in an unpacked folder."""
    for name in _LISTS:
        if (root / name).is_file():
            yield name, root / name
    try:
        classes = sorted(entry.name for entry in os.scandir(root / "train")) if split == "train" else ()
        folders = [f"train/{name}/images" for name in classes] if split == "train" else ["val/images"]
        for folder in folders:
            if (root / folder).is_dir():
                for entry in os.scandir(root / folder):
                    name = f"{folder}/{entry.name}"
                    if _NAMES[split].fullmatch(name):
                        yield name, root / name
    except FileNotFoundError:
        return  # nothing there: the count says so, with what to do
    except OSError as error:
        raise unreadable(root, error) from error


def _lines(source: Source, entries: dict[str, Entry], name: str) -> list[list[str]]:
    """The lines of a list, split at tabs."""
    if name not in entries:
        raise DataError(
            f"{ROOT}/{name} is missing in {source.place}; the classes of the images are unknown without it; "
            "unpack the official archive again, or add the archive that holds it"
        )
    try:
        text = entries[name].read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{ROOT}/{name} in {entries[name].origin} is not UTF-8 text ({error}); it is damaged; fetch it again"
        ) from error
    return [line.split("\t") for line in text.splitlines() if line.strip()]


def _class_names(source: Source, entries: dict[str, Entry]) -> dict[str, str]:
    """From WordNet id to words, in the order of wnids.txt, which numbers the classes."""
    ids = [line[0].strip() for line in _lines(source, entries, "wnids.txt")]
    if len(ids) != OFFICIAL.classes or len(set(ids)) != len(ids):
        raise DataError(
            f"{ROOT}/wnids.txt in {source.place} names {len(set(ids))} classes in {len(ids)} lines instead of "
            f"{OFFICIAL.classes}; labels would be wrong; fetch the official file again"
        )
    words = {line[0]: line[1].strip() for line in _lines(source, entries, "words.txt") if len(line) > 1}
    if missing := [wnid for wnid in ids if wnid not in words]:
        raise DataError(
            f"{ROOT}/words.txt in {source.place} has no line for {missing[0]} (and {len(missing) - 1} more); "
            "the classes would have no names; fetch the official file again"
        )
    names = {wnid: words[wnid] for wnid in ids}
    if OFFICIAL.digests is not None and source.kind != "zip":  # which has been verified as a whole
        published = _digests(OFFICIAL.digests, "words")
        if ids != list(published) or any(not _has(text.encode(), published[wnid]) for wnid, text in names.items()):
            raise DataError(
                f"the classes that wnids.txt and words.txt in {source.place} name, or their order, are not the "
                "published ones; labels would be wrong without a warning; fetch the official files again"
            )
    return names


def _has(content: bytes, digest: str) -> bool:
    return hashlib.sha256(content).hexdigest().startswith(digest)


def _by_class(source: Source, entries: dict[str, Entry], split: str) -> dict[str, list[tuple[int, str]]]:
    """Number and name of every image of the split, sorted by number, by WordNet id."""
    groups: dict[str, list[tuple[int, str]]] = {}
    matches = [match for name in entries if (match := _NAMES[split].fullmatch(name))]
    if split == "val":
        lines = _lines(source, entries, "val/val_annotations.txt")
        wnids = {f"val/images/{line[0]}": line[1] for line in lines if len(line) > 1}
        if missing := [name for name in wnids if name not in entries]:
            raise DataError(
                f"{source.place} lacks {len(missing)} of the {len(wnids)} images that val/val_annotations.txt names, "
                f"{missing[0]} for one; the data set is incomplete there; unpack or fetch it again"
            )
    for match in matches:
        name = match[0]
        if split == "train":
            wnid = match[1]
        elif (wnid := wnids.get(name)) is None:
            raise DataError(
                f"val/val_annotations.txt in {source.place} has no line for {name}; its class is unknown; "
                "fetch the official file again"
            )
        groups.setdefault(wnid, []).append((int(match[2]), name))
    return {wnid: sorted(group) for wnid, group in groups.items()}


def _choose(
    source: Source, entries: dict[str, Entry], split: str, classes: int, per_class: int
) -> tuple[tuple[str, ...], list[tuple[str, Entry]], bool]:
    """The class names; the images to decode, the first of each class, then the second of each; and any gaps."""
    names = _class_names(source, entries)
    groups = _by_class(source, entries, split)
    official = getattr(OFFICIAL, split)
    if strangers := sorted(set(groups) - set(names)):
        raise DataError(
            f"{source.place} holds {split} images of {strangers[0]}, which wnids.txt does not name; the two do not "
            "belong together; unpack the official archive again"
        )
    for wnid in names:
        count = len(groups.get(wnid, ()))
        if count > official:
            raise DataError(
                f"{source.place} holds {count} {split} images of class {wnid}, more than the official {official}; "
                "some are not from Tiny ImageNet; unpack the official archive again"
            )
    selected = list(names)[:classes]
    if source.kind != "zip":  # which has been verified as a whole
        _check_published(source, entries, {wnid: groups[wnid] for wnid in selected if wnid in groups}, split)
    short = min(selected, key=lambda wnid: len(groups.get(wnid, ())))
    if (count := len(groups.get(short, ()))) < per_class:
        raise DataError(
            f"{source.place} holds {count} {split} images of class {short}, {per_class} are needed; the data set is "
            f"incomplete there; add what is missing" + (f", or ask for per_class={count}" if count else "")
        )
    chosen = [groups[wnid][i] for i in range(per_class) for wnid in selected]
    gaps = split == "train" and any(number != i // classes for i, (number, _) in enumerate(chosen))
    return tuple(names[wnid] for wnid in selected), [(name, entries[name]) for _, name in chosen], gaps


def _check_published(
    source: Source, entries: dict[str, Entry], groups: dict[str, list[tuple[int, str]]], split: str
) -> None:
    """Compare every class that is whole with the digest of the published images, one after the other."""
    known = {} if OFFICIAL.digests is None else _digests(OFFICIAL.digests, split)
    for wnid, group in groups.items():
        if wnid not in known or len(group) != getattr(OFFICIAL, split):
            continue  # a part of a class has no digest
        if not _has(b"".join(entries[name].read() for _, name in group), known[wnid]):
            raise DataError(
                f"the {len(group)} {split} images of class {wnid} in {source.place} are not the published ones: one or "
                "more are damaged or others, and would give wrong data without a warning; unpack the official archive "
                "again"
            )


@cache
def _digests(file: str, split: str) -> dict[str, str]:
    """The first 16 digits of SHA-256 over each class's images, in the order of their numbers, or over its name."""
    text = (files("nlcompanion.datasets") / file).read_text(encoding="utf-8")
    return {row["class"]: row[split] for row in csv.DictReader(text.splitlines())}


def _decode(chosen: list[tuple[str, Entry]], progress: bool) -> np.ndarray:
    images = np.empty((len(chosen), 3, OFFICIAL.side, OFFICIAL.side), dtype=np.uint8)
    bar = progress_bar(chosen, shown=progress, desc="Tiny ImageNet: decoding", unit="image")
    for image, (name, entry) in zip(images, bar, strict=True):
        image[:] = _decode_jpeg(entry.read(), name, entry.origin)
    return images


def _decode_jpeg(content: bytes, name: str, origin: Path) -> np.ndarray:
    """One image (3, side, side); the size in the header is compared before any pixel is decoded."""
    with needs("training"):
        from PIL import Image

    side = OFFICIAL.side
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            size = image.size
            pixels = np.asarray(image.convert("RGB")) if size == (side, side) else None
    except Exception as error:  # Pillow raises many kinds on damaged data; each means the same here
        raise DataError(
            f"{name} in {origin} is not a readable JPEG image ({error}); it is damaged; fetch it again"
        ) from error
    if pixels is None:
        raise DataError(
            f"{name} in {origin} has {size[0]} x {size[1]} pixels instead of {side} x {side}; it is not from "
            "Tiny ImageNet; fetch the official archive again"
        )
    return pixels.transpose(2, 0, 1)


def _cached(identity: str, split: str, classes: int, per_class: int) -> tuple[Path, str]:
    """The file that keeps a selection, and the text that it must hold."""
    key = json.dumps([_FORMAT, identity, split, classes, per_class, OFFICIAL.side])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_folder() / "decoded" / f"tiny-imagenet-{split}-{classes}x{per_class}-{digest}.npz", key


def _keep(path: Path, key: str, found: Decoded) -> None:
    """Keep decoded images; a zip without compression, whose CRCs make damage known."""
    about = json.dumps({"key": key, "names": found.names, "gaps": found.gaps})
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                about=np.frombuffer(about.encode(), np.uint8),
                images=found.images,
                labels=found.labels,
            )
    except OSError as error:
        warnings.warn(
            f"the decoded images could not be kept in {path.parent} ({error}); they will be decoded again next time",
            stacklevel=4,
        )
        return
    for older in path.parent.glob(path.name.rpartition("-")[0] + "-*.npz"):
        if older != path:  # the same selection from a source that is no more: up to 1.2 GB
            with suppress(OSError):
                older.unlink()


def _recall(path: Path, key: str) -> Decoded | None:
    """What ``_keep`` kept, or None if it is not there, is cut or damaged, or is of something else."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as kept:
            about = json.loads(kept["about"].tobytes())
            if about["key"] != key:
                return None
            return Decoded(kept["images"], kept["labels"], tuple(about["names"]), about["gaps"])
    except Exception:  # whatever is wrong with it: the images are decoded anew, and take its place
        return None


def tiny_imagenet(
    split: Literal["train", "val"] = "train",
    *,
    folder: str | os.PathLike | None = None,
    classes: int | None = None,
    per_class: int | None = None,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Tiny ImageNet: photographs of 200 kinds of things, 64 x 64 pixels in colour (248 MB to download).

    The folder, or its sub-folder ``tiny-imagenet``, may hold the official data set unpacked
    (``tiny-imagenet-200/``), the official ``tiny-imagenet-200.zip``, or tar archives that each unpack to a part of
    ``tiny-imagenet-200/``. The zip is verified by its MD5 checksum, every whole class elsewhere by a digest of the
    published images; a part of a class is taken as it is. Archives are read in place. Decoded images are kept in the
    cache (12 KB each) and found again as long as the files stay the same.

    The samples go round the classes, in the order of the official ``wnids.txt``: the first image of each class,
    then the second of each, and so on. So ``first(n)`` is balanced, and a smaller selection is a part of a
    larger one. Grey photographs get three equal channels.

    Args:
        split: ``"train"`` (500 images per class) or ``"val"`` (50); the labels of the test images are unpublished.
        folder: where to look first, instead of the folder that ``NLCOMPANION_DATA`` names; read, never written.
        classes: take only the first so many classes, 1 to 200.
        per_class: take only the first so many images of each class.
        download: fetch the official archive to the cache if the data set is neither there nor in the folder.
        progress: show bars while downloading and decoding.

    Returns:
        Images of shape (classes * per_class, 3, 64, 64), with ``levels`` 255.

    Raises:
        DataError: if files are missing, damaged or wrongly laid out, or cannot be downloaded.
        ValueError: if an argument is out of range.

    Example:
        >>> from nlcompanion import tiny_imagenet
        >>> tiny_imagenet("train", classes=10, per_class=100)  # doctest: +SKIP
        Dataset(tiny imagenet train: 1000 images of 3 x 64 x 64, 10 classes)

    Source: the course CS231n of Stanford University, from ImageNet (O. Russakovsky et al., 2015).
    """
    check_split(split, ("train", "val"))
    flag("download", download)
    flag("progress", progress)
    official = OFFICIAL
    classes = _up_to(official.classes, classes, "classes")
    per_class = _up_to(getattr(official, split), per_class, "per_class")
    source = locate(named_folder(folder), download, progress)
    found = load(source, split, classes, per_class, progress)
    return Dataset(
        name=f"tiny imagenet {split}",
        images=torch.from_numpy(found.images),
        labels=torch.from_numpy(found.labels),
        classes=found.names,
        source="Tiny ImageNet, course CS231n of Stanford University, from ImageNet (Russakovsky et al., 2015)",
        licence="ImageNet's terms of access: research and education, not for commerce",
    )


def _up_to(most: int, value: int | None, name: str) -> int:
    if value is None:
        return most
    count = 0 if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if not 1 <= count <= most:
        raise ValueError(
            f"{name} is an integer from 1 to {most} for this split, got {described(value)}; leave it out to have "
            f"all {most}"
        )
    return count
