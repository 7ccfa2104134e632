r"""Normalisations: RMSNorm, LayerNorm, GroupNorm, InstanceNorm, and BatchNorm while it trains.

With :math:`z = y - \beta`, over each set of numbers that is normalised together,

.. math:: \langle dx, x - \mu\rangle = \frac{\epsilon}{\sigma^2 + \epsilon}\,\langle dy, z\rangle, \qquad \sum dx = 0

(RMSNorm has :math:`\mu = 0`, the mean square for :math:`\sigma^2`, and no second law). Its gain and shift obey
:math:`\gamma_j\,d\gamma_j = \sum z_j\,dy_j` and :math:`d\beta_j = \sum dy_j`.

A set of one number is its own mean: there :math:`dx = 0` and :math:`z = 0`, and the first and the third say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from nlcompanion.testing.record import Record, register_kind, register_module
from nlcompanion.testing.rounding import Balance, absolute, blocks, square

ONE_NUMBER = (
    "each set that is normalised holds one number, which is its own mean: only the sums of dx and dy are checked"
)


@dataclass(frozen=True)
class Layout:
    """How x is cut: ``sets`` to ``(sets, numbers normalised together)``, ``rows`` to ``(rows, channels)``.

    ``along_sets`` and ``along_rows`` bring a gain or shift to a shape that broadcasts against those tables, and
    ``spread`` what each set has, of shape ``(sets, 1)``, against the rows.
    """

    sets: Callable[[Tensor], Tensor]
    rows: Callable[[Tensor], Tensor]
    along_sets: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    channels: int


def _layout(record: Record) -> Layout:
    over, x = record.options.get("over", "last"), record.values["x"]
    if over == "last":
        width = math.prod(x.shape[x.ndim - record.options.get("dimensions", 1) :])
        table = lambda t: t.reshape(-1, width)  # noqa: E731
        return Layout(table, table, table, lambda t: t, width)
    channels, inner = x.shape[1], [1] * (x.ndim - 2)
    by_channel = lambda t: t.movedim(1, -1).reshape(-1, channels)  # noqa: E731
    if over == "batch":
        sets = lambda t: t.movedim(1, 0).reshape(channels, -1)  # noqa: E731
        return Layout(sets, by_channel, lambda t: t.reshape(-1, 1), lambda t: t.T, channels)
    groups = record.options["groups"]
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    of_groups = lambda t: t.reshape(t.shape[0] * groups, -1)  # noqa: E731
    whole = lambda t: of_groups(t.reshape(1, -1, *inner).expand(x.shape))  # noqa: E731
    spread = lambda t: by_channel(  # noqa: E731
        t.reshape(-1, groups, 1).expand(-1, -1, channels // groups).reshape(-1, channels, *inner).expand(x.shape)
    )
    return Layout(of_groups, by_channel, whole, spread, channels)


@dataclass(frozen=True)
class SetSums:
    """Sums over each set, of shape ``(sets, 1)``; ``inner`` stands for ``<dy, y - β>`` and g for ``γ dy``."""

    mean: Tensor
    variance: Tensor
    moved: Tensor  # <dx, x - μ>
    moved_squares: Tensor
    moved_size: Tensor
    inner: Tensor
    inner_squares: Tensor
    inner_size: Tensor
    dx: Tensor
    dx_squares: Tensor
    dx_size: Tensor
    g: Tensor
    g_squares: Tensor
    shift_squares: Tensor  # of β dy

    @staticmethod
    def cat(parts: list[SetSums]) -> SetSums:
        return SetSums(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(SetSums)))


def _set_sums(centered: bool, x, dx, dy, terms, squares, gain, shift) -> SetSums:
    """``terms`` are ``(y - β) dy``, number by number, and ``squares`` those of dy."""
    mean = x.mean(1, keepdim=True) if centered else torch.zeros_like(x[:, :1])
    offset = x - mean if centered else x
    return SetSums(
        mean,
        square(torch.linalg.vector_norm(offset, dim=1, keepdim=True)) / x.shape[1],
        *_three(dx * offset),
        *_three(terms),
        *_three(dx),
        _along(dy, gain),
        _along(squares, None if gain is None else square(gain)),
        torch.zeros_like(mean) if shift is None else _along(squares, square(shift)),
    )


def _three(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over each row, that of squares, and the law's size."""
    squares = square(torch.linalg.vector_norm(t, dim=1, keepdim=True))
    return t.sum(1, keepdim=True), squares, absolute(t, squares, 1)


def _along(t: Tensor, factor: Tensor | None) -> Tensor:
    """``sum of factor t`` of each row, without a table of the products where one row or column of factors will do."""
    if factor is None:
        return t.sum(1, keepdim=True)
    if factor.shape[1] == 1:
        return factor * t.sum(1, keepdim=True)
    return t @ factor.T if len(factor) == 1 else (factor * t).sum(1, keepdim=True)


