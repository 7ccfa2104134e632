"""Weights that settle under an optimiser while their gradients are white noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class Settled(NamedTuple):
    """Root mean squares over the second part of a run: of an entry of the weight, and of the turn per step."""

    rms: float
    angle: float


def settled_run(
    factory: Callable[..., torch.optim.Optimizer],
    *,
    steps: int = 1500,
    first: int = 600,
    shape: tuple[int, ...] = (32, 32),
    seed: int = 1,
) -> Settled:
    """Where a weight settles, measured on the run itself from the step ``first`` on.

    Example:
        >>> found = settled_run(lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.5), steps=600, first=300)
        >>> round(found.rms / (0.02 / 1.0) ** 0.5, 1)
        1.0
    """
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.zeros(shape))
    optimizer, squares, turns = factory([weight]), 0.0, 0.0
    for n in range(steps):
        weight.grad = torch.randn(shape, generator=generator)
        before = weight.detach().clone()
        optimizer.step()
        after = weight.detach()
        if n >= first:
            squares += after.square().mean().item()
            turns += (after / after.norm() - before / before.norm()).square().sum().item()
    return Settled(math.sqrt(squares / (steps - first)), math.sqrt(turns / (steps - first)))
