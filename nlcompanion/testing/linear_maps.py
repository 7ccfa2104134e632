r"""Linear maps and convolutions: :math:`x^T dx = dW^T W`, and :math:`db = \sum dy`.

The output :math:`y = xW^T + b` does not see :math:`(xA, WA^{-T})`. Between channels the same holds for a convolution,
whose window plays no part. Beyond 32 channels the second index is folded: each channel is added, with a random sign, to
one of 8 to 32 buckets, 16 channels each where that is enough, so that every channel still counts and the check costs
little beside the pass.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, Product, absolute, balance, blocks, copies, square

UNFOLDED = 32
PER_BUCKET, FEWEST, MOST = 16, 8, 32


@functools.cache
def _fold(width: int, dtype: torch.dtype) -> Tensor | None:
    """A matrix that adds up columns by buckets, in a random order and with random signs; None for few columns."""
    if width <= UNFOLDED:
        return None
    buckets = min(max(FEWEST, -(-width // PER_BUCKET)), MOST)
    generator = torch.Generator().manual_seed(width)
    order = torch.randperm(width, generator=generator)
    matrix = torch.zeros(width, buckets, dtype=dtype)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
    matrix[order, torch.arange(width) % buckets] = signs.to(dtype)
    return matrix


def _channel_law(record: Record, x: Tensor, dx: Tensor, w: Tensor, dw: Tensor, dy: Tensor) -> Balance:
    """``x``, ``dx`` of shape ``(n, channels)``, ``w``, ``dw`` ``(rows, channels)``, ``dy`` ``(positions, outputs)``."""
    stored, sums = record.precision.stored, record.precision.sums
    window = w.shape[0] != dy.shape[1]  # a convolution's reaches several rows
    matrix = _fold(x.shape[1], record.work)
    matrix = None if matrix is None else matrix.to(x.device)
    bucket = (lambda t: t) if matrix is None else (lambda t: t @ matrix)
    bucket_squares = (lambda t: t) if matrix is None else (lambda t: (t.float() @ matrix.float().abs()).to(t.dtype))
    squares = [square(record.cast(dy[block])) for block in blocks(*dy.shape)]
    of_rows = torch.cat([part.sum(1) for part in squares])
    of_outputs = torch.stack([part.sum(0) for part in squares]).sum(0)
    reach = of_rows.sum()
    channel, of_inputs = bucket_squares(square(w).sum(0)[None])[0], torch.zeros_like(w[0])
    parts = []
    for block in blocks(*x.shape):
        a, b = record.cast(x[block]), record.cast(dx[block])
        at_row = reach if window else of_rows[block, None]
        error = stored**2 * bucket_squares(square(b)) + sums**2 * at_row * channel
        parts.append(Product.of(a, bucket(b), b_error=error))
        of_inputs = of_inputs + square(a).sum(0)
    at_output = reach if window else of_outputs[:, None]
    dw_error = square(stored * dw) + sums**2 * at_output * of_inputs
    right = Product.of(dw, bucket(w), a_error=dw_error)
    found = balance("xᵀ dx = dWᵀ W", "x, weight", functools.reduce(Product.__add__, parts), right, copies=copies(dx))
    return Balance.whole(found.law, found.tensors, found.difference, found.size, found.noise, found.side)


def _bias_law(record: Record, dy: Tensor, db: Tensor) -> Balance:
    db = db.double()
    total = size = squares = torch.zeros_like(db)
    for block in blocks(*dy.shape):
        part = record.cast(dy[block])
        of_part = square(part).sum(0)
        total, size = total + part.sum(0).double(), size + absolute(part, of_part, 0).double()
        squares = squares + of_part.double()
    error = square(record.precision.stored * db) + record.precision.sums**2 * len(dy) * squares
    noise = (copies(dy) * error).sqrt()
    return Balance.whole("db = sum of dy", "bias", db - total, db.abs() + size, noise, squares.sqrt())


def _linear(record: Record) -> list[Balance]:
    x, dx, dy = (
        t.reshape(-1, t.shape[-1]) for t in (record.raw_value("x"), record.raw_gradient("x"), record.raw_gradient("y"))
    )
    w, dw = record.value("weight"), record.gradient("weight")
    if w.ndim != 2 or w.shape != (dy.shape[1], x.shape[1]) or len(x) != len(dy):
        raise ValueError(
            f"x {tuple(record.raw_value('x').shape)}, weight {tuple(w.shape)} and "
            f"y {tuple(record.raw_value('y').shape)} do not fit y = x Wᵀ: x (..., in), weight (out, in), y (..., out)"
        )
    laws = [_channel_law(record, x, dx, w, dw, dy)]
    if record.has("bias"):
        laws.append(_bias_law(record, dy, record.gradient("bias")))
    return laws


def _channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).reshape(-1, t.shape[1])


def _convolution(record: Record) -> list[Balance]:
    groups, transposed = record.options.get("groups", 1), record.options.get("transposed", False)
    x, dx, dy = (_channels_last(t) for t in (record.raw_value("x"), record.raw_gradient("x"), record.raw_gradient("y")))
    laws = []
    for group in range(groups):
        w, dw = (t.chunk(groups)[group] for t in (record.value("weight"), record.gradient("weight")))
        if transposed:
            w, dw = w.transpose(0, 1), dw.transpose(0, 1)
        w, dw = (_channels_last(t) for t in (w, dw))
        xs, dxs, dys = (t.chunk(groups, 1)[group].contiguous() for t in (x, dx, dy))
        if w.shape[1] != xs.shape[1]:
            raise ValueError(
                f"weight {tuple(record.raw_value('weight').shape)} does not fit {x.shape[1]} input channels"
            )
        laws.append(_channel_law(record, xs, dxs, w, dw, dys))
    if record.has("bias"):
        laws.append(_bias_law(record, dy, record.gradient("bias")))
    return laws


register_kind("linear", ("x", "weight", "bias"), _linear)
register_kind("convolution", ("x", "weight", "bias"), _convolution)
register_module(nn.Linear, lambda module: ("linear", {}))
for _plain in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_module(_plain, lambda module: ("convolution", {"groups": module.groups}))
for _transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_module(_transposed, lambda module: ("convolution", {"groups": module.groups, "transposed": True}))
