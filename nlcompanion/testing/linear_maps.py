r"""Linear maps and convolutions: :math:`x^T dx = dW^T W`, and :math:`db = \sum dy`.

The output :math:`y = xW^T + b` does not see :math:`(xA, WA^{-T})`. Between channels the same holds for a convolution,
whose window plays no part. Beyond 64 channels the second index is folded: each channel is added, with a random sign, to
one of 64 buckets, so that every channel still counts and the check costs less than the pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, Product, balance, copies

BUCKETS = 64


def _fold(width: int, device) -> Tensor | None:
    if width <= BUCKETS:
        return None
    generator = torch.Generator().manual_seed(width)
    bucket = torch.arange(width) % BUCKETS
    fold = torch.zeros(width, BUCKETS, dtype=torch.float64)
    fold[torch.randperm(width, generator=generator), bucket] = (
        torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    )
    return fold.to(device)


def _channel_law(x: Tensor, dx: Tensor, w: Tensor, dw: Tensor, dy: Tensor, precision) -> Balance:
    """``x``, ``dx`` of shape ``(n, channels)``, ``w``, ``dw`` ``(rows, channels)``, ``dy`` ``(positions, outputs)``."""
    stored, sums = precision.stored, precision.sums
    reach = dy.square().sum() if w.shape[0] != dy.shape[1] else None  # a convolution's window reaches several rows
    at_row = dy.square().sum(1, keepdim=True) if reach is None else reach
    at_output = dy.square().sum(0) if reach is None else reach
    dx_error = (stored * dx).square() + sums**2 * at_row * w.square().sum(0)
    dw_error = (stored * dw).square() + sums**2 * at_output.reshape(-1, 1) * x.square().sum(0)
    alike = copies(dx)
    fold = _fold(x.shape[1], x.device)
    if fold is not None:
        dx, w, dx_error = dx @ fold, w @ fold, dx_error @ fold.abs()
    left = Product.of(x, dx, b_error=dx_error)
    right = Product.of(dw, w, a_error=dw_error)
    found = balance("xᵀ dx = dWᵀ W", "x, weight", left, right, copies=alike)
    parts = (found.difference, found.size, found.noise, found.side)
    return Balance(found.law, found.tensors, *(part[None] for part in parts))


def _bias_law(dy: Tensor, db: Tensor, precision) -> Balance:
    squares = dy.square().sum(0)
    error = (precision.stored * db).square() + precision.sums**2 * len(dy) * squares
    parts = (db - dy.sum(0), db.abs() + dy.abs().sum(0), (copies(dy) * error).sqrt(), squares.sqrt())
    return Balance("db = sum of dy", "bias", *(part[None] for part in parts))


def _linear(record: Record) -> list[Balance]:
    x, dx, dy = (t.reshape(-1, t.shape[-1]) for t in (record.value("x"), record.gradient("x"), record.gradient("y")))
    w, dw = record.value("weight"), record.gradient("weight")
    if w.ndim != 2 or w.shape != (dy.shape[1], x.shape[1]) or len(x) != len(dy):
        raise ValueError(
            f"x {tuple(record.value('x').shape)}, weight {tuple(w.shape)} and y {tuple(record.value('y').shape)} do "
            "not fit y = x Wᵀ: x (..., in), weight (out, in), y (..., out)"
        )
    laws = [_channel_law(x, dx, w, dw, dy, record.precision)]
    if record.has("bias"):
        laws.append(_bias_law(dy, record.gradient("bias"), record.precision))
    return laws


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def _convolution(record: Record) -> list[Balance]:
    groups, transposed = record.options.get("groups", 1), record.options.get("transposed", False)
    x, dx, dy = (_channels_last(t) for t in (record.value("x"), record.gradient("x"), record.gradient("y")))
    laws = []
    for group in range(groups):
        w, dw = (t.chunk(groups)[group] for t in (record.value("weight"), record.gradient("weight")))
        if transposed:
            w, dw = w.transpose(0, 1), dw.transpose(0, 1)
        w, dw = (_channels_last(t) for t in (w, dw))
        xs, dxs, dys = (t.chunk(groups, 1)[group].contiguous() for t in (x, dx, dy))
        if w.shape[1] != xs.shape[1]:
            raise ValueError(f"weight {tuple(record.value('weight').shape)} does not fit {x.shape[1]} input channels")
        laws.append(_channel_law(xs, dxs, w, dw, dys, record.precision))
    if record.has("bias"):
        laws.append(_bias_law(dy, record.gradient("bias"), record.precision))
    return laws


register_kind("linear", ("x", "weight", "bias"), _linear)
register_kind("convolution", ("x", "weight", "bias"), _convolution)
register_module(nn.Linear, lambda module: ("linear", {}))
for _module in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_module(_module, lambda module: ("convolution", {"groups": module.groups}))
for _module in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_module(_module, lambda module: ("convolution", {"groups": module.groups, "transposed": True}))
