"""Stochastic gradient descent for many seeds at once: what one draw of the mini-batches decides, many do not.

Training on mini-batches is chaotic, so a statement about it is one about the mean over seeds with its standard error.
All seeds take their steps together, in one batched computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from nlcompanion.networks import FlatLoss


def draw_rows(seeds: int, samples: int, size: int, generator: torch.Generator, *, replacement: bool = False) -> Tensor:
    """The rows of one mini-batch for each seed, shape ``(seeds, size)``; the same numbers on every machine.

    Args:
        seeds: how many.
        samples: size of the data set.
        size: of a batch.
        generator: goes on from draw to draw. One that is seeded anew with 0, 1, 2, ... gives draws that are not
            independent: over 256 seeds means were off by three standard errors.
        replacement: draw rows independently, or each at most once.

    Example:
        >>> draw_rows(2, samples=10, size=3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    if replacement:
        return torch.randint(samples, (seeds, size), generator=generator)
    return torch.rand(seeds, samples, generator=generator, dtype=torch.float64).argsort(dim=1)[:, :size]


def descend_seeds(
    f: FlatLoss,
    inputs: Tensor,
    targets: Tensor,
    *,
    lr: float,
    steps: int,
    size: int,
    seeds: int,
    momentum: float = 0.0,
) -> Tensor:
    r"""Where heavy ball on mini-batches of cross entropy ends, for each seed, shape ``(seeds, n)``.

    :math:`b \leftarrow \beta b + g,\ q \leftarrow q - \eta b` from ``f.q0`` with an empty buffer, PyTorch's convention.

    Args:
        f: the loss, whose network is used; its data are ``inputs`` and ``targets``.
        lr, momentum: step size and memory.
        steps: how many.
        size: of a batch, drawn anew in each step without replacement.
        seeds: how many runs.

    Example:
        >>> import nlcompanion as nl
        >>> x, y = nl.digits("train").first(20).tensors(flatten=True)
        >>> f = nl.flat_loss(nl.mlp((64, 4, 10)), x, y, cross_entropy)
        >>> descend_seeds(f, x, y, lr=0.1, steps=2, size=5, seeds=3).shape == (3, len(f))
        True
    """

    def loss(q: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(f.outputs(q, inputs[rows]), targets[rows])

    slope = vmap(grad(loss))
    generator = torch.Generator().manual_seed(0)
    q = f.q0.expand(seeds, -1).clone()
    buffer = torch.zeros_like(q)
    for _ in range(steps):
        rows = draw_rows(seeds, len(inputs), size, generator)
        buffer = momentum * buffer + slope(q, rows)
        q = q - lr * buffer
    return q


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over the first dimension of independent values, and its standard error.

    Example:
        >>> mean_and_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def order_over_seeds(sizes: Sequence[float], values: Tensor) -> tuple[float, float]:
    r"""The order :math:`p` in ``mean over seeds ~ size^p``, by least squares in log-log, and its standard error.

    The error comes from leaving out one seed at a time (the jackknife).

    Args:
        sizes: the small parameter, ``(k,)``.
        values: of every seed at every size, ``(seeds, k)``; the means must be positive.

    Example:
        >>> sizes = [0.4, 0.2, 0.1]
        >>> noise = torch.tensor([[1.0], [-1.0]]) * 1e-3
        >>> p, error = order_over_seeds(sizes, torch.tensor(sizes) + noise * torch.tensor(sizes))
        >>> round(p, 6), error < 1e-6
        (1.0, True)
    """
    x = torch.tensor(sizes, dtype=torch.float64).log()
    x = x - x.mean()

    def order(mean: Tensor) -> Tensor:
        return (mean.double().abs().log() @ x) / (x @ x)

    seeds = len(values)
    without = torch.stack([order(values[torch.arange(seeds) != k].mean(0)) for k in range(seeds)])
    error = math.sqrt((seeds - 1) / seeds * float((without - without.mean()).square().sum()))
    return float(order(values.mean(0))), error
