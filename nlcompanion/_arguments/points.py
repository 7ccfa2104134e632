"""Points, velocities and tensors that are differentiated, and what functions of them return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlcompanion._arguments.arrays import real_array
from nlcompanion._arguments.descriptions import described, known
from nlcompanion._arguments.times import as_time


def as_point(name: str, value: Any) -> Tensor:
    """A float64 tensor of shape (n,) from array-like ``value``; complains by ``name`` otherwise."""
    if isinstance(value, Tensor) and value.dtype not in (torch.float64, torch.float32):
        raise TypeError(
            f"{name} has dtype {value.dtype}; laws of motion need real floating point: pass {name}.double()"
        )
    point = real_array(name, value)
    if point.ndim != 1 or point.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n,) with n > 0, got {tuple(point.shape)}; "
            "flatten network parameters with flat_loss, wrap a single number in a list"
        )
    if not torch.isfinite(point).all():
        raise ValueError(f"{name} holds NaN or infinity; a trajectory cannot start or pass there")
    return point


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor of float32 or float64, differentiable where ``value`` is; complains by ``name`` otherwise."""
    if isinstance(value, Tensor):
        if value.dtype not in (torch.float64, torch.float32):
            raise TypeError(f"{name} has dtype {value.dtype}, which is too coarse or not real: pass {name}.double()")
        if value.is_meta or value.layout != torch.strided:
            raise TypeError(
                f"{name} has no plain values (device {value.device}, {value.layout}): make it dense, .cpu()"
            )
        return value
    return real_array(name, value)


def layer_input(x: Any, shape: str = "(...)", name: str = "x") -> Tensor:
    """What a layer may be called with: real floating-point numbers of any precision."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_meta:
        raise TypeError(f"{name} must be a tensor of real numbers of shape {shape}, got {described(x)}")
    return x


def vector(name: str, value: Any) -> Tensor:
    """A finite tensor of shape (n,), differentiable where ``value`` is."""
    x = as_tensor(name, value)
    if x.ndim != 1 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n,) with n > 0, got {tuple(x.shape)}; see flat_loss for networks")
    if known(~torch.isfinite(x).all()):
        raise ValueError(f"{name} holds NaN or infinity, where nothing is defined")
    return x


def state_of_motion(t: Any, q: Any, v: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Time, point and velocity of a function of (t, q, v)."""
    t, q, v = as_time(t), vector("q", q), vector("v", v)
    if q.shape != v.shape:
        raise ValueError(f"q has {len(q)} components and v {len(v)}; a velocity lives in the space of the point")
    return t, q, v


def scalar_of(name: str, value: Any) -> Tensor:
    """What a function returned, checked to be one number in a tensor."""
    if not isinstance(value, Tensor) or value.ndim != 0 or value.is_complex():
        raise TypeError(f"{name} must return a scalar tensor, got {described(value)}; use torch operations and .sum()")
    return value


def tensor_of(name: str, value: Any, shape: torch.Size | None = None) -> Tensor:
    """What a function returned, checked to be a tensor of real numbers, of a shape where one is asked for."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must return a tensor of real numbers, got {described(value)}; use torch operations")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must return shape {tuple(shape)}, got {tuple(value.shape)}")
    return value
