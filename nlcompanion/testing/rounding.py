r"""How much rounding may leave of a law that holds: the floors.

A law is a difference of sums of products, such as :math:`\sum_n x_{ni}\,dx_{nj} - \sum_o dW_{oi} W_{oj}`. Every stored
number carries a relative error of at most the unit roundoff :math:`u` (half of ``torch.finfo(dtype).eps``), and each
room of this folder adds what its layer rounds on the way. Errors of different numbers are taken as independent, so
their squares add up (a random walk), and

.. math:: \text{floor} = 6\,\sqrt{m}\,\Bigl(\sum_k (\delta_k)^2\Bigr)^{1/2}

with :math:`\delta_k` the bound of the error of the k-th product, which is three to four times its standard deviation,
and :math:`m` the number of equal rows, which round alike. A sum of :math:`n` numbers, accumulated in float32 at
least, adds :math:`\sqrt n\,u_{acc}` of the root of its sum of squares. The check's own sums are taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlcompanion.testing.report import BROKEN, CANNOT_TELL, LAWFUL, LawCheck

SIGMAS = 6.0


@dataclass(frozen=True)
class Precision:
    """Unit roundoff of what is stored, and of the sums that lead to it."""

    stored: float
    sums: float

    @staticmethod
    def of(*tensors: Tensor, dtype: torch.dtype | None = None) -> Precision:
        """The coarsest among the tensors' own, or that of ``dtype``: sums are in float32 at least."""
        dtypes = [dtype] if dtype is not None else [t.dtype for t in tensors]
        stored = max(torch.finfo(d).eps / 2 for d in dtypes)
        return Precision(stored, min(stored, torch.finfo(torch.float32).eps / 2))


@dataclass(frozen=True)
class Balance:
    """A law in numbers: entries of one shape, the first axis over the heads (or one).

    ``difference`` should vanish, ``size`` is the sum of its absolute terms, ``noise`` the root of the sum of squared
    rounding errors, ``side`` what stands on one side of the law.
    """

    law: str
    tensors: str
    difference: Tensor
    size: Tensor
    noise: Tensor
    side: Tensor
    head: str = ""
    survives: tuple[str, ...] = ()

    @staticmethod
    def whole(law: str, tensors: str, difference: Tensor, size: Tensor, noise: Tensor, side: Tensor) -> Balance:
        """Of tensors without an axis of heads."""
        return Balance(law, tensors, difference[None], size[None], noise[None], side[None])

    @staticmethod
    def cat(balances: Sequence[Balance], axis: int, head: str = "") -> Balance:
        """One law of several heads (axis 0) or blocks (axis 1)."""
        return Balance(
            balances[0].law,
            balances[0].tensors,
            torch.cat([found.difference for found in balances], axis),
            torch.cat([found.size for found in balances], axis),
            torch.cat([found.noise for found in balances], axis),
            torch.cat([found.side for found in balances], axis),
            head,
        )

    @property
    def settled(self) -> bool:
        """Found in float32, and so far below its floor that float64 would say the same.

        What overflows or vanishes there is not.
        """
        floor = SIGMAS * self.noise
        below = (self.difference.abs() <= floor / 2) & (floor > 1e-25) & floor.isfinite()
        return bool((below | (self.size == 0)).all())

    def judge(self, resolution: float, prefix: str = "") -> list[LawCheck]:
        """One verdict for each head."""
        own = torch.finfo(torch.float64).eps
        differences, sizes, sides = (t.double() for t in (self.difference, self.size, self.side))
        floors = SIGMAS * self.noise.double() + 8 * own * sizes
        checks = []
        for k in range(len(differences)):
            difference, floor, size = differences[k].abs(), floors[k], sizes[k]
            excess = torch.where(difference > 0, difference / floor.clamp_min(1e-300), 0.0).flatten()
            worst = int(excess.argmax())
            scale = max(float(size.flatten()[worst]), 1e-300)
            side = float(square(sides[k]).mean().sqrt())
            visible = float(square(floor).mean().sqrt()) / max(side, 1e-300)
            broken = float(excess[worst]) > 1
            verdict = BROKEN if broken else CANNOT_TELL if visible > resolution else LAWFUL
            defect, relative = (float(x.flatten()[worst]) / scale for x in (difference, floor))
            head = f"{self.head} {k}" if self.head else ""
            checks.append(
                LawCheck(self.law, prefix + self.tensors, head, defect, relative, visible, verdict, self.survives)
            )
        return checks


