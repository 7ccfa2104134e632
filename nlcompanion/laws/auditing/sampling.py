"""Other data of the same kind: what a law must not depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def to_double(data):
    """The same data with every floating tensor in float64, nested in mappings, tuples and lists as before."""
    return _map(data, lambda x, _key, _place: x.detach().clone().double() if x.is_floating_point() else x.clone())


def resample(data, generator: torch.Generator, is_target: bool):
    """Data drawn anew: floats as Gaussians of the same mean and spread, integers within their range.

    Masks (boolean, named so, or a further input of two values) stay, and so do negative labels, which mark what a loss
    leaves out; numbers between 0 and 1 stay there if they are targets.
    """
    return _map(data, lambda x, key, place: _draw(x, key, place, generator, is_target))


def _draw(x: Tensor, key: str, place: int, generator: torch.Generator, is_target: bool) -> Tensor:
    if x.dtype == torch.bool or x.numel() == 0 or "mask" in key or "type" in key or "position" in key:
        return x
    two_values = x.numel() > 2 and len(torch.unique(x[torch.isfinite(x)] if x.is_floating_point() else x)) <= 2
    if not is_target and place > 0 and two_values:
        return x
    if x.is_complex():
        return x
    if x.is_floating_point():
        return _floats(x, generator, is_target)
    low, high = int(x.clamp_min(0).min()), int(x.max())
    if high <= low:
        return x
    drawn = torch.randint(low, high + 1, x.shape, generator=generator).to(x)
    return torch.where(x < 0, x, drawn)


def _floats(x: Tensor, generator: torch.Generator, is_target: bool) -> Tensor:
    if not bool(torch.isfinite(x).all()):
        return x
    if is_target and bool(((x >= 0) & (x <= 1)).all()):
        uniform = torch.empty(x.shape, dtype=x.dtype).uniform_(generator=generator).to(x.device)
        if x.ndim > 1 and torch.allclose(x.sum(-1), torch.ones_like(x.sum(-1))):
            return uniform / uniform.sum(-1, keepdim=True)
        return (uniform > 0.5).to(x) if bool(((x == 0) | (x == 1)).all()) else uniform
    noise = torch.empty(x.shape, dtype=x.dtype).normal_(generator=generator).to(x.device)
    spread = x.std(correction=0) if x.numel() > 1 else torch.zeros(())
    return x.mean() + (spread if spread > 0 else torch.ones_like(spread)) * noise


def _map(data, function, key: str = "", place: int = 0):
    if isinstance(data, Tensor):
        return function(data, key, place)
    if isinstance(data, Mapping):
        mapped = {k: _map(v, function, str(k), n) for n, (k, v) in enumerate(data.items())}
        rebuild: Callable[..., Mapping] = type(data)
        try:
            return rebuild(mapped)
        except TypeError:
            return mapped
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_map(v, function, k, n) for n, (k, v) in enumerate(zip(data._fields, data, strict=True))))
    if isinstance(data, tuple | list):
        return type(data)(_map(v, function, key, n) for n, v in enumerate(data))
    return data
