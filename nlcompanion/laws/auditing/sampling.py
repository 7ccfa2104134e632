"""Other data of the same kind: what a law must not depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from nlcompanion.networks.nested_data import Place, Precision, cast, mapped

_KEPT = ("mask", "type", "position")  # in the name of what is not drawn anew


def to_double(data):
    """The same data with every floating tensor in float64, nested as before; no tensor is the caller's own."""
    return mapped(cast(data, Precision(torch.float64)), lambda x, _: x.detach().clone().requires_grad_(x.requires_grad))


def resample(data, generator: torch.Generator, is_target: bool):
    """Data drawn anew: floats as Gaussians of the same mean and spread, integers within their range.

    Masks (boolean, named so, or a further input of two values) stay, and so do negative labels, which mark what a loss
    leaves out; numbers between 0 and 1 stay there if they are targets.
    """

    def drawn(x: Tensor, place: Place) -> Tensor:
        return _draw(x.detach(), place, generator, is_target).requires_grad_(x.requires_grad)

    return mapped(data, drawn)


def _draw(x: Tensor, place: Place, generator: torch.Generator, is_target: bool) -> Tensor:
    if x.dtype == torch.bool or x.numel() == 0 or any(word in place.key for word in _KEPT):
        return x
    two_values = x.numel() > 2 and len(torch.unique(x[torch.isfinite(x)] if x.is_floating_point() else x)) <= 2
    if not is_target and place.number > 0 and two_values:
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
