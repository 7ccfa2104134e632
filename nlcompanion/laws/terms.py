"""The tensors' shares of a law: bilinear forms of one parameter each. :class:`nlcompanion.Law` adds them up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

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
        return self.exponents(q, s) * q

    def move(self, q: Tensor, s: Tensor) -> Tensor:
        return torch.exp(self.exponents(q, s)) * q

    def exponents(self, q: Tensor, s: Tensor) -> Tensor:
        """By what power of e each entry grows."""
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


@dataclass(frozen=True)
class Slices:
    """``sum of x * y`` over slices of a tensor, for each of ``n`` neurons; or the matrix of all pairs of them.

    The tensor is seen in the shape ``view`` and cut along its axes ``keep``; ``index`` has one row of slice numbers for
    each neuron. With ``matrix`` the slices of two neurons meet: those that are written to as ``x y^T`` (positive
    coefficient), those that are read as ``y x^T``. With ``alone`` there is one neuron and the result is a number.
    """

    name: str
    place: slice
    shape: tuple[int, ...]
    coefficient: float
    view: tuple[int, ...]
    keep: tuple[int, ...]
    index: tuple[tuple[int, ...], ...]
    matrix: bool = False
    alone: bool = False

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        if self.matrix:
            x, y = self._neurons(x).flatten(1), self._neurons(y).flatten(1)
            return x @ y.T if self.coefficient > 0 else y @ x.T
        return self._sum((self._rows(x) * self._rows(y)).sum(1))

    def lengths(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.coefficient**2
        if not self.matrix:
            return self.pair(g, g), weight * self.pair(q, q)
        g, q = (self._neurons(x).square().sum((1, 2)) for x in (g, q))
        d = len(g)
        if self.coefficient > 0:
            return g[:, None].expand(d, d), weight * q[None].expand(d, d)
        return g[None].expand(d, d), weight * q[:, None].expand(d, d)

    def generate(self, q: Tensor, s: Tensor) -> Tensor:
        if self.matrix:
            return self._mixed(q, self._turn(s), fresh=True)
        return self._spread(self.coefficient * s) * q

    def move(self, q: Tensor, s: Tensor) -> Tensor:
        if self.matrix:
            return self._mixed(q, matrix_exp(self._turn(s)), fresh=False)
        return torch.exp(self.exponents(q, s)) * q

    def exponents(self, q: Tensor, s: Tensor) -> Tensor:
        """By what power of e each entry grows; of neurons that stand alone, not of a matrix of them."""
        return self._spread(self.coefficient * s)

    def _turn(self, A: Tensor) -> Tensor:
        return self.coefficient * (A if self.coefficient > 0 else A.T)

    def _mixed(self, q: Tensor, matrix: Tensor, *, fresh: bool) -> Tensor:
        rows = self._rows(q)
        out = torch.zeros_like(rows) if fresh else rows.clone()
        for k in range(len(self.index[0])):
            which = self._which[:, k]
            out[which] = matrix @ rows[which]
        return self._back(out)

    @property
    def _which(self) -> Tensor:
        return torch.tensor(self.index)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.keep, *(k for k in range(len(self.view)) if k not in self.keep))

    @property
    def slices(self) -> int:
        return math.prod(self.view[k] for k in self.keep)

    def _rows(self, x: Tensor) -> Tensor:
        """All slices as rows."""
        return x.reshape(self.view).permute(self._order).reshape(self.slices, -1)

    def _back(self, rows: Tensor) -> Tensor:
        order = self._order
        x = rows.reshape([self.view[k] for k in order])
        return x.permute(*(order.index(k) for k in range(len(order)))).reshape(self.shape)

    def _neurons(self, x: Tensor) -> Tensor:
        return self._rows(x)[self._which.to(x.device)]

    def _sum(self, of_slices: Tensor) -> Tensor:
        summed = of_slices[self._which.to(of_slices.device)].sum(1)
        return summed[0] if self.alone else summed

    def _spread(self, of_neurons: Tensor) -> Tensor:
        """One number for each neuron, in the shape of the tensor; 0 where it has no neuron."""
        of_neurons = of_neurons.expand(len(self.index)) if of_neurons.ndim == 0 else of_neurons
        values = torch.zeros(self.slices, dtype=of_neurons.dtype)
        values[self._which] = of_neurons[:, None]
        shape = [n if k in self.keep else 1 for k, n in enumerate(self.view)]
        return values.reshape(shape).expand(self.view).reshape(self.shape)

    def trace(self) -> Slices:
        return replace(self, index=(sum(self.index, ()),), matrix=False, alone=True)

    @property
    def _block_text(self) -> str:
        """The slices of all neurons together: ``weight[4:8, :]``."""
        numbers = sorted(sum(self.index, ()))
        if len(numbers) == self.slices:
            return self.name
        first, last = numbers[0], numbers[-1]
        inside = f"{first}:{last + 1}" if numbers == list(range(first, last + 1)) else "block"
        if len(self.shape) == 1 or self.view != self.shape:
            return f"{self.name}[{inside}]"
        return f"{self.name}[{', '.join(inside if k in self.keep else ':' for k in range(len(self.shape)))}]"

    @property
    def slice_text(self) -> str:
        """Which slices, as one writes it: ``weight[i, :]``, ``weight[8+i, :]``."""
        if len(self.index[0]) == self.slices and self.alone:
            return self.name
        numbers = [row[0] for row in self.index]
        step = len(self.index[0])
        if self.alone:
            inside = str(numbers[0]) if step == 1 else f"{min(self.index[0])}..{max(self.index[0])}"
        elif all(row == tuple(range(row[0], row[0] + step)) for row in self.index) and numbers == list(
            range(numbers[0], numbers[0] + step * len(numbers), step)
        ):
            start = f"{numbers[0]}+" if numbers[0] else ""
            inside = f"{start}i" if step == 1 else f"{start}{step}i..{start}{step}i+{step - 1}"
        else:
            inside = "of i"
        if len(self.keep) > 1 or self.view != self.shape:
            return f"{self.name}[{inside}]" if len(self.shape) == 1 else f"{self.name}[{inside}, :]"
        return f"{self.name}[{', '.join(inside if k in self.keep else ':' for k in range(len(self.shape)))}]"

    @property
    def text(self) -> str:
        if self.matrix:
            block = self._block_text
            return f"{block} {block}ᵀ" if self.keep == (0,) else f"{block}ᵀ {block}"
        return f"|{self.slice_text}|²"


@dataclass(frozen=True)
class Shift(Slices):
    """``coefficient * sum of x`` over slices: the charge of a translation, linear where all others are squares.

    As a bilinear form it is that of points ``(q, 1)`` and of steps and gradients ``(d, 0)``: half the coefficient times
    the sum of the step.
    """

    def pair(self, x: Tensor, y: Tensor) -> Tensor:
        """Half the sum of ``x``, a step, whatever the point ``y``."""
        return self.half_sum(x)

    def half_sum(self, x: Tensor) -> Tensor:
        return self._sum(self._rows(x).sum(1)) / 2

    def magnitude(self, x: Tensor) -> Tensor:
        return self._sum(self._rows(x).abs().sum(1))

    def lengths(self, g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(q)
        return super().pair(g, g), self.coefficient**2 / 4 * super().pair(ones, ones)

    def generate(self, q: Tensor, s: Tensor) -> Tensor:
        return self._spread(self.coefficient / 2 * s).expand(self.shape).clone()

    def move(self, q: Tensor, s: Tensor) -> Tensor:
        return q + self.generate(q, s)

    @property
    def text(self) -> str:
        return f"Σ {self.slice_text}"


Term = Squares | Gram | Torque | Slices


def expression(terms: tuple[Term, ...]) -> str:
    """The charge in writing: ``|a|² - 2 |b|²``."""
    parts = []
    for term in terms:
        size = f"{abs(term.coefficient):g} " if abs(term.coefficient) != 1 else ""
        parts.append(f"{'-' if term.coefficient < 0 else '+'} {size}{term.text}")
    return " ".join(parts).removeprefix("+ ")


def squared_lengths(terms: Sequence[Term], g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    r"""``(|g|^2, |xi|^2)`` over the part of one tensor that the terms move, and of the generator that they add up to.

    Terms may meet in one entry: an affine law scales and shifts the same slice, :math:`\xi = c\,q + c'/2`, and a shared
    matrix is scaled by rows and by columns, :math:`\xi = 0` where these meet. There lengths do not add up.
    """
    if len(terms) > 1 and _overlap(terms, q):
        return _lengths_of_overlapping(terms, g, q)
    shares = [term.lengths(g, q) for term in terms]
    return reduce(torch.add, [of_g for of_g, _ in shares]), reduce(torch.add, [of_xi for _, of_xi in shares])


def _overlap(terms: Sequence[Term], q: Tensor) -> bool:
    """Whether two terms of stacked neurons move the same entry; of matrices of neurons nothing is said."""
    if any(isinstance(term, Gram | Torque) or (isinstance(term, Slices) and term.matrix) for term in terms):
        return False
    one = torch.ones((), dtype=q.dtype, device=q.device)
    times = [(term.generate(torch.ones_like(q), one) != 0).int() for term in terms]
    return bool(reduce(torch.add, times).max() > 1)


def _lengths_of_overlapping(terms: Sequence[Term], g: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Neuron by neuron, from the entries themselves."""
    n = _neurons_of(terms[0])
    eye = torch.eye(n, dtype=q.dtype, device=q.device)
    of_each: Sequence[Tensor] = eye.unbind() if n else [torch.ones((), dtype=q.dtype, device=q.device)]
    shifts: list[Term] = [term for term in terms if isinstance(term, Shift)]
    scales: list[Term] = [term for term in terms if not isinstance(term, Shift)]
    slopes, generators = [], []
    for s in of_each:
        moves = torch.zeros_like(q, dtype=torch.bool)  # what a row and a column move in opposite ways stays
        for same in (part for part in (scales, shifts) if part):
            moves |= reduce(torch.add, [term.generate(torch.ones_like(q), s) for term in same]) != 0
        slopes.append((g * moves).square().sum())
        generators.append(reduce(torch.add, [term.generate(q, s) for term in terms]).square().sum())
    if n:
        return torch.stack(slopes), torch.stack(generators)
    return slopes[0], generators[0]


