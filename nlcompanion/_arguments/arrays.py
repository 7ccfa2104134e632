"""Arrays of real numbers, of any shape, without gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlcompanion._arguments.descriptions import described, is_odd


def real_array(name: str, value: Any) -> Tensor:
    """A float64 tensor on the CPU, without gradient, from anything that holds real numbers; NaN and infinity pass."""
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        value = _stacked(name, value)
    if isinstance(value, Tensor) and not is_odd(value):
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, str | bytes | type(None) | bool | Tensor) or callable(value):
        raise TypeError(f"{name} must be real numbers, got {described(value)}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers in one shape, got {described(value)}") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {described(value)} with entries of type {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _stacked(name: str, items: list[Any] | tuple[Any, ...]) -> Tensor:
    try:
        return torch.stack([item.detach() if isinstance(item, Tensor) else torch.as_tensor(item) for item in items])
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers in one shape, got a {type(items).__name__} of several") from error


def numbers(name: str, value: Any) -> Tensor:
    """Finite real numbers of any shape, at least one."""
    array = real_array(name, value)
    if array.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(array.shape)} and holds no number")
    if not torch.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite; cut the run where it diverged")
    return array


def at_least_zero(name: str, value: Any) -> Tensor:
    value = numbers(name, value)
    if (value < 0).any():
        raise ValueError(f"{name} holds {value.min().item():g}; it is a square or a ratio of squares, never below 0")
    return value


def positive(name: str, value: Any) -> Tensor:
    value = numbers(name, value)
    if not (value > 0).all():
        raise ValueError(
            f"{name} must be positive, got {value.min().item():g}; a length or gradient of 0 has no direction"
        )
    return value


def one(name: str, value: Any) -> float:
    value = positive(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, and an equilibrium is one weight's; call it for each")
    return float(value.item())


def broadcast(name: str, value: Tensor, like: Tensor) -> Tensor:
    try:
        return torch.broadcast_to(value, like.shape).to(torch.float64)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(like.shape)}; give a number or "
            "one value for each weight"
        ) from None
