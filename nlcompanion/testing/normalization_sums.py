"""One walk through the numbers of a normalisation: the sums over sets and over channels that its laws are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from nlcompanion.testing.record import Record
from nlcompanion.testing.rounding import absolute, blocks, square


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


def layout_of(record: Record) -> Layout:
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


def sums_of(record: Record, centered: bool, layout: Layout) -> tuple[SetSums, ChannelSums]:
    """One walk through the numbers where the sets are the rows, as in LayerNorm, and two elsewhere."""
    roles = record.raw_value("x"), record.raw_gradient("x"), record.raw_value("y"), record.raw_gradient("y")
    gain, shift = (record.value(role) if role in record.values else None for role in ("weight", "bias"))
    along = [None if t is None else layout.along_sets(t) for t in (gain, shift)]
    parameters, together = record.has("weight") or record.has("bias"), layout.sets is layout.rows
    tables, parts, channels = [layout.sets(t) for t in roles], [], ChannelSums()
    for block in blocks(*tables[0].shape, dtype=record.work):
        x, dx, y, dy = (record.cast(table[block]) for table in tables)
        own_gain, own_shift = (t if t is None or len(t) == 1 else t[block] for t in along)
        terms, squares = (y if own_shift is None else y - own_shift) * dy, square(dy)
        parts.append(_set_sums(centered, x, dx, dy, terms, squares, own_gain, own_shift))
        if together and parameters:
            channels.add(dy, terms, squares, far_of(record, parts[-1]))
    sums = SetSums.cat(parts)
    if parameters and not together:
        far = layout.spread(far_of(record, sums))
        outputs, slopes = (layout.rows(t) for t in roles[2:])
        for block in blocks(*outputs.shape, dtype=record.work):
            y, dy = record.cast(outputs[block]), record.cast(slopes[block])
            terms = (y if shift is None else y - shift.reshape(1, -1)) * dy
            channels.add(dy, terms, square(dy), far if len(far) == 1 else far[block])
    return sums, channels


def far_of(record: Record, sums: SetSums) -> Tensor:
    """How far the mean is from zero, in units of the spread, squared."""
    return square(sums.mean) / (sums.variance + eps_of(record))


def eps_of(record: Record) -> float:
    """The layer's, or what ``RMSNorm(eps=None)`` takes: the resolution of its arithmetic."""
    eps = record.options.get("eps", 1e-5)
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if record.values["x"].dtype == torch.float64 else torch.float32).eps
