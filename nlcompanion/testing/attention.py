r"""Attention, one key-value head at a time, with grouped queries.

With :math:`S = QK^T/\sqrt d`, :math:`P = \mathrm{softmax}(S)`, :math:`O = PV`, and any mask, bias or dropout of P:

- the logits do not see :math:`(QA, KA^{-T})`, hence :math:`\sum_{h} Q_h^T dQ_h = dK^T K`;
- the outputs move with V, hence :math:`V^T dV = \sum_h O_h^T dO_h`;
- softmax does not see a shift of all keys by one vector, hence :math:`\sum_j dK_j = 0` (not with sinks or a soft cap).
"""

from __future__ import annotations

import torch

from nlcompanion.testing.record import Record, register_kind
from nlcompanion.testing.rounding import Balance, Product, balance, copies, square

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
    """One key-value head after the other, whose tensors stay in a processor's cache."""
    _check_shapes(record)
    heads = record.values["k"].shape[1]
    found = []
    for head in range(heads):
        parts = {}
        for role in ("q", "k", "v", "y"):
            group = record.values[role].shape[1] // heads
            own = slice(head * group, (head + 1) * group)
            parts[role], parts["d" + role] = (
                record.cast(t[:, own]).flatten(1, 2)[None] for t in (record.raw_value(role), record.raw_gradient(role))
            )
        found.append(_of_head(record, **parts))
    return [Balance.cat(balances, axis=0, head="key-value head") for balances in zip(*found, strict=True)]


def _of_head(record: Record, q, k, v, y, dq, dk, dv, dy) -> list[Balance]:
    """Tensors of shape ``(1, batch, n, d)``; queries of a group stand one after the other."""
    scale = record.options.get("scale") or q.shape[-1] ** -0.5
    precision = record.precision
    rounding = precision.stored + precision.sums * max(k.shape[-2], q.shape[-2]) ** 0.5
    alike = copies(torch.cat([q, dy], -1).flatten(0, -2))

    # the error of a row of P and dS: relative to P, as large as dP = dO V^T and its mean dO.O, at a logit's size
    k_rms, v_rms = (square(t).mean(-2, keepdim=True).sqrt() for t in (k, v))
    logits = scale * ((q @ (k.mT @ k / k.shape[-2])) * q).sum(-1, keepdim=True).clamp_min(0).sqrt()
    row = rounding * (1 + logits)
    mean = v.mean(-2, keepdim=True)
    spread = square(v - mean).mean(-2, keepdim=True).sum(-1, keepdim=True)
    share = (square(y - mean).sum(-1, keepdim=True) / spread.clamp_min(torch.finfo(spread.dtype).tiny)).clamp(
        1 / k.shape[-2], 1
    )
    slopes = ((dy @ (v.mT @ v / v.shape[-2])) * dy).sum(-1, keepdim=True).clamp_min(0)
    terms = dy * y
    squares = square(terms).sum(-1, keepdim=True)
    center = square(terms.sum(-1, keepdim=True)) + squares
    ds = square(scale * row) * (share * (slopes + center) + squares)

    by_query = (square(q).mT @ ds)[..., 0]  # (heads, batch, d)
    inside = by_query[..., None] * square(k_rms)
    left = Product.of(q, dq, b_error=square(rounding * dq))
    right = Product.of(dk, k, a_error=square(rounding * dk))
    left = Product(left.value, left.size, left.variance + inside)
    right = Product(right.value, right.size, right.variance + inside)
    laws = [balance("sum of Qᵀ dQ = dKᵀ K", "q, k", left, right, copies=alike, head="key-value head")]

    through_p = square(v_rms).mT * ((square(row) * share).mT @ square(dy))
    left = Product.of(v, dv, b_error=square(rounding * dv))
    right = Product.of(y, dy, a_error=square(rounding * y))
    left = Product(left.value, left.size, left.variance + through_p)
    right = Product(right.value, right.size, right.variance + through_p)
    laws.append(balance("Vᵀ dV = sum of Oᵀ dO", "v, o", left, right, copies=alike, head="key-value head"))

    if record.options.get("sinks") or record.options.get("soft_cap"):
        record.limits[NO_SHIFT] = None
    else:
        own = square(dk).sum(-2)
        noise = (alike * (rounding**2 * own + by_query)).sqrt()
        law = "sum of dK over keys = 0"
        laws.append(Balance(law, "k", dk.sum(-2), dk.abs().sum(-2), noise, own.sqrt(), "key-value head"))
    return laws


register_kind("attention", ("q", "k", "v"), _laws)
