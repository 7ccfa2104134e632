"""What several modules ask of their arguments: shapes, kinds and ranges, with errors that name the fix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def as_point(name: str, value) -> Tensor:
    """A float64 tensor of shape (n,) from array-like ``value``; complains by ``name`` otherwise."""
    if isinstance(value, Tensor) and value.dtype not in (torch.float64, torch.float32):
        raise TypeError(
            f"{name} has dtype {value.dtype}; laws of motion need real floating point: pass {name}.double()"
        )
    try:
        point = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is not a vector of numbers ({error}); pass a sequence of n floats") from error
    if point.ndim != 1 or point.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n,) with n > 0, got {tuple(point.shape)}; "
            "flatten network parameters with flat_loss, wrap a single number in a list"
        )
    if not torch.isfinite(point).all():
        raise ValueError(f"{name} holds NaN or infinity; a trajectory cannot start or pass there")
    return point


def as_time(t) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def time_span(t_span) -> tuple[float, float]:
    t0, t1 = (float(t) for t in t_span)
    if not (np.isfinite(t0) and np.isfinite(t1) and t0 < t1):
        raise ValueError(f"t_span = ({t0}, {t1}) is no interval; give finite (t0, t1) with t0 < t1")
    return t0, t1


def positive_number(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}; nothing moves, or uphill, otherwise")
    return float(value)


def as_tensor(name: str, value) -> Tensor:
    """A floating-point tensor, differentiable where ``value`` is; complains by ``name`` otherwise."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} has dtype {value.dtype}; actions are differentiated: pass {name}.double()")
        return value
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is not an array of numbers ({error})") from error


def known(condition: Tensor) -> bool:
    """The value of a condition, or False inside ``torch.func.vmap``, where values cannot be looked at."""
    try:
        return bool(condition)
    except RuntimeError:
        return False


def double(x) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64).detach()


def times(t) -> Tensor:
    t = numbers("t", t)
    if t.ndim != 1 or len(t) == 0 or not (t.diff() > 0).all():
        raise ValueError(
            f"t has shape {tuple(t.shape)}; times are a non-empty vector that increases from entry to entry, such as "
            "lr * arange(T)"
        )
    return t


# --- arguments ----------------------------------------------------------------------------------------------------


def numbers(name: str, value) -> Tensor:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        value = torch.stack([item.detach() for item in value])
    value = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds a value that is not finite; cut the run where it diverged")
    return value


def at_least_zero(name: str, value) -> Tensor:
    value = numbers(name, value)
    if (value < 0).any():
        raise ValueError(f"{name} holds {value.min().item():g}; it is a square or a ratio of squares, never below 0")
    return value


def positive(name: str, value) -> Tensor:
    value = numbers(name, value)
    if not (value > 0).all():
        raise ValueError(
            f"{name} must be positive, got {value.min().item():g}; a length or gradient of 0 has no direction"
        )
    return value


def one(name: str, value) -> float:
    value = positive(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, and an equilibrium is one weight's; call it for each")
    return value.item()


def broadcast(name: str, value: Tensor, like: Tensor) -> Tensor:
    try:
        return torch.broadcast_to(value, like.shape).to(torch.float64)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(like.shape)}; give a number or "
            "one value for each weight"
        ) from None
