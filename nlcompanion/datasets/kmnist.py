"""Kuzushiji-MNIST: files found or fetched, verified, read from the idx format."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import warnings
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from nlcompanion._arguments import flag
from nlcompanion.datasets.dataset import Dataset, check_split
from nlcompanion.datasets.download import DataError, cache_folder, download, named_folder, nowhere, unreadable, verify

__all__ = ["kmnist"]

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
URL = "https://codh.rois.ac.jp/kmnist/dataset/kmnist/"
LARGEST = 64 << 20  # bytes; the largest of the four files has 18 MB
_UNSIGNED_BYTE = 0x08


class Published(NamedTuple):
    """A file of the data set, by its name without ``.gz``."""

    name: str
    shape: tuple[int, ...]
    md5: str  # of the gzipped file
    md5_unpacked: str | None  # of what is in it, where it is known


OFFICIAL = {
    "train": (
        Published("train-images-idx3-ubyte", (60_000, 28, 28), "bdb82020997e1d708af4cf47b453dcf7", None),
        Published("train-labels-idx1-ubyte", (60_000,), "e144d726b3acfaa3e44228e80efcd344", None),
    ),
    "test": (
        Published(
            "t10k-images-idx3-ubyte",
            (10_000, 28, 28),
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "bf305b8cd328700fbc17f5acbc2856d2",
        ),
        Published(
            "t10k-labels-idx1-ubyte",
            (10_000,),
            "7320c461ea6c1c855c0b718fb2a4b134",
            "9f55f451c0988b028eccdf7d5cc265ab",
        ),
    ),
}


def load(split: str, folder: Path | None, may_download: bool, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both as unsigned bytes, checked to be the published ones."""
    official = OFFICIAL[split]
    paths = (folder and find(official, folder)) or _in_cache(official, folder, may_download, progress)
    images, labels = (read_idx(path, published) for path, published in zip(paths, official, strict=True))
    counts = np.bincount(labels, minlength=len(CLASSES))
    if len(counts) > len(CLASSES) or len(np.unique(counts)) > 1:
        raise DataError(
            f"{paths[1]} has the labels {np.flatnonzero(counts).tolist()} in the numbers "
            f"{counts[counts > 0].tolist()}, not 0 to {len(CLASSES) - 1} equally often; it is damaged or of another "
            "data set; fetch the published file"
        )
    return images, labels


def find(official: tuple[Published, Published], folder: Path) -> tuple[Path, Path] | None:
    """The image file and the label file in a folder, in its ``kmnist``, or in torchvision's ``KMNIST/raw``."""
    for place in (folder, folder / "kmnist", folder / "KMNIST" / "raw"):
        images, labels = (_gzipped_or_plain(place / published.name) for published in official)
        if images and labels:
            return images, labels
        if found := images or labels:
            missing = official[1 if images else 0].name
            raise DataError(
                f"{place} holds {found.name}, but neither {missing}.gz nor {missing}; images and "
                "labels are needed together; put the missing file there"
            )
    return None


def _gzipped_or_plain(path: Path) -> Path | None:
    candidates = (path.with_name(path.name + ".gz"), path)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _in_cache(
    official: tuple[Published, Published], folder: Path | None, may_download: bool, progress: bool
) -> tuple[Path, Path]:
    images, labels = (cache_folder() / "kmnist" / f"{published.name}.gz" for published in official)
    if may_download:
        for path, published in zip((images, labels), official, strict=True):
            download(URL + path.name, path, md5=published.md5, limit=LARGEST, progress=progress)
    elif not (images.is_file() and labels.is_file()):
        raise nowhere(f"{images.name} and {labels.name} are", folder)
    return images, labels


def read_idx(path: Path, published: Published) -> np.ndarray:
    """Array from a published idx file, plain or gzipped (suffix ``.gz``).

    Raises:
        DataError: if the file is not the published one, is damaged, or holds something else.

    Warns:
        UserWarning: the file is plain, and of its plain form no checksum is known.
    """
    zipped = path.suffix == ".gz"
    if zipped:
        verify(path, published.md5)
    most = 4 + 4 * len(published.shape) + math.prod(published.shape) + 1  # one byte too many: enough to notice
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            data = file.read(most)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} cannot be unpacked ({error}); the gzip file is truncated or damaged; fetch it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    array = parse_idx(data, published.shape, str(path))
    if not zipped:
        _check_unpacked(path, data, published)
    return array


