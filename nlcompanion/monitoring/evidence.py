"""What a step itself tells about why it broke a law, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nlcompanion.monitoring.diagnosis import Moved


def evidence(
    p: nn.Parameter, step: Tensor, optimizer: Optimizer, group: Mapping[str, Any], idle: tuple[str, int] | None
) -> Moved:
    """One parameter in the step just taken.

    Args:
        p: after the step, with the gradient that the step was given.
        step: what it added.
        optimizer, group: that moved it, and its settings.
        idle: why it took no part in the steps, and since which; None if it did.
    """
    weight = p.detach() - step
    if p.grad is None or not isinstance(optimizer, torch.optim.SGD):
        return Moved(weight, step, p.grad, (), idle)
    gradient, expected = _as_sgd_steps(p, p.grad, step, weight, optimizer, group)
    return Moved(weight, step, gradient, expected, idle)


def _as_sgd_steps(
    p: nn.Parameter, gradient: Tensor, step: Tensor, weight: Tensor, optimizer: Optimizer, group: Mapping[str, Any]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradient that SGD was given, and the steps it may make of it and of its buffer."""
    lr, beta = float(group["lr"]), float(group["momentum"])
    buffer = optimizer.state.get(p, {}).get("momentum_buffer") if beta else None
    scale = getattr(optimizer, "grad_scale", None)
    readings = [gradient] if scale is None else [gradient, gradient / scale]
    steps = []
    for g in readings:
        pull = (-g if group["maximize"] else g) + float(group["weight_decay"]) * weight
        if buffer is None:
            steps.append(-lr * pull)
        elif group["nesterov"]:
            steps.append(-lr * (pull + beta * buffer))
    if buffer is not None and not group["nesterov"]:
        steps.append(-lr * buffer)
    if buffer is not None and group["nesterov"]:  # some kernels add the buffer to the gradient in its place
        overwritten = -lr * gradient
        if torch.allclose(overwritten, step, rtol=1e-3, atol=0):
            return gradient - beta * buffer, (overwritten,)
    return gradient, tuple(steps)
