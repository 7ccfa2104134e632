r"""Laws of single numbers and rows: homogeneous activations, gated units, softmax, rotary embedding.

- Degree p, :math:`\sigma(\lambda x) = \lambda^p\sigma(x)`: :math:`x\,dx = p\,y\,dy`, number by number.
- A gated unit :math:`y = a(g)\,u` is of degree 1 in u: :math:`u\,du = y\,dy`.
- Softmax, and cross-entropy of logits, do not see a shift of a row: its gradient sums to 0.
- A rotary embedding turns pairs: :math:`|x_{pair}| = |y_{pair}|` and :math:`|dx_{pair}| = |dy_{pair}|`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, blocks

Pair = tuple[Tensor, Tensor]


def _same(record: Record, law: str, tensors: str, left: Pair, right: Pair, unit: float, factor: float = 1.0) -> Balance:
    """``a b = factor c d``, number by number; of each block of numbers the worst is kept."""
    worst = []
    flat = [t.reshape(-1) for t in (*left, *right)]
    for block in blocks(len(flat[0]), 1):
        a, b, c, d = (record.cast(t[block]) for t in flat)
        one, other = a * b, factor * (c * d)
        size = one.abs() + other.abs()
        difference = one - other
        at = int((difference.abs() / size.clamp_min(torch.finfo(size.dtype).tiny)).argmax())
        worst.append(torch.stack([difference[at], size[at]]))
    difference, size = torch.stack(worst, 1)[:, None]
    return Balance(law, tensors, difference, size, unit * size, size / 2)


def _homogeneous(record: Record) -> list[Balance]:
    degree = record.options.get("degree", 1.0)
    left, right = ((record.raw_value(role), record.raw_gradient(role)) for role in "xy")
    law = f"x dx = {degree:g} y dy"
    return [_same(record, law, "x, y", left, right, (1 + abs(degree)) * record.precision.stored, degree)]


def _gated(record: Record) -> list[Balance]:
    gate, up, y = ((record.raw_value(role), record.raw_gradient(role)) for role in ("gate", "up", "y"))
    laws = [_same(record, "u du = y dy", "up, y", up, y, 2 * record.precision.stored)]
    if (degree := record.options.get("degree")) is not None:
        law = f"g dg = {degree:g} y dy"
        laws.append(_same(record, law, "gate, y", gate, y, (2 + abs(degree)) * record.precision.stored, degree))
    return laws


def _shift(record: Record) -> list[Balance]:
    axis = record.options.get("dim", -1)
    logits, gradient = (t.movedim(axis, -1) for t in (record.value("x"), record.gradient("x")))
    lowest = torch.where(logits == -torch.inf, logits.amax(-1, keepdim=True), logits).amin(-1)  # of what is not masked
    spread = 1 + logits.amax(-1) - lowest  # a log-probability is rounded at its own size
    unit = record.precision.stored + record.precision.sums * logits.shape[-1] ** 0.5
    root = gradient.square().sum(-1).sqrt()
    if "y" in record.values:  # what cancelled on the way: y dy - y sum of y dy, or dy - exp(y) sum of dy
        y, dy = (t.movedim(axis, -1) for t in (record.value("y"), record.gradient("y")))
        inner = dy if record.options.get("log") else y * dy
        root = (root.square() + inner.square().sum(-1) + 4 * inner.sum(-1).square()).sqrt()
    else:  # p - 1 of a sample that is learnt: what cancels is the sample's weight in the loss, 1/samples in a mean
        rows = max(gradient[..., 0].numel(), 1)
        heaviest = gradient.abs().sum(-1).amax() / 2
        root = root + record.options.get("weight", torch.maximum(heaviest, heaviest.new_tensor(1 / rows)))
    total, size, noise = gradient.sum(-1), gradient.abs().sum(-1), unit * spread * root
    return [Balance.whole("sum of dx over a row = 0", "x", total, size, noise, root)]


def _pairs(t: Tensor, interleaved: bool) -> Tensor:
    if t.shape[-1] % 2:
        raise ValueError(f"a rotary embedding turns pairs, and the last axis has {t.shape[-1]} numbers; make it even")
    pairs = t.unflatten(-1, (-1, 2)) if interleaved else t.unflatten(-1, (2, -1)).transpose(-1, -2)
    return pairs.square().sum(-1)


def _rotary(record: Record) -> list[Balance]:
    interleaved, unit = record.options.get("interleaved", False), 3 * record.precision.stored
    found = []
    for law, read in (("|x| = |y| per pair", record.value), ("|dx| = |dy| per pair", record.gradient)):
        x, y = (_pairs(read(role), interleaved) for role in "xy")
        one = torch.ones_like(x)
        found.append(_same(record, law, "x, y", (x, one), (y, one), unit))
    return found


register_kind("homogeneous", ("x",), _homogeneous)
register_kind("gated", ("gate", "up"), _gated)
register_kind("softmax", ("x",), _shift, masked=("x", "y"))
register_kind("cross_entropy", ("x",), _shift, masked=("x",))
register_kind("rotary", ("x",), _rotary)
for _module in (nn.ReLU, nn.LeakyReLU, nn.PReLU):
    register_module(_module, lambda module: ("homogeneous", {"degree": 1.0}))
register_module(nn.Softmax, lambda module: ("softmax", {"dim": -1 if module.dim is None else module.dim}))
register_module(
    nn.LogSoftmax, lambda module: ("softmax", {"dim": -1 if module.dim is None else module.dim, "log": True})
)
