"""A training loop as PyTorch has it, for what is to be measured beside it.

Full-batch SGD with momentum on 1,000 synthetic images of the size of handwritten digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

import nlcompanion as nl

IMAGES = 1000


class DigitLoop:
    """A task of the timer: some steps of 784-d-d-d-10.

    Attributes:
        after: called after each step.

    Args:
        width: of the hidden layers.
        dtype: of weights and images.
        steps: in one call of the task.
        after: called after each step.
        activation: of the hidden layers.
    """

    def __init__(
        self,
        width: int,
        dtype: torch.dtype,
        steps: int,
        after: Callable[[], object] | None = None,
        activation: str = "relu",
    ):
        g = torch.Generator().manual_seed(0)
        ink = torch.rand(IMAGES, 784, generator=g) < 0.2
        self.x = (ink * torch.rand(IMAGES, 784, generator=g)).to(dtype)
        self.y = torch.randint(10, (IMAGES,), generator=g)
        self.model = nl.mlp((784, width, width, width, 10), activation, init="kaiming", dtype=dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.steps, self.after = steps, after

    def __call__(self) -> int:
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()
            if self.after is not None:
                self.after()
        return self.steps


class Copies:
    """A task of the timer: several loops alike, one after the other.

    Where its tensors come to lie makes one loop up to 6% faster than the next, for as long as both live.
    """

    def __init__(self, make: Callable[[], DigitLoop], count: int):
        self.loops = [make() for _ in range(count)]

    def __call__(self) -> int:
        return sum(loop() for loop in self.loops)
