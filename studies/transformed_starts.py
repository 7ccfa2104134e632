"""A network trained from a start and from the start's image under a symmetry of its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad

import nlcompanion as nl

__all__ = ["TrainedWeights", "distance_to_image", "slope_left_by_eps", "train"]


@dataclass(frozen=True)
class TrainedWeights:
    """The two ends of a training run, shape ``(n,)``, and the loss before each step."""

    start: Tensor
    end: Tensor
    losses: Tensor


def train(
    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer], f, q0: Tensor, steps: int = 100
) -> TrainedWeights:
    """Train on the full batch with an optimiser of PyTorch.

    Example:
        >>> run = train(lambda q: torch.optim.SGD(q, lr=0.5), lambda q: 0.5 * q @ q, torch.ones(2), steps=2)
        >>> run.end.tolist()
        [0.25, 0.25]
    """
    weights = nn.Parameter(q0.clone())
    tool = optimiser([weights])
    losses = []
    for _ in range(steps):
        tool.zero_grad()
        loss = f(weights)
        loss.backward()
        losses.append(loss.detach())
        tool.step()
    return TrainedWeights(q0, weights.detach(), torch.stack(losses))


def distance_to_image(run: TrainedWeights, moved: TrainedWeights, symmetry: nl.Symmetry, s: float) -> float:
    """How far the run from a moved start ends from the image of the other's end, over the way of that image."""
    start, end = symmetry(run.start, s), symmetry(run.end, s)
    return ((moved.end - end).norm() / (end - start).norm()).item()


def slope_left_by_eps(f: nl.FlatLoss, q: Tensor, inputs: Tensor, eps: float) -> Tensor:
    r"""The loss's slope along the scale of the weights before a BatchNorm, from what :math:`\varepsilon` breaks.

    .. math:: \partial_s f = \sum_j \frac{\varepsilon}{\mathrm{var}(z_j) + \varepsilon}\,
              \gamma_j \frac{\partial f}{\partial \gamma_j}

    Args:
        f: a network of two linear layers, ``0.weight`` and ``1.weight``, and a BatchNorm with gains ``2.weight``.
        q: its parameters.
        inputs: the batch, ``(samples, features)``.
        eps: the layer's :math:`\varepsilon`.
    """
    weights, slopes = f.unflatten(q), f.unflatten(grad(f)(q))
    before = inputs @ weights["0.weight"].T @ weights["1.weight"].T
    variance = before.var(0, correction=0)
    return (eps / (variance + eps) * weights["2.weight"] * slopes["2.weight"]).sum()