class ChannelSums:
    """Sums over all rows, of shape ``(channels,)``: of each block in its own dtype, of the blocks in float64."""

    def __init__(self) -> None:
        self.blocks: list[list[Tensor]] = []

    def add(self, dy: Tensor, terms: Tensor, squares: Tensor, far: Tensor) -> None:
        """``far`` are squares of mean/σ, of shape ``(rows or 1, channels or 1)``."""
        of_dy, of_terms = squares.sum(0), square(terms).sum(0)
        if len(far) == 1:
            moved = far[0] * of_dy
        else:
            moved = (far.T @ squares)[0] if far.shape[1] == 1 else (far * squares).sum(0)
        sizes = absolute(dy, of_dy, 0), absolute(terms, of_terms, 0)
        self.blocks.append([dy.sum(0), sizes[0], of_dy, terms.sum(0), sizes[1], of_terms, moved])

    @cached_property
    def of(self) -> dict[str, Tensor]:
        names = ("dy", "|dy|", "dy²", "z dy", "|z dy|", "(z dy)²", "(μ/σ dy)²")
        totals = [torch.stack(columns).double().sum(0) for columns in zip(*self.blocks, strict=True)]
        return dict(zip(names, totals, strict=True))


def _laws(record: Record, centered: bool) -> list[Balance]:
    x, y = record.raw_value("x"), record.raw_value("y")
    if x.shape != y.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; a norm keeps the shape")
    layout = _layout(record)
    for role in ("weight", "bias"):
        if role in record.values and record.values[role].numel() != layout.channels:
            shape = tuple(record.values[role].shape)
            raise ValueError(f"{role} has shape {shape} for {layout.channels} normalised channels; they must match")
    sums, channels = _sums(record, centered, layout)
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


def _sums(record: Record, centered: bool, layout: Layout) -> tuple[SetSums, ChannelSums]:
    """One walk through the numbers where the sets are the rows, as in LayerNorm, and two elsewhere."""
    roles = record.raw_value("x"), record.raw_gradient("x"), record.raw_value("y"), record.raw_gradient("y")
    gain, shift = (record.value(role) if role in record.values else None for role in ("weight", "bias"))
    along = [None if t is None else layout.along_sets(t) for t in (gain, shift)]
    parameters, together = record.has("weight") or record.has("bias"), layout.sets is layout.rows
    tables, parts, channels = [layout.sets(t) for t in roles], [], ChannelSums()
    for block in blocks(*tables[0].shape, record.work):
        x, dx, y, dy = (record.cast(table[block]) for table in tables)
        own_gain, own_shift = (t if t is None or len(t) == 1 else t[block] for t in along)
        terms, squares = (y if own_shift is None else y - own_shift) * dy, square(dy)
        parts.append(_set_sums(centered, x, dx, dy, terms, squares, own_gain, own_shift))
        if together and parameters:
            channels.add(dy, terms, squares, _far(record, parts[-1]))
    sums = SetSums.cat(parts)
    if parameters and not together:
        far = layout.spread(_far(record, sums))
        outputs, slopes = (layout.rows(t) for t in roles[2:])
        for block in blocks(*outputs.shape, record.work):
            y, dy = record.cast(outputs[block]), record.cast(slopes[block])
            terms = (y if shift is None else y - shift.reshape(1, -1)) * dy
            channels.add(dy, terms, square(dy), far if len(far) == 1 else far[block])
    return sums, channels


def _far(record: Record, sums: SetSums) -> Tensor:
    """How far the mean is from zero, in units of the spread, squared."""
    return square(sums.mean) / (sums.variance + _eps(record))


def _eps(record: Record) -> float:
    """The layer's, or what ``RMSNorm(eps=None)`` takes: the resolution of its arithmetic."""
    eps = record.options.get("eps", 1e-5)
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if record.values["x"].dtype == torch.float64 else torch.float32).eps


def _unit(record: Record, width: int) -> float:
    return record.precision.stored + record.precision.sums * width**0.5


def _law_of_lengths(record: Record, centered: bool, s: SetSums, width: int) -> Balance:
    """The noise has a relative part, of all that is stored, and the rounding of a mean, which is as large as the mean:
    where all numbers of a set are equal it is all that is left."""
    share, far = _eps(record) / (s.variance + _eps(record)), _far(record, s)
    stored_y = s.inner_squares
    if "bias" in record.values:  # the output is rounded at its own size, (z + β)² <= 2 z² + 2 β²
        stored_y = 2 * s.inner_squares + 2 * s.shift_squares
    own = s.moved_squares + square(share) * stored_y
    relative = (1 + far.sqrt()) ** 4 * (own + s.inner_squares + 4 * square(s.inner))
    of_mean = square(s.mean) * s.dx_squares + square(share) * far * (s.g_squares + square(s.g))
    law = "<dx, x-μ> = ε <dy, y-β>/(σ²+ε)" if centered else "<dx, x> = ε <dy, y>/(mean x²+ε)"
    size = s.moved_size + share * s.inner_size
    noise = _unit(record, width) * (relative + of_mean).sqrt()
    return Balance.whole(law, "x", s.moved - share * s.inner, size, noise, s.inner_squares.sqrt())


def _law_of_sums(record: Record, s: SetSums, width: int) -> Balance:
    rate, far = (s.variance + _eps(record)).rsqrt(), _far(record, s)
    pushed = square(rate) * s.g_squares
    squares = s.dx_squares + pushed + 4 * square(rate * s.g) + 4 * s.inner_squares / width
    noise = _unit(record, width) * (1 + far.sqrt()) ** 2 * squares.sqrt()
    return Balance.whole("sum of dx = 0", "x", s.dx, s.dx_size, noise, pushed.sqrt())


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
