r"""Why the gradient's norm rises while the loss falls: :math:`|g|/|W|\to\sqrt{2\lambda/\eta}` for SGD with decay.

At equilibrium what a step adds to the squared norm, :math:`\eta^2|g|^2`, is what decay takes, :math:`2\eta\lambda|W|^2`
(Defazio, arXiv 2506.02285). The ratio is a matter of settings alone: as decay shortens a scale-invariant weight, its
gradient grows, whatever the loss does, and when the rate falls, the gradient has to rise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.forecasts import FILTERS
from studies.norm_histories import follow
from studies.small_trainings import convnet, digit_batches


@dataclass(frozen=True)
class Rise:
    r"""A run of plain SGD with decay.

    Attributes:
        ratio: :math:`|g|/|W|`, root mean square over windows, shape ``(windows, filters)``.
        settled: :math:`\sqrt{2\lambda/\eta}` at the rate of each window.
        gradient: :math:`|g|`, root mean square over windows, shape ``(windows, filters)``.
        loss: mean over windows.
        step: the middle of each window.
    """

    ratio: Tensor
    settled: Tensor
    gradient: Tensor
    loss: Tensor
    step: Tensor


def rise(steps: int = 1200, *, lr: float = 0.3, weight_decay: float = 5e-3, seed: int = 0, window: int = 60) -> Rise:
    """Train the convnet on digits without momentum; the rate falls to a third after two thirds of the run.

    Example:
        >>> found = rise(120, window=60)
        >>> tuple(found.ratio.shape), round(found.settled[0].item(), 3)
        ((2, 3), 0.183)
    """
    model = convnet(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    fall = steps * 2 // 3
    schedule = lambda n: 1.0 if n < fall else 1 / 3  # noqa: E731
    batches = digit_batches(64, seed, noise=0.1)
    history = follow(model, optimizer, batches, FILTERS, steps, schedule=schedule)
    shape = (steps // window, window)
    squares = (history.grad_norms / history.norms).square()
    ratio = squares[: math.prod(shape)].reshape(*shape, -1).mean(1).sqrt()
    gradient = history.grad_norms.square()[: math.prod(shape)].reshape(*shape, -1).mean(1).sqrt()
    rates = history.rates[: math.prod(shape)].reshape(shape).mean(1)
    loss = history.losses[: math.prod(shape)].reshape(shape).mean(1)
    step = torch.arange(shape[0]) * window + window / 2
    return Rise(ratio, (2 * weight_decay / rates).sqrt(), gradient, loss, step)
