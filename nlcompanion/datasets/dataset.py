r"""Images with labels: handwritten digits (embedded), Kuzushiji-MNIST, Tiny ImageNet.

Every loader returns a :class:`Dataset`, and the same one on every machine: the split of the digits and every
selection are drawn from a generator whose stream is guaranteed. Files are looked for in the folder that you
name (``folder=``, else the environment variable ``NLCOMPANION_DATA``), then in the cache of the operating
system, and are downloaded to the cache if they are in neither. Nothing is written into a folder of yours.
Published checksums are verified; anything wrong with a file is a :class:`DataError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from nlcompanion._arguments import described, flag, instance, integer, names, seed_number

__all__ = ["Dataset", "describe"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with class labels, and where they are from. Frozen; subsets are new data sets.

    Attributes:
        name: what figures call it.
        images: grey values, uint8, shape (N, C, H, W), 0 to ``levels``.
        labels: class numbers, int64, shape (N,).
        classes: the name of each class.
        levels: the grey value that means full brightness: 16 for the digits, 255 elsewhere.
        source: who made the data, for citing.
        licence: the terms of its makers.

    Raises:
        ValueError: if shapes, types or labels do not fit together.

    Example:
        >>> from nlcompanion import digits
        >>> train = digits("train")
        >>> train
        Dataset(digits train: 1438 images of 1 x 8 x 8, 10 classes)
        >>> threes = train[train.labels == 3]
        >>> len(threes), threes.labels[:4].tolist()
        (146, [3, 3, 3, 3])
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    levels: int = 255
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for name, text in (("name", self.name), ("source", self.source), ("licence", self.licence)):
            instance(name, text, str, '"digits"')
        object.__setattr__(self, "classes", names("classes", self.classes))
        for name, value in (("images", images), ("labels", labels)):
            if not isinstance(instance(name, value, torch.Tensor, "torch.zeros(...)"), torch.Tensor) or value.is_meta:
                raise TypeError(f"{name} has no values: {described(value)}")
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"images are uint8 of shape (N, C, H, W), got {images.dtype} of shape {tuple(images.shape)}; "
                "reshape them, or scale them to 0..255 and round"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels are int64 of shape ({len(images)},), one per image, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; give every image its class number"
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, but there are {len(self.classes)} classes; "
                "number the classes from 0 and name each in classes"
            )
        integer("levels", self.levels, 1, 255)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"Dataset({self.name}: {len(self)} images of {shape}, {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: slice | torch.Tensor | np.ndarray | list[int]) -> Dataset:
        """The subset at a slice, at a list or tensor of indices, or where a mask is true."""
        if not isinstance(which, slice):
            which = self._indices(which)
        return replace(self, images=self.images[which], labels=self.labels[which])

    def _indices(self, which: object) -> torch.Tensor:
        index = torch.as_tensor(which)
        if index.numel() == 0 and index.dtype != torch.bool:
            index = index.to(torch.int64)  # an empty list is a list of no indices
        if index.ndim != 1 or index.is_floating_point() or index.is_complex():
            raise TypeError(
                f"a data set is indexed by a slice, or by a mask or integers of shape (n,), got {index.dtype} of "
                f"shape {tuple(index.shape)}; for one sample take ds[i : i + 1], or ds.images[i] and ds.labels[i]"
            )
        if index.dtype == torch.bool:
            if len(index) != len(self):
                raise IndexError(
                    f"the mask has {len(index)} entries, the data set has {len(self)} samples; "
                    "make the mask from this data set's own labels"
                )
            return index
        index = index.to(torch.int64)
        if len(index) and not (index.min() >= -len(self) and index.max() < len(self)):
            raise IndexError(
                f"indices run from {index.min()} to {index.max()}, the data set has {len(self)} samples; "
                "take indices below that"
            )
        return index

    def first(self, n: int) -> Dataset:
        """The first ``n`` samples, in the order of the files.

        Raises:
            ValueError: if there are fewer than ``n``.

        Example:
            >>> from nlcompanion import digits
            >>> digits("all").first(12).labels.tolist()
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
        """
        return self[: self._count(n)]

    def balanced(self, n: int, seed: int = 0) -> Dataset:
        """``n`` samples drawn without repetition, the classes as equal in number as the data allow.

        The same ``seed`` gives the same samples on every machine, and a smaller ``n`` a part of them: the
        samples go round the classes, so that every beginning of the result is balanced too.

        Args:
            n: how many samples, 0 to ``len(self)``.
            seed: of the random order, an integer >= 0.

        Raises:
            ValueError: if there are fewer than ``n`` samples, or the seed is negative.

        Example:
            >>> from nlcompanion import digits
            >>> digits("train").balanced(25).labels.bincount().tolist()
            [2, 3, 3, 2, 3, 3, 2, 2, 3, 2]
        """
        order = random_order(len(self), seed)
        labels = self.labels.numpy()[order]
        turn = np.empty(len(self), dtype=np.int64)  # the how-many-th of its class a sample is, in that order
        for label in range(len(self.classes)):
            members = labels == label
            turn[members] = np.arange(members.sum())
        chosen = order[np.argsort(turn, kind="stable")][: self._count(n)]
        return self[torch.from_numpy(chosen)]

    def _count(self, n: int) -> int:
        count = integer("n", n)
        if not 0 <= count <= len(self):
            raise ValueError(
                f"{self.name} has {len(self)} samples here, got n = {described(count)}; ask for 0 to {len(self)} of "
                "them"
            )
        return count

    def tensors(
        self, dtype: torch.dtype = torch.float64, *, flatten: bool = False, standardize: bool | Dataset = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Inputs for a network, and labels.

        .. math:: x = \frac{p - \mu}{\sigma}, \qquad
                  \mu = \langle p \rangle, \quad \sigma^2 = \langle (p - \mu)^2 \rangle

        with the grey values :math:`p` and the average over all samples, channels and pixels at once, so that
        the inputs have mean 0 and standard deviation 1 (dimensionless). The two sums are exact, in integers.

        Args:
            dtype: floating-point type of the inputs.
            flatten: give the inputs the shape (N, C * H * W) instead of (N, C, H, W).
            standardize: True takes the mean and deviation of this data set; another data set takes its: a
                test set's inputs are ``test.tensors(standardize=train)``. False gives ``p / levels``, in [0, 1].

        Returns:
            Inputs, and labels (N,) as int64; neither shares memory with the data set.

        Raises:
            ValueError: if a data set to standardise by is empty or all of one grey value.
            TypeError: if ``dtype`` is no floating-point type.

        Example:
            >>> from nlcompanion import digits
            >>> inputs, labels = digits("train").tensors(flatten=True)
            >>> inputs.shape, labels.shape
            (torch.Size([1438, 64]), torch.Size([1438]))
            >>> abs(inputs.mean()) < 1e-12, abs(inputs.std(correction=0) - 1) < 1e-12
            (tensor(True), tensor(True))
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            got = dtype if isinstance(dtype, torch.dtype) else described(dtype)
            raise TypeError(f"inputs are floating-point numbers, got dtype={got}; take torch.float64")
        flag("flatten", flatten)
        instance("standardize", standardize, (bool, Dataset), "True, False or the training set")
        inputs = self.images.to(dtype)
        if standardize is False:
            inputs /= self.levels
        else:
            mean, deviation = (self if standardize is True else standardize).moments()
            inputs = inputs.sub_(mean).div_(deviation)
        return inputs.flatten(1) if flatten else inputs, self.labels.clone()

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all grey values, from exact sums."""
        counts = torch.zeros(256, dtype=torch.int64)
        for block in self.images.split(4096):  # bincount needs 8 bytes per pixel for a while
            counts += torch.bincount(block.flatten(), minlength=256)
        pixels, total, squares = (sum(c * p**k for p, c in enumerate(counts.tolist())) for k in range(3))
        if squares * pixels == total**2:
            raise ValueError(
                f"{self.name} has {len(self)} samples, all of one grey value; it has no standard deviation to "
                "divide by; pass standardize=False, or another data set to standardise by"
            )
        return total / pixels, math.sqrt((squares * pixels - total**2) / pixels**2)


