r"""Normalisations: RMSNorm, LayerNorm, GroupNorm, InstanceNorm, and BatchNorm while it trains.

With :math:`z = y - \beta`, over each set of numbers that is normalised together,

.. math:: \langle dx, x - \mu\rangle = \frac{\epsilon}{\sigma^2 + \epsilon}\,\langle dy, z\rangle, \qquad \sum dx = 0

(RMSNorm has :math:`\mu = 0`, the mean square for :math:`\sigma^2`, and no second law). Its gain and shift obey
:math:`\gamma_j\,d\gamma_j = \sum z_j\,dy_j` and :math:`d\beta_j = \sum dy_j`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, blocks, square


def _layouts(record: Record):
    """Functions to ``(sets, numbers normalised together)`` and to ``(rows, channels of the gain)``."""
    over, x = record.options.get("over", "last"), record.values["x"]
    if over == "last":
        count = record.options.get("dimensions", 1)
        width = math.prod(x.shape[x.ndim - count :])
        return (lambda t: t.reshape(-1, width)), (lambda t: t.reshape(-1, width)), width
    channels = x.shape[1]
    by_channel = lambda t: t.movedim(1, -1).reshape(-1, channels)  # noqa: E731
    if over == "batch":
        return (lambda t: by_channel(t).T), by_channel, channels
    groups = record.options["groups"]
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    return (lambda t: t.reshape(t.shape[0] * groups, -1)), by_channel, channels


def _along(parameter: Tensor, record: Record) -> Tensor:
    """A gain or shift, broadcast to the shape of x."""
    shape = record.values["x"].shape
    if record.options.get("over", "last") == "last":
        return parameter.expand(shape)
    return parameter.reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape)


def _laws(record: Record, centered: bool) -> list[Balance]:
    x, y = record.raw_value("x"), record.raw_value("y")
    if x.shape != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; a norm keeps the shape")
    sets, rows, channels = _layouts(record)
    for role in ("weight", "bias"):
        if role in record.values and record.values[role].numel() != channels:
            shape = tuple(record.values[role].shape)
            raise ValueError(f"{role} has shape {shape} for {channels} normalised channels; they must match")
    dx, dy = record.raw_gradient("x"), record.raw_gradient("y")
    gain = _along(record.raw_value("weight"), record) if "weight" in record.values else None
    shift = _along(record.raw_value("bias"), record) if "bias" in record.values else None
    x_sets = sets(x)
    tables = [x_sets, *(None if t is None else sets(t) for t in (dx, y, dy, gain, shift))]
    found = []
    for block in blocks(*x_sets.shape):
        numbers = [None if table is None else table[block].double() for table in tables]
        found.append(_of_sets(record, centered, *numbers))
    laws = [Balance.cat(balances, axis=1) for balances in zip(*found, strict=True)]
    return laws + _of_parameters(record, rows, y, dy, shift, _adding(record, centered, x_sets))


def _adding(record: Record, centered: bool, x: Tensor) -> float:
    """Relative error of the sums over all rows that a gain's and a shift's gradients are."""
    precision, last = record.precision, record.options.get("over", "last") == "last"
    # PyTorch's LayerNorm on a CPU adds up a bfloat16 gain's gradient in bfloat16
    unit = precision.stored if centered and last else precision.sums
    count = record.values["x"].numel() // x.shape[1] if last else record.values["x"].numel() // _layouts(record)[2]
    error = precision.stored + unit * count**0.5
    if not centered:
        return error
    ratio = 0.0  # dγ may be had as (sum of x dy - μ sum of dy)/σ, which cancels
    for block in blocks(*x.shape):
        part = x[block].double()
        mean = square(part.mean(1))
        spread = (square(part).mean(1) - mean).clamp_min(_eps(record))
        ratio = max(ratio, float((mean / spread).max()))
    return error * (1 + ratio**0.5)


def _of_parameters(record: Record, rows, y: Tensor, dy: Tensor, shift: Tensor | None, error: float) -> list[Balance]:
    if not (record.has("weight") or record.has("bias")):
        return []
    outputs, slopes, offsets = rows(y), rows(dy), None if shift is None else rows(shift)
    zero = torch.zeros(outputs.shape[1], dtype=torch.float64, device=y.device)
    product = product_size = product_noise = total = absolute = squares = zero
    for block in blocks(*outputs.shape):
        part, slope = outputs[block].double(), slopes[block].double()
        offset = None if offsets is None else offsets[block].double()
        z = part if offset is None else part - offset
        terms = z * slope
        product, product_size = product + terms.sum(0), product_size + terms.abs().sum(0)
        rounded = z if offset is None else part.abs() + z.abs()
        product_noise = product_noise + square(rounded * slope).sum(0)
        total, absolute, squares = total + slope.sum(0), absolute + slope.abs().sum(0), squares + square(slope).sum(0)
    laws, stored = [], record.precision.stored
    if record.has("weight"):
        own = record.value("weight").reshape(-1) * record.gradient("weight").reshape(-1)
        noise = (square(stored * own) + 4 * error**2 * product_noise).sqrt()
        size, side = own.abs() + product_size, torch.maximum(own.abs(), product.abs())
        laws.append(Balance.whole("γ dγ = sum of (y-β) dy", "weight", own - product, size, noise, side))
    if record.has("bias"):
        own = record.gradient("bias").reshape(-1)
        noise = (square(stored * own) + error**2 * squares).sqrt()
        laws.append(Balance.whole("dβ = sum of dy", "bias", own - total, own.abs() + absolute, noise, squares.sqrt()))
    return laws


def _eps(record: Record) -> float:
    """The layer's, or what ``RMSNorm(eps=None)`` takes: the resolution of its arithmetic."""
    eps = record.options.get("eps", 1e-5)
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if record.values["x"].dtype == torch.float64 else torch.float32).eps


