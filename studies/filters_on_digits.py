r"""A small convolutional network on handwritten digits, followed step by step: lengths, gradients, turns.

The experiment of the chapter on implicit adaptivity. Every convolution stands before a BatchNorm without
:math:`\epsilon`, so the loss does not see its length :math:`r`. A :class:`Course` keeps all that the laws of
:mod:`nlcompanion.adaptivity` ask for; the functions compare the laws with it. Training with mini-batches is chaotic:
judge by the mean over several seeds, :func:`mean_and_error`, not by one course.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import nlcompanion as nl
from nlcompanion.training import Run, TrainConfig, train

NOISY = {"lr": 0.03, "batch_size": 64, "weight_decay": 5e-3, "label_noise": 0.3}
CLEAN = {"lr": 0.03, "batch_size": 64, "weight_decay": 5e-3}
FULL = {"lr": 0.003, "batch_size": "full", "subset": 300, "weight_decay": 5e-3}


@dataclass(frozen=True)
class Course:
    r"""A training run and every gradient that it used.

    Attributes:
        run: what ``train`` returned, with a record of every step.
        gradients: :math:`\hat g_n = r_n\nabla f(q_n)`, one tensor of shape (steps, weights) for each convolution.
    """

    run: Run
    gradients: tuple[Tensor, ...]

    @property
    def r_squared(self) -> Tensor:
        """The squared length of every convolution before each step, shape (steps, convolutions)."""
        return self.run.records["filter_norm"] ** 2

    @property
    def times(self) -> Tensor:
        """The times of the steps, the step size times their number."""
        return self.run.config.lr * torch.arange(self.run.steps)


def follow(*, nudge: float = 0.0, **settings) -> Course:
    """Train the network of ``conv_bn`` on digits, in float64 and without BatchNorm's eps, and keep every gradient.

    Args:
        nudge: relative size of a random change of all filters at the first step, to see what chaos makes of it.
        settings: of :class:`~nlcompanion.training.TrainConfig`; the rate is constant unless ``lr_drops`` is given.

    Returns:
        The :class:`Course`.

    Raises:
        ValueError: settings that are impossible.

    Example:
        >>> course = follow(subset=40, batch_size="full", epochs=3)
        >>> [tuple(g.shape) for g in course.gradients]
        [(3, 72), (3, 1152), (3, 2304)]
    """
    seen: list[list[Tensor]] = []

    def keep(moment) -> None:
        filters = [q for q in moment.model.parameters() if q.ndim == 4]
        seen.append([(q.detach().norm() * q.grad).flatten() for q in filters])
        if moment.step == 0 and nudge:
            random = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for q in filters:
                    q *= 1 + nudge * torch.randn(q.shape, generator=random, dtype=q.dtype)

    config = TrainConfig(**{"eps": 0, "lr_drops": (), "precision": "float64"} | settings)
    run = train(config, stride=1, evaluate_every=config.epochs, watch=keep)
    return Course(run, tuple(torch.stack(layer) for layer in zip(*seen, strict=True)))
