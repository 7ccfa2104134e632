"""One walk through the numbers of a normalisation: the sums over sets and over channels that its laws are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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
class Sums:
    """Of one table over each set: its numbers, their root sum of squares, and the law's size."""

    total: Tensor
    norm: Tensor
    size: Tensor

    @cached_property
    def squares(self) -> Tensor:
        return square(self.norm)


@dataclass(frozen=True)
class SetSums:
    """Sums over each set, of shape ``(sets, 1)``; ``inner`` stands for ``(y - β) dy`` and g for ``γ dy``."""

    mean: Tensor
    variance: Tensor
    moved: Sums  # of dx (x - μ)
    inner: Sums
    dx: Sums
    g: Tensor
    g_squares: Tensor
    shift_squares: Tensor  # of β dy

    @staticmethod
    def of(parts: list[list[Tensor]], width: int) -> SetSums:
        """Of all blocks, as :func:`_set_sums` has them."""
        mean, spread, *rest = (torch.cat(columns) for columns in zip(*parts, strict=True))
        moved, inner, dx = (_with_size(rest[k : k + 3], width) for k in (0, 3, 6))
        g, g_squares, shift_squares = rest[9:]
        return SetSums(mean, square(spread) / width, moved, inner, dx, g, g_squares, shift_squares)


def _with_size(three: list[Tensor], width: int) -> Sums:
    """In float32, where no law is judged broken, the size's bound by the norm will do."""
    total, norm, size = three
    return Sums(total, norm, width**0.5 * norm if total.dtype == torch.float32 else size)