def random_order(n: int, seed: int) -> np.ndarray:
    """A random permutation of 0..n-1. NumPy guarantees PCG64's raw stream, but not that of its shuffles."""
    seed = seed_number("seed", seed)
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def check_split(split: str, known: tuple[str, ...]) -> None:
    if not isinstance(split, str) or split not in known:
        raise ValueError(
            f"split is one of {', '.join(map(repr, known))}, got {split!r}; there is no such part of the data set"
        )


# --- what an experiment returns -----------------------------------------------------------------------------------


def describe(dataset) -> dict:
    """What identifies a :class:`nlcompanion.datasets.Dataset` in a result: its name, size, origin and checksum.

    The checksum is SHA-256 of the images' bytes and the labels' bytes (little-endian int64), whatever files they came
    from.

    Example:
        >>> from nlcompanion import digits
        >>> about = describe(digits("test").first(10))
        >>> about["name"], about["samples"], len(about["sha256"])
        ('digits test', 10, 64)
    """
    instance("dataset", dataset, Dataset, 'digits("test")')
    checksum = sha256(dataset.images.contiguous().numpy().tobytes())
    checksum.update(dataset.labels.numpy().astype("<i8").tobytes())
    return {
        "name": dataset.name,
        "samples": len(dataset),
        "sha256": checksum.hexdigest(),
        "source": dataset.source,
        "licence": dataset.licence,
    }
