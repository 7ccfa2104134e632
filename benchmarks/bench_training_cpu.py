"""A training step on one CPU thread: the layout of the images, bfloat16, and what `train` adds to a bare loop.

The bare loop has its inputs ready in float32 and does nothing but forward, backward and torch's SGD. `train` gathers
its batch from bytes, standardises it and keeps every loss; recording, it also measures each layer's norm, gradient and
turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from _timing import Report, compare, single_thread
from bench_projection import SIZES, noise, steps
from torch import nn
from torch.nn.functional import cross_entropy


def bare(make: Callable[[], nn.Module], side: int, batch: int, count: int, layout: torch.memory_format):
    """The loop as one writes it."""
    model = make().to(memory_format=layout).train()
    inputs, labels = noise(side, batch).tensors(torch.float32)
    inputs = inputs.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def run() -> int:
        for _ in range(count):
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        return count

    return run


def main() -> int:
    single_thread()
    report = Report("A training step on one CPU thread")
    for name, size in SIZES.items():
        tasks = {
            "channels last": bare(*size, torch.channels_last),
            "contiguous": bare(*size, torch.contiguous_format),
            "train": steps(*size),
            "train, recording": steps(*size, record=True),
            "train in bf16": steps(*size, precision="bf16"),
        }
        timings = compare(tasks, least=7, most=25, budget=10.0)
        print(f"{name}: {timings}")
        report.add(f"{name}: channels last / contiguous", timings.ratio("channels last", "contiguous"))
        report.add(f"{name}: train / the bare loop, both channels last", timings.ratio("train"))
        report.add(f"{name}: train, recording every step / the bare loop", timings.ratio("train, recording"))
        report.add(f"{name}: bf16 / float32", timings.ratio("train in bf16", "train"))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
