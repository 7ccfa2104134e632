"""The price of a constrained filter norm: a training step with the projection against the same step without it.

A projection reads and writes every filter once, and a step multiplies each with every pixel of every image, so the
price falls with the batch and the image; at the smallest network it is the time of a dozen calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from _timing import Report, compare, single_thread

from nlcompanion.datasets import Dataset
from nlcompanion.networks import conv_bn, vgg11
from nlcompanion.training import TrainConfig
from nlcompanion.training.batches import Batches
from nlcompanion.training.step import Stepper

CPU = torch.device("cpu")
SIZES: dict[str, tuple[Callable[[], torch.nn.Module], int, int, int]] = {  # network, side, batch, steps in a round
    "conv_bn 8-16-16, 64 images of 8 x 8": (conv_bn, 8, 64, 60),
    "conv_bn 32-64-64, 64 images of 28 x 28": (lambda: conv_bn((32, 64, 64), size=28), 28, 64, 2),
    "vgg11 at a quarter of its width, 32 images of 32 x 32": (
        lambda: vgg11(10, in_channels=1, size=32, width=0.25),
        32,
        32,
        2,
    ),
}


def noise(side: int, count: int) -> Dataset:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, side, side), generator=g, dtype=torch.uint8)
    return Dataset("noise", images, torch.arange(count) % 10, tuple("0123456789"))


def steps(make: Callable[[], torch.nn.Module], side: int, batch: int, count: int, record: bool = False, **settings):
    """A task: so many of `train`'s steps, on epochs of 20; without `record`, only the losses are kept."""
    config = TrainConfig(dataset="custom", batch_size=batch, lr=0.01, **settings)
    model = make().to(memory_format=torch.channels_last).train()
    stepper = Stepper(model, Batches(noise(side, 20 * batch), config, CPU, torch.float32), config, CPU, stride=1)

    def run() -> int:
        for _ in range(count):
            epoch, step = divmod(stepper.taken, stepper.feed.steps)
            if step == 0:
                stepper.start_epoch(epoch)
            stepper(record)
        return count

    return run


def main() -> int:
    single_thread()
    report = Report("A training step with every filter's norm set back / the same step without")
    for name, size in SIZES.items():
        tasks = {"free": steps(*size), "constrained": steps(*size, constrain_norm=True)}
        timings = compare(tasks, least=15, most=45, budget=12.0)
        print(f"{name}: {timings}")
        report.add(name, timings.ratio("constrained"), target=1.05)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