def _check_unpacked(path: Path, data: bytes, published: Published) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if published.md5_unpacked is None:
        warnings.warn(
            f"{path} has the right shape, but of the unpacked file no checksum is published, so a damaged pixel would "
            f"not be noticed; put {published.name}.gz in its place",
            stacklevel=5,
        )
    elif found != published.md5_unpacked:
        raise DataError(
            f"{path} has the MD5 checksum {found}, the published file unpacked has {published.md5_unpacked}; it is "
            "damaged or another file, and would give wrong data without a warning; fetch it again"
        )


def parse_idx(data: bytes, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Array of unsigned bytes of the given shape from the content of an idx file.

    The header is four bytes (0, 0, type, number of dimensions), then one 32-bit big-endian length per
    dimension. Every length is compared before anything is allocated.

    Args:
        data: the whole file.
        shape: what the file must hold.
        name: what errors call the file.

    Raises:
        DataError: unless ``data`` is exactly such a file.
    """

    def wrong(what: str) -> DataError:
        return DataError(
            f"{name} is not the idx file it should be: {what}; it is truncated, damaged or another file; fetch it again"
        )

    if len(data) < 4 or data[:2] != b"\0\0":
        raise wrong(f"it begins with the bytes {data[:4].hex(' ') or '(none)'} instead of 00 00 08 {len(shape):02x}")
    if data[2] != _UNSIGNED_BYTE:
        raise wrong(f"its type code is 0x{data[2]:02x} instead of 0x08, unsigned bytes")
    if data[3] != len(shape):
        raise wrong(f"it has {data[3]} dimensions instead of {len(shape)}")
    start = 4 + 4 * len(shape)
    if len(data) < start:
        raise wrong(f"its header ends after {len(data)} of {start} bytes")
    found = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if found != shape:
        raise wrong(f"its shape is {found} instead of {shape}")
    size = math.prod(shape)
    if len(data) - start != size:
        raise wrong(f"{len(data) - start:,} bytes follow its header instead of {size:,}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()


def kmnist(
    split: Literal["train", "test"] = "train",
    *,
    folder: str | os.PathLike | None = None,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Kuzushiji-MNIST: ten cursive Japanese characters, 28 x 28 pixels (about 18 MB to download for training).

    The four official files, gzipped or unpacked, may lie in the folder itself, in its sub-folder ``kmnist`` or in
    ``KMNIST/raw``. Their checksums are verified; the unpacked training files have none, which a warning says.

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).
        folder: where to look first, instead of the folder that ``NLCOMPANION_DATA`` names; read, never written.
        download: fetch what is neither there nor in the cache, from the publisher to the cache.
        progress: show a bar while downloading.

    Returns:
        Images of shape (N, 1, 28, 28), with ``levels`` 255. The papers' small experiments take ``first(1000)``.

    Raises:
        DataError: if the files are missing, damaged or not the published ones, or cannot be downloaded.
        ValueError: if ``split`` is neither of the two.

    Example:
        >>> from nlcompanion import kmnist
        >>> kmnist("test", folder="/data")  # doctest: +SKIP
        Dataset(kmnist test: 10000 images of 1 x 28 x 28, 10 classes)

    Source: T. Clanuwat et al., Deep Learning for Classical Japanese Literature (2018), arXiv:1812.01718.
    """
    check_split(split, ("train", "test"))
    flag("download", download)
    flag("progress", progress)
    images, labels = load(split, named_folder(folder), download, progress)
    return Dataset(
        name=f"kmnist {split}",
        images=torch.from_numpy(images)[:, None],
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=CLASSES,
        source='"KMNIST Dataset" (created by CODH), adapted from "Kuzushiji Dataset" (created by NIJL and '
        "others), doi:10.20676/00000341",
        licence="CC BY-SA 4.0",
    )
