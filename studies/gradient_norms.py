r"""Why the gradient's norm rises while the loss falls: :math:`|g|/|W|\to\sqrt{2\lambda/\eta}` for SGD with decay.

At equilibrium what a step adds to the squared norm, :math:`\eta^2|g|^2`, is what decay takes, :math:`2\eta\lambda|W|^2`
(Defazio, arXiv 2506.02285). The ratio is a matter of settings alone: as decay shortens a scale-invariant weight its
gradient grows, whatever the loss does, and where the rate falls the ratio has to rise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from studies.small_trainings import convnet, digit_batches

FILTERS = ("conv1.weight", "conv2.weight", "conv3.weight")


@dataclass(frozen=True)
class Rise:
    r"""A run of plain SGD with decay, in windows.

    Attributes:
        step: the middle of each window.
        gradient: :math:`|g|`, root mean square, shape ``(windows, filters)``.
        ratio: :math:`|g|/|W|`, root mean square, shape ``(windows, filters)``.
        settled: :math:`\sqrt{2\lambda/\eta}` at each window's rate.
        loss: mean.
    """

    step: Tensor
    gradient: Tensor
    ratio: Tensor
    settled: Tensor
    loss: Tensor


def rise(steps: int = 1000, *, lr: float = 0.1, weight_decay: float = 0.02, seed: int = 0, window: int = 50) -> Rise:
    """Train the convnet on digits without momentum, a tenth of the labels drawn anew, and look at its filters.

    Example:
        >>> found = rise(100)
        >>> tuple(found.ratio.shape), round(found.settled[0].item(), 3)
        ((2, 3), 0.632)
    """
    model = convnet(seed)
    filters = [model.get_parameter(name) for name in FILTERS]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    batches, rows, losses = digit_batches(64, seed, noise=0.1), [], []
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        rows.append([_norms(p) for p in filters])
        losses.append(float(loss.detach()))
        optimizer.step()
    count = steps // window
    gradient, weight = torch.tensor(rows[: count * window]).reshape(count, window, len(filters), 2).unbind(-1)
    return Rise(
        step=torch.arange(count) * window + window / 2,
        gradient=gradient.square().mean(1).sqrt(),
        ratio=(gradient / weight).square().mean(1).sqrt(),
        settled=torch.full((count,), (2 * weight_decay / lr) ** 0.5),
        loss=torch.tensor(losses[: count * window]).reshape(count, window).mean(1),
    )


def _norms(p: torch.nn.Parameter) -> list[float]:
    """Of the gradient and of the weight."""
    assert p.grad is not None
    return [float(p.grad.norm()), float(p.detach().norm())]


def figure_of_rise(found: Rise):
    """Loss and gradient norms against the step; the ratio of gradient and weight beside its equilibrium."""
    from nlcompanion.book.plotting import COLORS, panels

    figure, (left, right) = panels(2, titles=("loss, and gradient norms", "gradient norm over weight norm"))
    left.plot(found.step, found.loss, color=COLORS["neutral"], label="loss")
    for k, name in enumerate(("first", "second", "third")):
        left.plot(found.step, found.gradient[:, k], "--", color=f"C{k}", label=f"gradient, {name} layer")
        right.plot(found.step, found.ratio[:, k], "o", color=f"C{k}", markersize=3, label=f"{name} layer")
    right.plot(found.step, found.settled, color=COLORS["neutral"], label=r"$\sqrt{2\lambda/\eta}$")
    for axis in (left, right):
        axis.set(xlabel="step", ylim=(0, None))
        axis.legend()
    return figure
