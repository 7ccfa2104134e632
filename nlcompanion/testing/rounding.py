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

import functools
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
        difference, size, noise, side = (
            t.double().flatten(1) for t in (self.difference.abs(), self.size, self.noise, self.side)
        )
        floor = SIGMAS * noise + 8 * own * size
        excess = torch.where(difference > 0, difference / floor.clamp_min(1e-300), 0.0)
        worst = excess.argmax(1, keepdim=True)
        scale = size.gather(1, worst).clamp_min(1e-300)
        visible = square(floor).mean(1).sqrt() / square(side).mean(1).sqrt().clamp_min(1e-300)
        columns = [t.gather(1, worst)[:, 0] for t in (excess, difference / scale, floor / scale)]
        checks = []
        for k, (above, defect, relative, seen) in enumerate(torch.stack([*columns, visible], 1).tolist()):
            verdict = BROKEN if above > 1 else CANNOT_TELL if seen > resolution else LAWFUL
            head = f"{self.head} {k}" if self.head else ""
            checks.append(
                LawCheck(self.law, prefix + self.tensors, head, defect, relative, seen, verdict, self.survives)
            )
        return checks


@dataclass(frozen=True)
class Product:
    """``a^T b`` over the last axis but one, with its absolute sum and the variance of its rounding."""

    value: Tensor
    size: Tensor
    variance: Tensor

    @staticmethod
    def of(
        a: Tensor,
        b: Tensor,
        unit: float,
        *,
        a_squares: Tensor | None = None,
        b_squares: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> Product:
        """Shapes ``(..., n, p)`` and ``(..., n, r)``, with relative errors of ``unit`` in one of both.

        ``a_squares`` and ``b_squares`` are those of both, if they are known; ``spread`` is the sum of squares of what
        each number of b adds up, if it adds up several.
        """
        a_squares = square(a) if a_squares is None else a_squares
        b_squares = square(b) if b_squares is None else b_squares
        spread = b_squares if spread is None else spread
        if a.dtype == torch.float32:
            return Product._single(a, b, unit, a_squares, b_squares, spread)
        # a column has a scale of its own, below which float32 would lose its squares
        largest = a_squares, torch.maximum(b_squares, spread)
        a_scale, b_scale = (t.amax(-2, keepdim=True).sqrt().clamp_min(1e-150) for t in largest)
        scale = a_scale.mT * b_scale
        size = ((a / a_scale).float().abs().mT @ (b / b_scale).float().abs()).double() * scale
        squares = (a_squares / square(a_scale)).float().mT @ (spread / square(b_scale)).float()
        return Product(a.mT @ b, size, unit**2 * squares.double() * square(scale))

    @staticmethod
    def _single(a: Tensor, b: Tensor, unit: float, a_squares: Tensor, b_squares: Tensor, spread: Tensor) -> Product:
        """In float32, added up in float64 from here on; the size is bounded by the norms of the columns."""
        a_norm, b_norm = (t.sum(-2).sqrt() for t in (a_squares, b_squares))
        size, variance = a_norm[..., None] * b_norm[..., None, :], unit**2 * (a_squares.mT @ spread)
        return Product((a.mT @ b).double(), size.double(), variance.double())

    def __add__(self, other: Product) -> Product:
        return Product(self.value + other.value, self.size + other.size, self.variance + other.variance)


def balance(
    law: str, tensors: str, left: Product, right: Product, *, further: Tensor, copies: Tensor, head: str = ""
) -> Balance:
    """``left = right``, with independent errors on both sides, and the variance of ``further`` ones."""
    noise = (copies * (left.variance + right.variance + further)).sqrt()
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
    return t.abs().sum(axis)


def blocks(rows: int, width: int, *, dtype: torch.dtype = torch.float64) -> list[slice]:
    """Rows in blocks that stay in a processor's cache in the given dtype, which makes the sums several times faster."""
    step = max(1, (1 << 19) // dtype.itemsize // max(width, 1))
    return [slice(first, first + step) for first in range(0, rows, step)]


@functools.cache
def _weights(width: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def copies(*tables: Tensor) -> Tensor:
    """How many rows are alike on average, zero rows aside: they round alike, and their errors add up.

    Tables of shape ``(heads, ..., width)``, whose rows belong together; one number for each head.
    """
    keys = []
    for k, table in enumerate(tables):
        dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        keys.append((table.to(dtype) @ _weights(table.shape[-1], k, dtype).to(table.device)).flatten(1))
    key = functools.reduce(torch.add, keys).sort(1).values
    if not ((key[:, 1:] == key[:, :-1]) & (key[:, 1:] != 0)).any():
        return torch.ones(len(key), dtype=torch.float64, device=key.device)
    found = []
    for own in key:
        counts = torch.unique_consecutive(own[own != 0], return_counts=True)[1].double()
        found.append((square(counts).sum() / counts.sum().clamp_min(1)).clamp_min(1))
    return torch.stack(found)
