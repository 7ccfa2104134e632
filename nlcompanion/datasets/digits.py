"""Scikit-learn's digits: embedded, 8 x 8 pixels."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from nlcompanion._extras import needs
from nlcompanion.datasets.dataset import Dataset, check_split, random_order

__all__ = ["digits"]


def digits(split: Literal["train", "test", "all"] = "train") -> Dataset:
    """Handwritten digits, 8 x 8 pixels in 17 grey levels, from scikit-learn: nothing is downloaded.

    Of the 1797 images, 80 % of every class are for training and 20 % for testing, drawn once for all and the
    same on every machine; both keep the order of the files. The digits of one writer can be in both.

    Args:
        split: ``"train"`` (1438 images), ``"test"`` (359) or ``"all"`` (1797).

    Returns:
        Images of shape (N, 1, 8, 8), with ``levels`` 16.

    Raises:
        ValueError: if ``split`` is none of the three.

    Example:
        >>> from nlcompanion import digits
        >>> digits("test")
        Dataset(digits test: 359 images of 1 x 8 x 8, 10 classes)
        >>> digits("test").images[0, 0, 0].tolist()
        [0, 0, 0, 12, 13, 5, 0, 0]
    """
    check_split(split, ("train", "test", "all"))
    pixels, labels = _table()
    everything = Dataset(
        name="digits",
        images=torch.from_numpy(pixels).view(-1, 1, 8, 8),
        labels=torch.from_numpy(labels),
        classes=tuple("0123456789"),
        levels=16,
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository (1998); the test set, as scikit-learn carries it",
        licence="CC BY 4.0",
    )
    if split == "all":
        return everything
    order = random_order(len(everything), seed=1797)
    train = np.zeros(len(everything), dtype=bool)
    for label in range(10):
        members = order[everything.labels.numpy()[order] == label]
        train[members[: round(0.8 * len(members))]] = True
    part = everything[torch.from_numpy(train if split == "train" else ~train)]
    return replace(part, name=f"digits {split}")


def _table() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 64)`` and labels, from scikit-learn's file; to import scikit-learn for it takes a second."""
    found = find_spec("sklearn")
    if found is not None and found.origin:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return np.ascontiguousarray(table[:, :-1]), table[:, -1].astype(np.int64)
    with needs("training"):
        from sklearn.datasets import load_digits

    raw = load_digits()
    return raw.data.astype(np.uint8), raw.target.astype(np.int64)
