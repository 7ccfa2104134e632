"""Criteria with their slopes by the outputs, which lie as ``(..., outputs, samples)``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[ndarray], tuple[float, ndarray]]


def criterion(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, members: int | None) -> Criterion:
    """``outputs -> (value, slopes)`` of a loss on these targets, summed over ``members`` where there are any.

    Mean squares and cross-entropy are written out; any other loss is differentiated by torch, by its outputs alone.
    """
    single = loss if members is None else getattr(loss, "single", None)
    if single is F.mse_loss and targets.ndim == 2 and targets.is_floating_point():
        return _mean_squares(targets.T.numpy())
    if single is F.cross_entropy and targets.ndim == 1 and targets.dtype == torch.int64 and (targets >= 0).all():
        return _cross_entropy(targets.numpy())
    return _by_torch(loss, targets)


def _mean_squares(y: ndarray) -> Criterion:
    def value(u: ndarray) -> tuple[float, ndarray]:
        if u.shape[-2:] != y.shape:  # torch broadcasts, with a warning
            raise ValueError(
                f"the network gives {u.shape[-2]} outputs for {u.shape[-1]} samples, the targets have shape "
                f"{y.T.shape}; mse_loss needs as many"
            )
        d = u - y
        flat = d.reshape(-1)
        total = float(flat @ flat) / y.size
        d *= 2 / y.size
        return total, d

    return value


def _cross_entropy(labels: ndarray) -> Criterion:
    samples = np.arange(len(labels))

    def value(u: ndarray) -> tuple[float, ndarray]:
        if labels.max() >= u.shape[-2]:
            raise IndexError(f"label {labels.max()} is out of bounds for {u.shape[-2]} outputs")
        z = u - u.max(-2, keepdims=True)
        d = np.exp(z)
        total = d.sum(-2, keepdims=True)
        loss = float((np.log(total[..., 0, :]) - z[..., labels, samples]).sum()) / len(labels)
        d /= total
        d[..., labels, samples] -= 1
        d /= len(labels)
        return loss, d

    return value


def _by_torch(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Criterion:
    def value(u: ndarray) -> tuple[float, ndarray]:
        with torch.enable_grad():
            outputs = torch.from_numpy(u).transpose(-1, -2).clone().requires_grad_()  # the loss may keep them
            total = loss(outputs, targets)
            if not isinstance(total, Tensor) or total.ndim != 0:
                got = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
                raise TypeError(f"loss(outputs, targets) must be a scalar tensor, got {got}; use 'mean' or 'sum'")
            if not total.requires_grad:
                raise TypeError("the loss does not depend on the outputs through torch operations; it has no gradient")
            (slopes,) = torch.autograd.grad(total, outputs)
        return total.item(), np.ascontiguousarray(slopes.transpose(-1, -2).numpy())

    return value
