r"""Normalisations: RMSNorm, LayerNorm, GroupNorm, InstanceNorm, and BatchNorm while it trains.

With :math:`z = y - \beta`, over each set of numbers that is normalised together,

.. math:: \langle dx, x - \mu\rangle = \frac{\epsilon}{\sigma^2 + \epsilon}\,\langle dy, z\rangle, \qquad \sum dx = 0

(RMSNorm has :math:`\mu = 0`, the mean square for :math:`\sigma^2`, and no second law). Its gain and shift obey
:math:`\gamma_j\,d\gamma_j = \sum z_j\,dy_j` and :math:`d\beta_j = \sum dy_j`.

A set of one number is its own mean: there :math:`dx = 0` and :math:`z = 0`, and the first and the third say nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nlcompanion.testing.normalization_sums import SetSums, eps_of, far_of, layout_of, sums_of
from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, square

ONE_NUMBER = (
    "each set that is normalised holds one number, which is its own mean: only the sums of dx and dy are checked"
)


def _laws(record: Record, centered: bool) -> list[Balance]:
    x, y = record.raw_value("x"), record.raw_value("y")
    if x.shape != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; a norm keeps the shape")
    layout = layout_of(record)
    for role in ("weight", "bias"):
        if role in record.values and record.values[role].numel() != layout.channels:
            shape = tuple(record.values[role].shape)
            raise ValueError(f"{role} has shape {shape} for {layout.channels} normalised channels; they must match")
    sums, channels = sums_of(record, centered, layout)
    alone = centered and layout.sets(x).shape[1] == 1
    if alone:
        record.limits[ONE_NUMBER] = None
    laws = [] if alone else [_law_of_lengths(record, centered, sums, layout.sets(x).shape[1])]
    if centered:
        laws.append(_law_of_sums(record, sums, layout.sets(x).shape[1]))
    # PyTorch's LayerNorm on a CPU adds up a bfloat16 gain's gradient in bfloat16
    last = record.options.get("over", "last") == "last"
    unit = record.precision.stored if centered and last else record.precision.sums
    error = record.precision.stored + unit * (x.numel() / layout.channels) ** 0.5
    if record.has("weight") and not alone:
        laws.append(_law_of_gain(record, channels.of, error))
    if record.has("bias"):
        laws.append(_law_of_shift(record, channels.of, error))
    return laws


def _unit(record: Record, width: int) -> float:
    return record.precision.stored + record.precision.sums * width**0.5


def _law_of_lengths(record: Record, centered: bool, s: SetSums, width: int) -> Balance:
    """The noise has a relative part, of all that is stored, and the rounding of a mean, which is as large as the mean:
    where all numbers of a set are equal it is all that is left."""
    share, far = eps_of(record) / (s.variance + eps_of(record)), far_of(record, s)
    stored_y = s.inner.squares
    if "bias" in record.values:  # the output is rounded at its own size, (z + β)² <= 2 z² + 2 β²
        stored_y = 2 * s.inner.squares + 2 * s.shift_squares
    own = s.moved.squares + square(share) * stored_y
    relative = (1 + far.sqrt()) ** 4 * (own + s.inner.squares + 4 * square(s.inner.total))
    of_mean = square(s.mean) * s.dx.squares + square(share) * far * (s.g_squares + square(s.g))
    law = "<dx, x-μ> = ε <dy, y-β>/(σ²+ε)" if centered else "<dx, x> = ε <dy, y>/(mean x²+ε)"
    size = s.moved.size + share * s.inner.size
    noise = _unit(record, width) * (relative + of_mean).sqrt()
    return Balance.whole(law, "x", s.moved.total - share * s.inner.total, size, noise, s.inner.squares.sqrt())


def _law_of_sums(record: Record, s: SetSums, width: int) -> Balance:
    rate, far = (s.variance + eps_of(record)).rsqrt(), far_of(record, s)
    pushed = square(rate) * s.g_squares
    squares = s.dx.squares + pushed + 4 * square(rate * s.g) + 4 * s.inner.squares / width
    noise = _unit(record, width) * (1 + far.sqrt()) ** 2 * squares.sqrt()
    return Balance.whole("sum of dx = 0", "x", s.dx.total, s.dx.size, noise, pushed.sqrt())


def _law_of_gain(record: Record, sums: dict[str, Tensor], error: float) -> Balance:
    """What is added up is off by its own rounding, by that of ``y = z + β``, and by that of the mean taken away."""
    gain = record.value("weight").reshape(-1).double()
    own, product = gain * record.gradient("weight").reshape(-1).double(), sums["z dy"]
    terms = 4 * sums["(z dy)²"] + square(gain) * sums["(μ/σ dy)²"]
    if "bias" in record.values:
        shift = record.value("bias").reshape(-1).double()
        terms = terms + torch.where(shift != 0, 4 * sums["(z dy)²"] + 2 * square(shift) * sums["dy²"], 0.0)
    noise = (square(record.precision.stored * own) + 4 * error**2 * terms).sqrt()
    size, side = own.abs() + sums["|z dy|"], torch.maximum(own.abs(), product.abs())
    return Balance.whole("γ dγ = sum of (y-β) dy", "weight", own - product, size, noise, side)


def _law_of_shift(record: Record, sums: dict[str, Tensor], error: float) -> Balance:
    own, total = record.gradient("bias").reshape(-1).double(), sums["dy"]
    noise = (square(record.precision.stored * own) + error**2 * sums["dy²"]).sqrt()
    return Balance.whole("dβ = sum of dy", "bias", own - total, own.abs() + sums["|dy|"], noise, sums["dy²"].sqrt())


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