def _neurons_of(term: Term) -> int:
    """How many neurons a term has a number for; 0 if it is one number."""
    if isinstance(term, Slices):
        return 0 if term.alone else len(term.index)
    if isinstance(term, Squares) and term.axis is not None and term.index is None:
        return term.shape[term.axis]
    return 0


def of_neuron(term: Term, index: int) -> Squares | Slices:
    """A term of a stack, of one of its neurons alone."""
    if isinstance(term, Slices):
        return replace(term, index=(term.index[index],), alone=True)
    if isinstance(term, Squares):
        return replace(term, index=index)
    raise TypeError(f"{term.text} is a matrix over pairs of neurons, of which none stands alone")


def summed(term: Term) -> Squares | Slices:
    """A term of the sum over a stack, or of a matrix's trace."""
    if isinstance(term, Gram | Slices):
        return term.trace()
    if isinstance(term, Squares):
        return replace(term, axis=None)
    raise TypeError(f"{term.text} is an antisymmetric matrix, whose trace is 0 whatever the parameters are")


# --- all terms of one tensor ------------------------------------------------------------------------------------------


def generated(terms: Sequence[Term], x: Tensor, s: Tensor) -> Tensor:
    """The direction in which the terms of one tensor move it: their sum."""
    return reduce(torch.add, [term.generate(x, s) for term in terms])


