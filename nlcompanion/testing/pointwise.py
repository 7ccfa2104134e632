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
from nlcompanion.testing.rounding import Balance


def _same(law: str, tensors: str, left: Tensor, right: Tensor, unit: float) -> Balance:
    size = left.abs() + right.abs()
    parts = (left - right, size, unit * size, torch.maximum(left.abs(), right.abs()))
    return Balance(law, tensors, *(part[None] for part in parts))


def _homogeneous(record: Record) -> list[Balance]:
    degree = record.options.get("degree", 1.0)
    left, right = record.value("x") * record.gradient("x"), degree * record.value("y") * record.gradient("y")
    return [_same(f"x dx = {degree:g} y dy", "x, y", left, right, (1 + abs(degree)) * record.precision.stored)]


def _gated(record: Record) -> list[Balance]:
    left, right = record.value("up") * record.gradient("up"), record.value("y") * record.gradient("y")
    laws = [_same("u du = y dy", "up, y", left, right, 2 * record.precision.stored)]
    if (degree := record.options.get("degree")) is not None:
        left = record.value("gate") * record.gradient("gate")
        law = f"g dg = {degree:g} y dy"
        laws.append(_same(law, "gate, y", left, degree * right, (2 + abs(degree)) * record.precision.stored))
    return laws


def _shift(record: Record) -> list[Balance]:
    axis = record.options.get("dim", -1)
    logits, gradient = (t.movedim(axis, -1) for t in (record.value("x"), record.gradient("x")))
    spread = 1 + logits.amax(-1) - logits.amin(-1)  # a log-probability is rounded at its own size
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
    parts = (gradient.sum(-1), gradient.abs().sum(-1), unit * spread * root, root)
    return [Balance("sum of dx over a row = 0", "x", *(part[None] for part in parts))]


def _pairs(t: Tensor, interleaved: bool) -> Tensor:
    if t.shape[-1] % 2:
        raise ValueError(f"a rotary embedding turns pairs, and the last axis has {t.shape[-1]} numbers; make it even")
    pairs = t.unflatten(-1, (-1, 2)) if interleaved else t.unflatten(-1, (2, -1)).transpose(-1, -2)
    return pairs.square().sum(-1)


def _rotary(record: Record) -> list[Balance]:
    interleaved, unit = record.options.get("interleaved", False), 3 * record.precision.stored
    found = []
    for law, read in (("|x| = |y| per pair", record.value), ("|dx| = |dy| per pair", record.gradient)):
        found.append(_same(law, "x, y", _pairs(read("x"), interleaved), _pairs(read("y"), interleaved), unit))
    return found


register_kind("homogeneous", ("x",), _homogeneous)
register_kind("gated", ("gate", "up"), _gated)
register_kind("softmax", ("x",), _shift)
register_kind("cross_entropy", ("x",), _shift)
register_kind("rotary", ("x",), _rotary)
for _module in (nn.ReLU, nn.LeakyReLU, nn.PReLU):
    register_module(_module, lambda module: ("homogeneous", {"degree": 1.0}))
register_module(nn.Softmax, lambda module: ("softmax", {"dim": -1 if module.dim is None else module.dim}))
register_module(
    nn.LogSoftmax, lambda module: ("softmax", {"dim": -1 if module.dim is None else module.dim, "log": True})
)
