"""What a step of an optimiser makes of gradient, buffer and parameter."""

from __future__ import annotations


def _rates(group: dict, buffered: bool) -> tuple[float, float, float]:
    """What a step of torch.optim.SGD makes of gradient, buffer and parameter: d = -(r_g g + r_b b + r_k theta)."""
    lr, beta = float(group["lr"]), float(group["momentum"])
    if group["nesterov"]:
        of_gradient, of_buffer = 1 + beta, beta**2 * buffered
    elif beta and buffered:
        of_gradient, of_buffer = 1 - float(group["dampening"]), beta
    else:  # without momentum, or with a buffer that starts as the gradient itself, undampened
        of_gradient, of_buffer = 1.0, 0.0
    return lr * of_gradient, lr * of_buffer, lr * of_gradient * float(group["weight_decay"])


def _fading(group: dict) -> float:
    """By how much weight decay shrinks the logarithm of a squared weight in a step, in the long run."""
    lr, decay, momentum = (float(group.get(name) or 0.0) for name in ("lr", "weight_decay", "momentum"))
    return 2 * lr * decay / max(1 - momentum, 1e-3)
