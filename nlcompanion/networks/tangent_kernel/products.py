r"""Inner products of the gradients of two blocks of samples.

.. math:: \Bigl\langle \sum_p s_{icp}\, a_{ip}^T,\; \sum_{p'} s_{jdp'}\, a_{jp'}^T \Bigr\rangle
          = \sum_{pp'} \langle a_{ip}, a_{jp'} \rangle\, \langle s_{icp}, s_{jdp'} \rangle

With one position that is a product of two Gram matrices, entry by entry. With many it may be cheaper to form the
gradients by this one parameter after all; each product takes the way with fewer multiplications.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nlcompanion.networks.tangent_kernel.gradients import Gradients, Lookup, Outer, Rows

STRIP = 2**23  # bytes of a product's temporaries, unless a single pair of samples needs more


def add_product(target: Tensor, left: Gradients, right: Gradients, strip: int = STRIP) -> None:
    """Add the inner products to ``target``: ``(b, b')`` summed over equal outputs, or ``(b, b', C, C)``."""
    full = target.ndim == 4
    if isinstance(left, Outer) and isinstance(right, Outer) and _by_grams(left, right, full):
        _add_grams(target, left, right, strip)
    elif isinstance(left, Lookup) and isinstance(right, Lookup) and _by_matches(left, right):
        _add_matches(target, left, right, strip)
    else:
        _add_rows(target, left, right, strip)


def rows_possible(gradients: Gradients, full: bool) -> bool:
    """Whether products of some number of samples form the gradients."""
    if isinstance(gradients, Outer):  # of many samples, since forming them pays the more often they are used
        _, C, _, P, O = gradients.slopes.shape  # noqa: E741
        each, I = C * C if full else C, gradients.inputs.shape[-1]  # noqa: E741
        return P * P * (I + each * O) > each * I * O
    return not (isinstance(gradients, Lookup) and _by_matches(gradients, gradients))


def pair_bytes(gradients: Gradients, full: bool) -> int:
    """Of the temporaries of one pair of samples, the smallest that a product is made of."""
    if isinstance(gradients, Rows):
        return 0
    C, P = gradients.slopes.shape[1], gradients.slopes.shape[-2]
    return _pair_bytes(C, P, P, full, gradients.slopes.element_size())


def _pair_bytes(C: int, P: int, Q: int, full: bool, itemsize: int = 8) -> int:
    return itemsize * P * Q * (2 + (2 * C * C if full else 1))


def _by_grams(left: Outer, right: Outer, full: bool) -> bool:
    b, C, G, P, O = left.slopes.shape  # noqa: E741
    (d, *_), Q, I = right.slopes.shape, right.inputs.shape[2], left.inputs.shape[-1]  # noqa: E741
    grams = G * b * d * P * Q * (I + (C * C if full else C) * O)
    rows = G * C * I * O * (b * P + d * Q + b * d * (C if full else 1))
    return grams <= rows


def _by_matches(left: Lookup, right: Lookup) -> bool:
    return left.slopes.shape[2] * right.slopes.shape[2] <= left.table


def _add_rows(target: Tensor, left: Gradients, right: Gradients, strip: int) -> None:
    values = right.rows()
    if target.ndim == 2:
        rows = values if left is right else left.rows()
        target.addmm_(rows.flatten(1), values.flatten(1).T)
        return
    columns = values.flatten(0, 1).T
    step = _step(len(target), 8 * target[0].numel(), strip)
    for i in range(0, len(target), step):
        some = slice(i, i + step)
        rows = values[some] if left is right else left.part(some).rows()
        block = rows.flatten(0, 1) @ columns
        target[some] += block.view(len(rows), rows.shape[1], len(values), -1).transpose(1, 2)


def _add_grams(target: Tensor, left: Outer, right: Outer, strip: int) -> None:
    for g in range(left.inputs.shape[1]):
        _add_pairs(target, left.slopes[:, :, g], right.slopes[:, :, g], _InputGram(left, right, g), strip)


def _add_matches(target: Tensor, left: Lookup, right: Lookup, strip: int) -> None:
    _add_pairs(target, left.slopes, right.slopes, _Matches(left, right), strip)


class _InputGram:
    """Inner products of inputs, ``(b, P, b', P')``."""

    def __init__(self, left: Outer, right: Outer, group: int):
        self.left, self.right = left.inputs[:, group], right.inputs[:, group]

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        a, b = self.left[rows], self.right[columns]
        return (a.flatten(0, 1) @ b.flatten(0, 1).T).view(*a.shape[:2], *b.shape[:2])


class _Matches:
    """1 where two positions looked up the same entry."""

    def __init__(self, left: Lookup, right: Lookup):
        self.left, self.right, self.dtype = left.entries, right.entries, left.slopes.dtype

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        return (self.left[rows, :, None, None] == self.right[columns]).to(self.dtype)


def _add_pairs(target: Tensor, left: Tensor, right: Tensor, gram: Callable[[slice, slice], Tensor], strip: int) -> None:
    """Slopes ``(b, C, P, O)`` against each other, entry by entry times the inputs' ``gram``, in strips."""
    C, P, Q = left.shape[1], left.shape[2], right.shape[2]
    pair = _pair_bytes(C, P, Q, target.ndim == 4)
    across = _step(len(right), pair, strip)
    down = _step(len(left), pair * across, strip)
    for j in range(0, len(right), across):
        columns = slice(j, j + across)
        s = right[columns]
        flat = s.permute(1, 3, 0, 2).flatten(2).flatten(0, 1) if target.ndim == 2 else None  # (C O, b' P')
        for i in range(0, len(left), down):
            rows = slice(i, i + down)
            r, weights = left[rows], gram(rows, columns)
            if flat is not None:
                slopes = (r.transpose(1, 2).flatten(2).flatten(0, 1) @ flat).view(weights.shape)
                if P == Q == 1:
                    target[rows, columns].addcmul_(weights[:, 0, :, 0], slopes[:, 0, :, 0])
                else:
                    target[rows, columns] += weights.mul_(slopes).sum((1, 3))
            else:
                slopes = (r.flatten(0, 2) @ s.flatten(0, 2).T).view(len(r), C, P, len(s), C, Q)
                target[rows, columns] += slopes.mul_(weights[:, None, :, :, None]).sum((2, 5)).transpose(1, 2)


def _step(most: int, each: int, strip: int) -> int:
    return max(1, min(most, strip // each))


def symmetrize(block: Tensor, strip: int = STRIP) -> None:
    """In place, the mean of a block and its mirror image: a product A A^T need not be symmetric to the last bit."""
    step = _step(len(block), 3 * 8 * block[0].numel(), strip)
    for i in range(0, len(block), step):
        some, rest = slice(i, i + step), slice(i, None)
        mean = (block[some, rest] + mirrored(block[rest, some])) / 2
        block[some, rest] = mean
        block[rest, some] = mirrored(mean)


def mirrored(block: Tensor) -> Tensor:
    """Samples exchanged, and with them their outputs: entry ``(j, i, d, c)`` in place of ``(i, j, c, d)``."""
    return block.transpose(0, 1).transpose(2, 3) if block.ndim == 4 else block.T
