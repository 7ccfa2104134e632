r"""Attention, one key-value head at a time, with grouped queries.

With :math:`S = QK^T/\sqrt d`, :math:`P = \mathrm{softmax}(S)`, :math:`O = PV`, and any mask, bias or dropout of P:

- the logits do not see :math:`(QA, KA^{-T})`, hence :math:`\sum_{h} Q_h^T dQ_h = dK^T K`;
- the outputs move with V, hence :math:`V^T dV = \sum_h O_h^T dO_h`;
- softmax does not see a shift of all keys by one vector, hence :math:`\sum_j dK_j = 0` (not with sinks or a soft cap).
"""

from __future__ import annotations

import torch

from nlcompanion.testing.record import Record, register_kind
from nlcompanion.testing.rounding import Balance, Product, absolute, balance, blocks, copies, square

NO_SHIFT = "with sinks or a soft cap the outputs see a shift of all keys: the sum of dK over keys is not checked"


def _check_shapes(record: Record) -> None:
    shapes = {role: tuple(record.values[role].shape) for role in ("q", "k", "v", "y") if role in record.values}
    q, k, v, y = (shapes.get(role) for role in ("q", "k", "v", "y"))
    if not (q and k and v and y) or any(len(shape) != 4 for shape in (q, k, v, y)):
        raise ValueError(f"attention takes q, k, v and gives y, each of shape (batch, heads, n, d); got {shapes}")
    fits = q[3] == k[3] and k[:3] == v[:3] and y == (*q[:3], v[3]) and q[0] == k[0] and q[1] % k[1] == 0
    if not fits:
        raise ValueError(
            f"the shapes {shapes} do not fit attention: q (batch, H, n, d), k (batch, G, m, d), v (batch, G, m, e), "
            "y (batch, H, n, e), with G a divisor of H"
        )


def _laws(record: Record) -> list[Balance]:
    """A few key-value heads at a time, whose tensors stay in a processor's cache."""
    _check_shapes(record)
    tables = {}
    for role in ("q", "k", "v", "y"):
        for name, t in ((role, record.raw_value(role)), ("d" + role, record.raw_gradient(role))):
            tables[name] = t.unflatten(1, (record.values["k"].shape[1], -1)).transpose(0, 1).flatten(2, 3)
    heads, largest = len(tables["k"]), max(t[0].numel() for t in tables.values())
    found = []
    for block in blocks(heads, largest, dtype=record.work):
        found.append(_of_heads(record, **{name: record.cast(t[block]) for name, t in tables.items()}))
    return [Balance.cat(balances, axis=0, head="key-value head") for balances in zip(*found, strict=True)]


def _of_heads(record: Record, q, k, v, y, dq, dk, dv, dy) -> list[Balance]:
    """Tensors of shape ``(heads, batch, n, d)``; queries of a group stand one after the other."""
    scale = record.options.get("scale") or q.shape[-1] ** -0.5
    precision = record.precision
    rounding = precision.stored + precision.sums * max(k.shape[-2], q.shape[-2]) ** 0.5
    alike = copies(q, dy)[:, None, None, None]
    q_squares, k_squares, v_squares, dk_squares, dy_squares = (square(t) for t in (q, k, v, dk, dy))

    # the error of a row of P and dS: relative to P, as large as dP = dO V^T and its mean dO.O, at a logit's size
    logits = scale * ((q @ (k.mT @ k / k.shape[-2])) * q).sum(-1, keepdim=True).clamp_min(0).sqrt()
    row = square(rounding * (1 + logits))
    mean = v.mean(-2, keepdim=True)
    spread = square(v - mean).mean(-2, keepdim=True).sum(-1, keepdim=True)
    share = (square(y - mean).sum(-1, keepdim=True) / spread.clamp_min(torch.finfo(spread.dtype).tiny)).clamp(
        1 / k.shape[-2], 1
    )
    slopes = ((dy @ (v.mT @ v / v.shape[-2])) * dy).sum(-1, keepdim=True).clamp_min(0)
    terms = dy * y
    squares = square(terms).sum(-1, keepdim=True)
    center = square(terms.sum(-1, keepdim=True)) + squares
    ds = scale**2 * row * (share * (slopes + center) + squares)

    by_query = q_squares.mT @ ds  # (heads, batch, d, 1)
    left = Product.of(q, dq, rounding, a_squares=q_squares)
    right = Product.of(dk, k, rounding, a_squares=dk_squares, b_squares=k_squares)
    further = 2 * by_query * k_squares.mean(-2, keepdim=True)
    law = "sum of Qᵀ dQ = dKᵀ K"
    laws = [balance(law, "q, k", left, right, further=further, copies=alike, head="key-value head")]

    left = Product.of(v, dv, rounding, a_squares=v_squares)
    right = Product.of(y, dy, rounding, b_squares=dy_squares)
    further = 2 * v_squares.mean(-2, keepdim=True).mT * ((row * share).mT @ dy_squares)
    law = "Vᵀ dV = sum of Oᵀ dO"
    laws.append(balance(law, "v, o", left, right, further=further, copies=alike, head="key-value head"))

    if record.options.get("sinks") or record.options.get("soft_cap"):
        record.limits[NO_SHIFT] = None
    else:
        own = dk_squares.sum(-2)
        noise = (alike[..., 0] * (rounding**2 * own + by_query[..., 0])).sqrt()
        law = "sum of dK over keys = 0"
        laws.append(Balance(law, "k", dk.sum(-2), absolute(dk, own, -2), noise, own.sqrt(), "key-value head"))
    return laws


register_kind("attention", ("q", "k", "v"), _laws)