class _Room:
    """Memory for the tables of one block, used again for the next: fresh memory costs more than the sums."""

    def __init__(self) -> None:
        self.tables: tuple[Tensor, ...] = ()

    def of(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three tables like the block; the first block is the largest."""
        if not self.tables:
            self.tables = tuple(torch.empty_like(block, memory_format=torch.contiguous_format) for _ in range(3))
        first, second, third = (table[: len(block)] for table in self.tables)
        return first, second, third


def _set_sums(centered: bool, x, dx, dy, gain, shift, room: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Mean and norm of ``x - μ``; what :func:`_three` finds of three tables; sums of ``γ dy`` and of two squares.

    Leaves ``(y - β) dy`` and the squares of dy in the room, where the first was before.
    """
    terms, squares, moved = room
    mean = x.mean(1, keepdim=True) if centered else torch.zeros_like(x[:, :1])
    offset = torch.sub(x, mean, out=moved) if centered else x
    spread = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
    of_moved = _three(torch.mul(offset, dx, out=moved))
    torch.mul(dy, dy, out=squares)
    of_shift = torch.zeros_like(mean) if shift is None else _along(squares, square(shift))
    of_gain = _along(dy, gain), _along(squares, None if gain is None else square(gain))
    return [mean, spread, *of_moved, *_three(terms), *_three(dx), *of_gain, of_shift]


def _three(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum over each row, the root of that of squares, and that of absolute values, which float32 does without."""
    norm = torch.linalg.vector_norm(t, dim=1, keepdim=True)
    return t.sum(1, keepdim=True), norm, norm if t.dtype == torch.float32 else t.abs().sum(1, keepdim=True)


def _along(t: Tensor, factor: Tensor | None) -> Tensor:
    """``sum of factor t`` of each row, without a table of the products where one row or column of factors will do."""
    if factor is None:
        return t.sum(1, keepdim=True)
    if factor.shape[1] == 1:
        return factor * t.sum(1, keepdim=True)
    return (t @ factor[0])[:, None] if len(factor) == 1 else (factor * t).sum(1, keepdim=True)


class ChannelSums:
    """Sums over all rows, of shape ``(channels,)``: of each block in its own dtype, of the blocks in float64."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def add(self, dy: Tensor, room: tuple[Tensor, Tensor, Tensor], far: Tensor) -> None:
        """``far`` are squares of mean/σ, of shape ``(rows or 1, channels or 1)``.

        The room holds ``(y - β) dy`` and the squares of dy.
        """
        terms, squares, own = room
        if len(far) == 1:
            of_dy = squares.sum(0)
            moved = far[0] * of_dy
        elif far.shape[1] == 1:
            of_dy, moved = torch.cat([torch.ones_like(far), far], 1).T @ squares
        else:
            of_dy, moved = squares.sum(0), (far * squares).sum(0)
        of_terms = torch.mul(terms, terms, out=own).sum(0)
        sizes = absolute(dy, of_dy, 0), absolute(terms, of_terms, 0)
        self.blocks.append(torch.stack([dy.sum(0), sizes[0], of_dy, terms.sum(0), sizes[1], of_terms, moved]))

    @cached_property
    def of(self) -> dict[str, Tensor]:
        names = ("dy", "|dy|", "dy²", "z dy", "|z dy|", "(z dy)²", "(μ/σ dy)²")
        return dict(zip(names, torch.stack(self.blocks).double().sum(0), strict=True))


def _without_shift(y: Tensor, shift: Tensor | None, dy: Tensor, out: Tensor) -> None:
    """``(y - β) dy``."""
    torch.mul(y if shift is None else torch.sub(y, shift, out=out), dy, out=out)


def sums_of(record: Record, centered: bool, layout: Layout) -> tuple[SetSums, ChannelSums]:
    """One walk through the numbers where the sets are the rows, as in LayerNorm, and two elsewhere."""
    roles = record.raw_value("x"), record.raw_gradient("x"), record.raw_value("y"), record.raw_gradient("y")
    gain, shift = (record.value(role) if role in record.values else None for role in ("weight", "bias"))
    along = [None if t is None else layout.along_sets(t) for t in (gain, shift)]
    parameters, together = record.has("weight") or record.has("bias"), layout.sets is layout.rows
    tables, parts, channels = [layout.sets(t) for t in roles], [], ChannelSums()
    room = _Room()
    for block in blocks(*tables[0].shape, dtype=record.work):
        x, dx, y, dy = (record.cast(table[block]) for table in tables)
        own_gain, own_shift = (t if t is None or len(t) == 1 else t[block] for t in along)
        own_room = room.of(x)
        _without_shift(y, own_shift, dy, out=own_room[0])
        parts.append(_set_sums(centered, x, dx, dy, own_gain, own_shift, own_room))
        if together and parameters:
            mean, spread = parts[-1][:2]
            channels.add(dy, own_room, _far(record, mean, square(spread) / x.shape[1]))
    sums = SetSums.of(parts, tables[0].shape[1])
    if parameters and not together:
        far = layout.spread(far_of(record, sums))
        _add_channels(record, channels, layout.rows(roles[2]), layout.rows(roles[3]), shift, far)
    return sums, channels


def _add_channels(
    record: Record, channels: ChannelSums, outputs: Tensor, slopes: Tensor, shift: Tensor | None, far: Tensor
) -> None:
    room = _Room()
    for block in blocks(*outputs.shape, dtype=record.work):
        y, dy = record.cast(outputs[block]), record.cast(slopes[block])
        own_room = room.of(y)
        _without_shift(y, None if shift is None else shift.reshape(1, -1), dy, out=own_room[0])
        torch.mul(dy, dy, out=own_room[1])
        channels.add(dy, own_room, far if len(far) == 1 else far[block])


def far_of(record: Record, sums: SetSums) -> Tensor:
    """How far the mean is from zero, in units of the spread, squared."""
    return _far(record, sums.mean, sums.variance)


def _far(record: Record, mean: Tensor, variance: Tensor) -> Tensor:
    return square(mean) / (variance + eps_of(record))


def eps_of(record: Record) -> float:
    """The layer's, or what ``RMSNorm(eps=None)`` takes: the resolution of its arithmetic."""
    eps = record.options.get("eps", 1e-5)
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if record.values["x"].dtype == torch.float64 else torch.float32).eps
