"""Times, spans of time and the parameter of an action."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlcompanion._arguments.arrays import numbers, real_array
from nlcompanion._arguments.descriptions import described, is_odd, known
from nlcompanion._arguments.objects import ordered
from nlcompanion._arguments.single import real_number


def as_time(t: Any) -> Tensor:
    """A finite time as a float64 tensor without dimensions, differentiable where ``t`` is."""
    if isinstance(t, Tensor) and t.is_floating_point() and not is_odd(t):
        if t.numel() != 1:
            raise TypeError(f"t must be a single time, got {described(t)}")
        time = t.double().reshape(())
    else:
        time = torch.tensor(real_number("t", t), dtype=torch.float64)
    if known(~torch.isfinite(time)):
        raise ValueError("t must be a finite time, got NaN or infinity")
    return time


def as_parameter(name: str, s: Any, like: Tensor) -> Tensor:
    """The finite number of a one-parameter action, in the precision of a point, differentiable where ``s`` is."""
    if isinstance(s, Tensor) and s.is_floating_point() and not is_odd(s):
        if s.numel() != 1:
            raise TypeError(f"{name} must be a single number, got {described(s)}; call it for each")
        number = s.to(like.device, like.dtype).reshape(())
    else:
        number = torch.tensor(real_number(name, s), dtype=like.dtype, device=like.device)
    if known(~torch.isfinite(number)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return number


def time_span(t_span: Any) -> tuple[float, float]:
    what = "two times (t0, t1)"
    given = ordered("t_span", t_span, what)
    if isinstance(given, Tensor | np.ndarray):
        given = real_array("t_span", given).reshape(-1).tolist()
    if len(given) != 2:
        raise ValueError(f"t_span must be {what}, got {len(given)}")
    t0, t1 = real_number("t_span[0]", given[0]), real_number("t_span[1]", given[1])
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
        raise ValueError(f"t_span = ({t0}, {t1}) is no interval; give finite (t0, t1) with t0 < t1")
    return t0, t1


def times(t: Any) -> Tensor:
    t = numbers("t", t)
    if t.ndim != 1 or len(t) == 0 or not (t.diff() > 0).all():
        raise ValueError(
            f"t has shape {tuple(t.shape)}; times are a non-empty vector that increases from entry to entry, such as "
            "lr * arange(T)"
        )
    return t


def times_within(name: str, value: Any, t0: float, t1: float) -> np.ndarray:
    """Increasing times inside an interval, whose ends forgive one rounding: ``0.1 * 3`` is 0.3 there.

    Times in float32 are forgiven a rounding of float32.
    """
    given = real_array(name, value).numpy()
    bad = f"{name} must be increasing times within [{t0:g}, {t1:g}], of shape (T,) with T > 0"
    if given.ndim != 1 or not len(given):
        raise ValueError(f"{bad}, got shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{bad}; entry {int(np.flatnonzero(~np.isfinite(given))[0])} is not finite")
    slack = 4 * _rounding(value) * max(abs(t0), abs(t1))
    inside = given.copy()
    inside[(given < t0) & (given >= t0 - slack)] = t0
    inside[(given > t1) & (given <= t1 + slack)] = t1
    if inside[0] < t0 or inside[-1] > t1 or (np.diff(inside) <= 0).any():
        raise ValueError(f"{bad}, got {given[0]:g} to {given[-1]:g}")
    return inside


def _rounding(value: Any) -> float:
    """The spacing of floating-point numbers next to 1, in the precision in which times were given."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.finfo(value.dtype).eps
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return float(np.finfo(value.dtype).eps)
    return float(np.finfo(np.float64).eps)
