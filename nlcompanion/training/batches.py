"""The batches of a training run: the data on the device, and what is drawn for an epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256

import torch
from torch import Tensor

from nlcompanion.datasets.dataset import Dataset
from nlcompanion.datasets.digits import digits
from nlcompanion.datasets.kmnist import kmnist
from nlcompanion.datasets.tiny_imagenet import tiny_imagenet
from nlcompanion.training.config import TrainConfig


@cache  # a sweep of short runs would read them again and again; nothing here writes to them
def _digits() -> tuple[Dataset, Dataset]:
    return digits("train"), digits("test")


_LOADERS: dict[str, Callable[[], tuple[Dataset, Dataset]]] = {
    "digits": _digits,
    "kmnist": lambda: (kmnist("train"), kmnist("test")),
    "tiny_imagenet": lambda: (tiny_imagenet("train"), tiny_imagenet("val")),
}
_SUBSET_SEED = 0  # a subset is the same for every seed of the run


def load(config: TrainConfig, data: tuple[Dataset, Dataset] | None) -> tuple[Dataset, Dataset]:
    """The training set, cut to the subset, and the whole test set."""
    if data is None:
        if config.dataset == "custom":
            raise ValueError('dataset is "custom" and no data are given; call train(config, data=(train, test))')
        data = _LOADERS[config.dataset]()
    if not (isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Dataset) for part in data)):
        raise ValueError("data is a pair of nlcompanion.datasets.Dataset, training and test set, or None")
    train, test = data
    for part in data:
        if not len(part) or part.images.shape[1:] != train.images.shape[1:] or part.classes != train.classes:
            raise ValueError(
                f"{train} and {part} are no training and test set of one kind, or empty; they share the shape of "
                "their images and their classes"
            )
    if train.images.shape[-1] != train.images.shape[-2]:
        raise ValueError(f"the networks take square images, got {train}; crop them")
    if config.subset is not None:
        train = train.balanced(config.subset, seed=_SUBSET_SEED)
    return train, test


class Pictures:
    """Grey values on a device, and the standardised inputs they stand for."""

    def __init__(self, part: Dataset, moments: tuple[float, float], device: torch.device, dtype: torch.dtype):
        self.images = part.images.to(device)
        self.labels = part.labels.to(device, copy=True)  # noise is drawn into it
        self.mean, self.deviation = moments
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, images: Tensor) -> Tensor:
        """What ``Dataset.tensors`` gives for these images, laid out channels last."""
        return images.to(self.dtype, memory_format=torch.channels_last).sub_(self.mean).div_(self.deviation)

    def chunks(self, most: int, limit: int | None = None):
        """Inputs and labels of the first samples in chunks of nearly one size, each no larger than ``most``."""
        count = min(len(self), limit or len(self))
        parts = -(-count // most)
        for images, labels in zip(
            self.images[:count].tensor_split(parts), self.labels[:count].tensor_split(parts), strict=True
        ):
            yield self.inputs(images), labels


class Batches(Pictures):
    """Batches for :mod:`nlcompanion.training.step`.

    Whatever is random is drawn per epoch on the CPU, from a generator whose seed is a function of the run's seed, the
    purpose and the epoch: every device gets the same batches, a resumed run goes on with them without any state to
    restore, and two runs share them even where only one has noise. The draws are copied into tensors that keep their
    place, where a captured step finds them.
    """

    def __init__(self, part: Dataset, config: TrainConfig, device: torch.device, dtype: torch.dtype):
        super().__init__(part, part.moments(), device, dtype)
        self.config, self.classes = config, len(part.classes)
        self.steps = config.steps_per_epoch(len(part))
        self.batch_size = int(config.batch_size or len(part))
        self.clean = part.labels
        self.order = torch.arange(self.steps * self.batch_size, device=device).view(self.steps, self.batch_size)
        if config.augment:
            side = part.images.shape[-1]
            self.shift = side // 8
            self.pixels = torch.arange(side, device=device)
            self.channels = torch.arange(part.images.shape[1], device=device)[:, None, None]
            self.flips = torch.zeros(len(part), dtype=torch.bool, device=device)
            self.offsets = torch.zeros(2, len(part), dtype=torch.int64, device=device)

    def draw(self, epoch: int) -> None:
        """Make ready for an epoch."""
        config, n = self.config, len(self)
        if config.batch_size is not None:  # the full batch needs no order, and sums in the same one each time
            order = torch.randperm(n, generator=self._generator("order", epoch))
            self.order.copy_(order[: self.order.numel()].view_as(self.order))
        if config.label_noise:
            g = self._generator("labels", epoch)
            again = torch.rand(n, generator=g, dtype=torch.float64) < config.label_noise
            self.labels.copy_(torch.where(again, torch.randint(self.classes, (n,), generator=g), self.clean))
        if config.augment:
            g = self._generator("augment", epoch)
            self.flips.copy_(torch.randint(2, (n,), generator=g) == 1)
            self.offsets.copy_(torch.randint(-self.shift, self.shift + 1, (2, n), generator=g))

    def _generator(self, purpose: str, epoch: int) -> torch.Generator:
        digest = sha256(f"{purpose} of epoch {epoch} at seed {self.config.seed}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # torch's CPU generator takes 32 bits

    def batch(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a step, by its number in the epoch, a tensor (1,); nothing here waits for the device."""
        index = self.order.index_select(0, position)[0]
        images = self._augmented(index) if self.config.augment else self.images.index_select(0, index)
        return self.inputs(images), self.labels.index_select(0, index)

    def _augmented(self, index: Tensor) -> Tensor:
        """The images mirrored and shifted as drawn, in one gather."""
        last = len(self.pixels) - 1
        rows, columns = (
            last - (last - (self.pixels + offset.index_select(0, index)[:, None]).abs()).abs()  # reflected at edges
            for offset in self.offsets
        )
        columns = torch.where(self.flips.index_select(0, index)[:, None], last - columns, columns)
        return self.images[index[:, None, None, None], self.channels, rows[:, None, :, None], columns[:, None, None]]