@dataclass(frozen=True)
class Product:
    """``a^T b`` over the last axis but one, with its absolute sum and the variance of its rounding."""

    value: Tensor
    size: Tensor
    variance: Tensor

    @staticmethod
    def of(a: Tensor, b: Tensor, a_error: Tensor | None = None, b_error: Tensor | None = None) -> Product:
        """Shapes ``(..., n, p)`` and ``(..., n, r)``; ``a_error`` holds squared errors, None is exact."""
        if a.dtype == torch.float32:
            return Product._single(a, b, a_error, b_error)
        value = a.mT @ b
        # a column has a scale of its own, below which float32 would lose its squares
        a_scale, b_scale = _column_scale(a, a_error), _column_scale(b, b_error)
        scale = a_scale.mT * b_scale
        a_single, b_single = (a / a_scale).float(), (b / b_scale).float()
        size = (a_single.abs().mT @ b_single.abs()).double() * scale
        variance = torch.zeros_like(value)
        if a_error is not None:
            variance += ((a_error / square(a_scale)).float().mT @ square(b_single)).double() * square(scale)
        if b_error is not None:
            variance += (square(a_single).mT @ (b_error / square(b_scale)).float()).double() * square(scale)
        return Product(value, size, variance)

    @staticmethod
    def _single(a: Tensor, b: Tensor, a_error: Tensor | None, b_error: Tensor | None) -> Product:
        """In float32, added up in float64 from here on; the size is bounded by the norms of the columns."""
        a_squares, b_squares = square(a), square(b)
        a_norm, b_norm = (t.sum(-2).sqrt() for t in (a_squares, b_squares))
        value, size = a.mT @ b, a_norm[..., None] * b_norm[..., None, :]
        variance = torch.zeros_like(value)
        if a_error is not None:
            variance += a_error.mT @ b_squares
        if b_error is not None:
            variance += a_squares.mT @ b_error
        return Product(value.double(), size.double(), variance.double())

    def __add__(self, other: Product) -> Product:
        return Product(self.value + other.value, self.size + other.size, self.variance + other.variance)


def _column_scale(t: Tensor, squared_error: Tensor | None) -> Tensor:
    """The largest number of each column, or its largest error where that is larger, as in a column of zeros."""
    largest = t.abs().amax(-2, keepdim=True)
    if squared_error is not None:
        largest = torch.maximum(largest, squared_error.amax(-2, keepdim=True).sqrt())
    return largest.clamp_min(1e-150)


def balance(law: str, tensors: str, left: Product, right: Product, *, copies: float = 1.0, head: str = "") -> Balance:
    """``left = right``, with independent errors on both sides."""
    noise = math.sqrt(copies) * (left.variance + right.variance).sqrt()
    side = 0.5 * (left.value + right.value).abs()
    return Balance(law, tensors, left.value - right.value, left.size + right.size, noise, side, head)


def square(t: Tensor) -> Tensor:
    """A product, which is several times faster than a power."""
    return t * t


def absolute(t: Tensor, squares: Tensor, axis: int) -> Tensor:
    """The sum of absolute values along an axis, a law's size; ``squares`` is that of squares.

    In float32, where no law is judged broken, its bound will do.
    """
    if t.dtype == torch.float32:
        return (squares * t.shape[axis]).sqrt()
    return t.abs().sum(axis, keepdim=axis == 1)


def blocks(rows: int, width: int, *, dtype: torch.dtype = torch.float64) -> list[slice]:
    """Rows in blocks that stay in a processor's cache in the given dtype, which makes the sums several times faster."""
    step = max(1, (1 << 19) // dtype.itemsize // max(width, 1))
    return [slice(first, first + step) for first in range(0, rows, step)]


def copies(*rows: Tensor) -> float:
    """How many rows are alike on average, zero rows aside: they round alike, and their errors add up."""
    keys = []
    for k, table in enumerate(rows):
        dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(k)
        weights = torch.rand(table.shape[1], dtype=dtype, generator=generator).to(table.device)
        keys.append(
            torch.cat([table[block].to(dtype) @ weights for block in blocks(*table.shape, dtype=dtype)]).double()
        )
    key = torch.stack(keys).sum(0)
    counts = torch.unique(key[key != 0], return_counts=True)[1].double()
    return float((square(counts).sum() / counts.sum().clamp_min(1)).clamp_min(1))
