"""The tensors' shares of a law: bilinear forms of one parameter each. :class:`nlcompanion.Law` adds them up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nlcompanion._matrix_exp import matrix_exp


@dataclass(frozen=True)
class Squares:
    """``sum of x * y``: over the whole tensor (``axis`` None), or for each index of ``axis``, or for one of them."""

    name: str
    place: slice  # in the flat vector
    shape: tuple[int, ...]
    coefficient: float
    axis: int | None = None
    index: int | None = None

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        if self.index is not None:
            x, y = x.select(self.axis or 0, self.index), y.select(self.axis or 0, self.index)
        if self.axis is None or self.index is not None:
            return torch.dot(x.reshape(-1), y.reshape(-1))
        product = x * y
        others = [k for k in range(x.ndim) if k != self.axis]
        return product.sum(others) if others else product

    def lengths(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Squared lengths of the gradient and of the generator, as far as this tensor goes."""
        return self.pair(g, g), self.coefficient**2 * self.pair(q, q)

    def generate(self, q: Tensor, s: Tensor) -> Tensor:
        return self._exponents(q, s) * q

    def move(self, q: Tensor, s: Tensor) -> Tensor:
        return torch.exp(self._exponents(q, s)) * q

    def _exponents(self, q: Tensor, s: Tensor) -> Tensor:
        if self.index is not None:
            chosen = torch.zeros_like(q)
            chosen.select(self.axis or 0, self.index).fill_(1.0)
            return self.coefficient * s * chosen
        if s.ndim:
            s = s.view([-1 if k == self.axis else 1 for k in range(q.ndim)])
        return self.coefficient * s * torch.ones_like(q)

    @property
    def text(self) -> str:
        inside = self.name
        if self.axis is not None:
            which = "i" if self.index is None else str(self.index)
            inside += f"[{', '.join(which if k == self.axis else ':' for k in range(len(self.shape)))}]"
        return f"|{inside}|²"


@dataclass(frozen=True)
class Gram:
    """A matrix of products: of rows, ``x y^T``, or of columns, ``y^T x``; a bias counts as one column."""

    name: str
    place: slice
    shape: tuple[int, ...]
    coefficient: float
    rows: bool

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self._matrix(x), self._matrix(y)
        return x @ y.T if self.rows else y.T @ x

    def lengths(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        along = 1 if self.rows else 0
        g, q = (self._matrix(x).square().sum(along) for x in (g, q))
        d = len(g)
        if self.rows:  # entry (i, j) is <g_i, q_j>
            return g[:, None].expand(d, d), q[None].expand(d, d)
        return g[None].expand(d, d), q[:, None].expand(d, d)

    def generate(self, q: Tensor, A: Tensor) -> Tensor:
        return self._apply(self.coefficient * A, q)

    def move(self, q: Tensor, A: Tensor) -> Tensor:
        return self._apply(matrix_exp(self.coefficient * A), q)

    def _apply(self, A: Tensor, q: Tensor) -> Tensor:
        q = self._matrix(q)
        return (A @ q if self.rows else q @ A).reshape(self.shape)

    def _matrix(self, x: Tensor) -> Tensor:
        return x if x.ndim == 2 else x[:, None]

    def trace(self) -> Squares:
        return Squares(self.name, self.place, self.shape, self.coefficient)

    @property
    def text(self) -> str:
        return f"{self.name} {self.name}ᵀ" if self.rows else f"{self.name}ᵀ {self.name}"


@dataclass(frozen=True)
class Torque:
    """The antisymmetric matrix ``x^T y - y^T x`` of a weight; a vector counts as one row."""

    name: str
    place: slice
    shape: tuple[int, ...]
    coefficient: float = 1.0

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        product = self._matrix(x).T @ self._matrix(y)
        return product - product.T

    def lengths(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        g, q = (self._matrix(x).square().sum(0) for x in (g, q))
        return g[:, None] + g, q[:, None] + q

    def generate(self, q: Tensor, S: Tensor) -> Tensor:
        return (self._matrix(q) @ (S.T - S)).reshape(self.shape)

    def move(self, q: Tensor, S: Tensor) -> Tensor:
        return (self._matrix(q) @ matrix_exp(S.T - S)).reshape(self.shape)

    def _matrix(self, x: Tensor) -> Tensor:
        return x if x.ndim == 2 else x[None]

    @property
    def text(self) -> str:
        return f"vᵀ {self.name} - {self.name}ᵀ v"


Term = Squares | Gram | Torque


def expression(terms: tuple[Term, ...]) -> str:
    """The charge in writing: ``|a|² - 2 |b|²``."""
    parts = []
    for term in terms:
        size = f"{abs(term.coefficient):g} " if abs(term.coefficient) != 1 else ""
        parts.append(f"{'-' if term.coefficient < 0 else '+'} {size}{term.text}")
    return " ".join(parts).removeprefix("+ ")


def of_neuron(terms: tuple[Term, ...], index: int) -> tuple[Squares, ...]:
    return tuple(replace(cast(Squares, term), index=index) for term in terms)


def summed(terms: tuple[Term, ...]) -> tuple[Squares, ...]:
    """The terms of the sum over a stack, or of a matrix's trace."""
    return tuple(term.trace() if isinstance(term, Gram) else replace(cast(Squares, term), axis=None) for term in terms)
