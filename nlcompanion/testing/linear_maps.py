r"""Linear maps and convolutions: :math:`x^T dx = dW^T W`, and :math:`db = \sum dy`.

The output :math:`y = xW^T + b` does not see :math:`(xA, WA^{-T})`. Between channels the same holds for a convolution,
whose window plays no part. Beyond 32 channels the second index is folded: each channel is added, with a random sign, to
one of 8 to 32 buckets, 16 channels each where that is enough, so that every channel still counts and the check costs
little beside the pass.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, Product, absolute, balance, blocks, copies, square

UNFOLDED = 32
PER_BUCKET, FEWEST, MOST = 16, 8, 32


@functools.cache
def _fold(width: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """A matrix that adds up columns by buckets, in a random order and with random signs; None for few columns."""
    if width <= UNFOLDED:
        return None
    buckets = min(max(FEWEST, -(-width // PER_BUCKET)), MOST)
    generator = torch.Generator().manual_seed(width)
    order = torch.randperm(width, generator=generator)
    matrix = torch.zeros(width, buckets, dtype=dtype)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
    matrix[order, torch.arange(width) % buckets] = signs.to(dtype)
    return matrix.to(device)


@dataclass(frozen=True)
class OutputSums:
    """Of the gradient at the outputs, one walk through it: sums of each row and of each output."""

    of_rows: Tensor  # of squares
    squares: Tensor
    total: Tensor
    size: Tensor


def _output_sums(record: Record, dy: Tensor) -> OutputSums:
    of_rows, of_outputs = [], []
    for block in blocks(*dy.shape, dtype=record.work):
        part = record.cast(dy[block])
        squares = square(part)
        of_rows.append(squares.sum(1))
        of_output = squares.sum(0)
        of_outputs.append(torch.stack([of_output, part.sum(0), absolute(part, of_output, 0)]).double())
    return OutputSums(torch.cat(of_rows), *functools.reduce(torch.add, of_outputs))


def _channel_law(record: Record, x: Tensor, dx: Tensor, w: Tensor, dw: Tensor, dy: OutputSums) -> Balance:
    """``x``, ``dx`` of shape ``(n, channels)``, ``w``, ``dw`` ``(rows, channels)``.

    Besides what is stored, each number of dx and dW is off by the rounding of the sum that it is, of ``dy w`` or
    ``dy x``: at most the product of two norms, one of its row and one of its column.
    """
    stored, sums = record.precision.stored, record.precision.sums
    window = w.shape[0] != len(dy.squares)  # a convolution's reaches several rows
    matrix = _fold(x.shape[1], record.work, x.device)
    folded = w if matrix is None else w @ matrix
    channel = square(w).sum(0)
    channel = channel if matrix is None else channel @ matrix.abs()
    reach, parts, pushed = dy.squares.sum(), [], []
    for block in blocks(*x.shape, dtype=record.work):
        a, b = record.cast(x[block]), record.cast(dx[block])
        squares = square(a)
        spread = None if matrix is None else square(b) @ matrix.abs()
        parts.append(Product.of(a, b if matrix is None else b @ matrix, stored, a_squares=squares, spread=spread))
        of_inputs = squares.sum(0)
        of_pushed = reach * of_inputs if window else dy.of_rows[block] @ squares
        pushed.append(torch.stack([of_inputs, of_pushed]).double())
    of_inputs, of_dx = functools.reduce(torch.add, pushed)
    at_output = square(folded).double()
    at_output = reach * at_output.sum(0) if window else dy.squares @ at_output
    further = sums**2 * (torch.outer(of_dx, channel.double()) + torch.outer(of_inputs, at_output))
    left, right = functools.reduce(Product.__add__, parts), Product.of(dw, folded, stored)
    alike = copies(dx[None])[0]
    found = balance("xᵀ dx = dWᵀ W", "x, weight", left, right, further=further, copies=alike)
    return Balance.whole(found.law, found.tensors, found.difference, found.size, found.noise, found.side)


def _bias_law(record: Record, dy: Tensor, sums: OutputSums, db: Tensor) -> Balance:
    db = db.double()
    error = square(record.precision.stored * db) + record.precision.sums**2 * len(dy) * sums.squares
    noise, size = (copies(dy[None])[0] * error).sqrt(), db.abs() + sums.size
    return Balance.whole("db = sum of dy", "bias", db - sums.total, size, noise, sums.squares.sqrt())


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
    sums = _output_sums(record, dy)
    laws = [_channel_law(record, x, dx, w, dw, sums)]
    if record.has("bias"):
        laws.append(_bias_law(record, dy, sums, record.gradient("bias")))
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
        laws.append(_channel_law(record, xs, dxs, w, dw, _output_sums(record, dys)))
    if record.has("bias"):
        laws.append(_bias_law(record, dy, _output_sums(record, dy), record.gradient("bias")))
    return laws


register_kind("linear", ("x", "weight", "bias"), _linear)
register_kind("convolution", ("x", "weight", "bias"), _convolution)
register_module(nn.Linear, lambda module: ("linear", {}))
for _plain in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_module(_plain, lambda module: ("convolution", {"groups": module.groups}))
for _transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_module(_transposed, lambda module: ("convolution", {"groups": module.groups, "transposed": True}))