def moved(terms: Sequence[Term], x: Tensor, s: Tensor) -> Tensor:
    """A tensor at a finite distance along all its terms.

    Most commute and act one after the other: on slices of their own, or on rows and on columns. A shift does not
    commute with a scale, and they flow together.
    """
    shifts = [term for term in terms if isinstance(term, Shift)]
    others = [term for term in terms if not isinstance(term, Shift)]
    if shifts and others:
        growth = reduce(torch.add, [_exponents_of(term, x, s) for term in others])
        return affine_flow(x, growth, generated(shifts, x, s))
    for term in terms:
        x = term.move(x, s)
    return x


def _exponents_of(term: Term, x: Tensor, s: Tensor) -> Tensor:
    if isinstance(term, Squares) or (isinstance(term, Slices) and not term.matrix):
        return term.exponents(x, s)
    raise TypeError(
        f"{term.text} mixes neurons of {term.name}, which the same law shifts; their common flow is not known here: "
        "move along a law of single neurons"
    )


def affine_flow(x: Tensor, growth: Tensor, drift: Tensor) -> Tensor:
    r"""Where ``x' = growth x + drift`` leads in unit time, entry by entry: :math:`e^c x + \frac{e^c - 1}{c}\,\tau`.

    Example:
        >>> import torch
        >>> affine_flow(torch.ones(2), torch.tensor([0.0, 0.0]), torch.tensor([0.0, 3.0])).tolist()
        [1.0, 4.0]
    """
    return torch.exp(growth) * x + _mean_growth(growth) * drift


def _mean_growth(c: Tensor) -> Tensor:
    """The mean of ``exp(c t)`` over ``0 < t < 1``: ``(exp(c) - 1) / c``, smooth at 0."""
    small = c.abs() < 1e-2
    series = 1 + c / 2 * (1 + c / 3 * (1 + c / 4 * (1 + c / 5 * (1 + c / 6 * (1 + c / 7)))))
    large = torch.where(small, torch.ones_like(c), c)
    return torch.where(small, series, torch.expm1(large) / large)


# --- one law of several ----------------------------------------------------------------------------------------------


def key_of(term: Term) -> tuple:
    """The same for terms of two laws that pair a tensor in the same way."""
    if isinstance(term, Slices):
        sign = term.matrix and term.coefficient > 0
        return type(term), term.name, (term.view, term.keep, term.index, term.matrix, term.alone, sign)
    how = (term.axis, term.index) if isinstance(term, Squares) else getattr(term, "rows", None)
    return type(term), term.name, how


def pairing_size(term: Term) -> int:
    """How many numbers a pairing has."""
    if isinstance(term, Slices):
        return 1 if term.alone else len(term.index) ** (2 if term.matrix else 1)
    if isinstance(term, Squares):
        return 1 if term.axis is None or term.index is not None else term.shape[term.axis]
    return term.shape[0 if isinstance(term, Gram) and term.rows else -1] ** 2