def _of_sets(record: Record, centered: bool, x, dx, y, dy, gain, shift) -> list[Balance]:
    z = y if shift is None else y - shift
    g = dy if gain is None else dy * gain
    eps = _eps(record)
    mean = x.mean(1, keepdim=True) if centered else torch.zeros_like(x[:, :1])
    offset = x - mean
    variance = square(offset).mean(1, keepdim=True)
    rate = (variance + eps).rsqrt()
    width = x.shape[1]
    unit = (record.precision.stored + record.precision.sums * width**0.5) * (1 + (mean * rate).abs()) ** 2
    terms, share = z * dy, eps / (variance + eps)
    left, right = (dx * offset).sum(1, keepdim=True), share * terms.sum(1, keepdim=True)
    inner = square(offset * rate * g).sum(1, keepdim=True)  # = terms, before the output is rounded
    total = (offset * rate * g).sum(1, keepdim=True)
    own = square(dx * offset).sum(1, keepdim=True) + share**2 * square(y * dy).sum(1, keepdim=True)
    noise = unit * (own + inner + 4 * square(total)).sqrt()
    size = (dx * offset).abs().sum(1, keepdim=True) + share * terms.abs().sum(1, keepdim=True)
    law = "<dx, x-μ> = ε <dy, y-β>/(σ²+ε)" if centered else "<dx, x> = ε <dy, y>/(mean x²+ε)"
    laws = [Balance.whole(law, "x", left - right, size, noise, inner.sqrt())]
    if centered:
        pushed = square(rate * g).sum(1, keepdim=True)
        along = square((rate * g).sum(1, keepdim=True))
        noise = unit * (square(dx).sum(1, keepdim=True) + pushed + 4 * along + 4 * inner / width).sqrt()
        total, size = dx.sum(1, keepdim=True), dx.abs().sum(1, keepdim=True)
        laws.append(Balance.whole("sum of dx = 0", "x", total, size, noise, pushed.sqrt()))
    return laws


def _batch_norm(module: nn.Module):
    if not module.training and module.track_running_stats:
        return None  # a fixed affine map: nothing is normalised
    return "norm", {"over": "batch", "eps": module.eps}


def _instance_norm(module: nn.Module):
    if not module.training and module.track_running_stats:
        return None
    return "norm", {"over": "groups", "groups": module.num_features, "eps": module.eps}


register_kind("norm", ("x", "weight", "bias"), lambda record: _laws(record, centered=True))
register_kind("rms_norm", ("x", "weight"), lambda record: _laws(record, centered=False))
register_module(nn.RMSNorm, lambda m: ("rms_norm", {"dimensions": len(m.normalized_shape), "eps": m.eps}))
register_module(nn.LayerNorm, lambda m: ("norm", {"dimensions": len(m.normalized_shape), "eps": m.eps}))
register_module(nn.GroupNorm, lambda m: ("norm", {"over": "groups", "groups": m.num_groups, "eps": m.eps}))
for _batch in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    register_module(_batch, _batch_norm)
for _instance in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
    register_module(_instance, _instance_norm)
