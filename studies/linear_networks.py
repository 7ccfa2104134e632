"""Deep linear networks on whitened digits: balanced starts, flows of many at once, and what noise wears down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import nlcompanion as nl
from nlcompanion import FlatLoss, Trajectory, integrate
from studies.many_seeds import draw_rows, mean_and_error

HIDDEN = 10  # as many as classes, in every hidden layer


@dataclass(frozen=True)
class WhitenedDigits:
    r"""Digits as uncorrelated numbers of variance 1, and the linear map :math:`\Phi` that fits their labels best.

    Attributes:
        inputs: twelve principal components and a constant 1, ``(samples, 13)``.
        targets: a 1 at the right digit, ``(samples, 10)``.
        optimum: the mean product of targets and inputs, ``(10, 13)``.
        out, strength, into: its singular value decomposition; ``strength`` holds those of the ten modes.
    """

    inputs: Tensor
    targets: Tensor
    optimum: Tensor
    out: Tensor
    strength: Tensor
    into: Tensor

    def modes(self, P: Tensor) -> Tensor:
        """The strengths of the ten modes in a product of layers, or in a stack of them."""
        return (self.out.T @ P @ self.into.T).diagonal(dim1=-2, dim2=-1)

    def weak_start(self, size: float) -> Tensor:
        """The product whose modes all have this strength."""
        return size * self.out @ self.into


def oriented_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition in which the largest entry of every left vector is positive.

    A decomposition leaves the signs of its vectors free, and each processor chooses its own: what is drawn at random
    beside them would then belong to other coordinates.

    Example:
        >>> left, sizes, right = oriented_svd(torch.tensor([[-2.0, 0.0], [0.0, -1.0]]))
        >>> left.diag().tolist(), right.diag().tolist()
        ([1.0, 1.0], [-1.0, -1.0])
    """
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))[0]
    return left * largest.sign(), sizes, right * largest.sign()[:, None]


@cache
def whitened_digits() -> WhitenedDigits:
    """The training digits, whitened.

    Example:
        >>> data = whitened_digits()
        >>> bool((data.inputs.T @ data.inputs / len(data.inputs) - torch.eye(13)).abs().max() < 1e-12)
        True
    """
    images, labels = nl.digits("train").tensors(flatten=True)
    images = images.double()
    U, *_ = oriented_svd(images - images.mean(0))
    inputs = torch.cat([torch.ones(len(U), 1, dtype=U.dtype), U[:, :12] * len(U) ** 0.5], dim=1)
    targets = one_hot(labels, 10).double()
    optimum = targets.T @ inputs / len(inputs)
    return WhitenedDigits(inputs, targets, optimum, *oriented_svd(optimum))


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance, mean over the samples."""
    return (outputs - targets).square().sum(1).mean() / 2


def deep_loss(weights: Sequence[Tensor], optimum: Tensor) -> tuple[FlatLoss, Tensor]:
    r"""The loss :math:`\frac12\lVert P - \Phi\rVert_F^2` of a deep linear network, and the flat vector of its weights.

    Only :math:`\Phi` matters, so as many artificial inputs as it has columns stand for the data.
    """
    d = optimum.shape[1]
    model = nl.mlp((d, *(len(W) for W in weights)), "linear")
    f = nl.flat_loss(model, d**0.5 * torch.eye(d).double(), d**0.5 * optimum.T, half_squared_error)
    return f, f.flatten(dict(zip(f.names, weights, strict=True)))


def product(f: FlatLoss, q: Tensor) -> Tensor:
    """The one matrix that a deep linear network computes."""
    return torch.linalg.multi_dot([*f.unflatten(q).values()][::-1])


def random_rotation(seed: int, d: int = HIDDEN) -> Tensor:
    """An orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def balanced_factors(P: Tensor, layers: int) -> list[Tensor]:
    """Layers whose product is ``P`` and whose charges vanish, with a random rotation in each hidden layer.

    Example:
        >>> first, second = balanced_factors(torch.eye(10, 13).double(), 2)
        >>> bool((first @ first.T - second.T @ second).norm() < 1e-12)
        True
    """
    a, s, b = oriented_svd(P)
    frames = [b.T, *(random_rotation(k) for k in range(layers - 1)), a]
    return [frames[j + 1] * s ** (1 / layers) @ frames[j].T for j in range(layers)]


def end_to_end_velocity(P: Tensor, layers: int, optimum: Tensor) -> Tensor:
    """The velocity of a balanced network's product (Arora, Cohen and Hazan)."""
    a, s, b = torch.linalg.svd(P, full_matrices=False)

    def power(frame: Tensor, k: int) -> Tensor:
        return frame * s ** (2 * k / layers) @ frame.T if k else torch.eye(len(frame)).double()

    residual = optimum - P
    return reduce(torch.add, [power(a, layers - 1 - j) @ residual @ power(b.T, j) for j in range(layers)])


def flow_of_networks(starts: Sequence[Sequence[Tensor]], optimum: Tensor, **solver) -> tuple[Trajectory, Tensor]:
    """Gradient flow of many networks of one shape at once, and their products.

    Args:
        starts: for each network its layers, first to last.
        solver: as for :func:`nlcompanion.integrate`.

    Returns:
        The trajectory of all weights, and the products, ``(T, networks, 10, 13)``.
    """
    stacks = [torch.stack(layers) for layers in zip(*starts, strict=True)]
    sizes, shapes = [stack.numel() for stack in stacks], [stack.shape for stack in stacks]

    def products(q: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(q.split(sizes), shapes, strict=True)]
        P = pieces[0]
        for W in pieces[1:]:
            P = W @ P
        return P

    def loss(q: Tensor) -> Tensor:  # of a sum of losses each network follows its own
        return (products(q) - optimum).square().sum() / 2

    q0 = torch.cat([stack.reshape(-1) for stack in stacks])
    path = integrate(nl.gradient_flow(), loss, q0, **solver)
    return path, torch.stack([products(q) for q in path.q])


def excess_loss(products: Tensor, optimum: Tensor) -> Tensor:
    """Loss above the optimum, of a stack of products."""
    return (products - optimum).square().sum((-2, -1)) / 2


# --- starts ---------------------------------------------------------------------------------------------------------


def within_margin(data: WhitenedDigits, fraction: float, layers: int, seed: int) -> tuple[list[Tensor], float]:
    """A balanced start nearer to the optimum than its least singular value by a margin, and the margin.

    Args:
        fraction: the margin as a fraction of the least singular value, between 0 and 1.
        seed: of the direction in which the start lies.
    """
    generator = torch.Generator().manual_seed(seed)
    aside = torch.randn(data.optimum.shape, generator=generator, dtype=torch.float64)
    least = float(data.strength[-1])
    start = data.optimum + (1 - fraction) * least * aside / aside.norm()
    return balanced_factors(start, layers), fraction * least


def with_definite_imbalance(seed: int, size: float = 0.3) -> tuple[list[Tensor], Tensor]:
    r"""Two layers with :math:`W'^TW' - WW^T` positive definite, and its eigenvalues.

    The first layer is random of the given size per entry; the imbalance has random eigenvalues in a random frame.
    """
    generator = torch.Generator().manual_seed(seed)
    first = size * torch.randn(HIDDEN, 13, generator=generator, dtype=torch.float64)
    eigenvalues = 0.1 + 0.6 * torch.rand(HIDDEN, generator=generator, dtype=torch.float64)
    frame = random_rotation(1000 + seed)
    squares, vectors = torch.linalg.eigh(first @ first.T + frame * eigenvalues @ frame.T)
    second = random_rotation(2000 + seed) @ (vectors * squares.sqrt() @ vectors.T)
    return [first, second], eigenvalues


def with_a_wrong_sign(data: WhitenedDigits, mode: int, stretch: float = 0.0, size: float = 0.01) -> list[Tensor]:
    """An aligned pair whose modes are weak and one of them negative; ``stretch`` takes it out of balance."""
    first, second = balanced_factors(data.weak_start(size), 2)
    direction = data.out[:, mode : mode + 1]
    second = second - 2 * direction @ (direction.T @ second)
    factor = torch.tensor(stretch).double().exp()
    return [factor * first, second / factor]


# --- what noise does ------------------------------------------------------------------------------------------------


class MeanPush:
    r"""The mean of :math:`Q(g)` over all mini-batches of a size, drawn with replacement, for pairs of linear layers.

    It is a polynomial of degree six in the weights, whose coefficients are moments of the data.
    """

    def __init__(self, data: WhitenedDigits):
        x, y, n = data.inputs, data.targets, len(data.inputs)
        length, norm = x.square().sum(1), y.square().sum(1)
        self.optimum = data.optimum
        self._xx, self._yx = (x.T * length) @ x / n, (y.T * length) @ x / n
        self._yy, self._norm = (y.T * length) @ y / n, (x.T * norm) @ x / n
        pairs = (x[:, :, None] * x[:, None, :]).flatten(1)
        self._fourth = (pairs.T @ pairs / n).view(13, 13, 13, 13)
        mixed = (y[:, :, None] * x[:, None, :]).flatten(1)
        self._third = (mixed.T @ pairs / n).view(10, 13, 13, 13)

    def __call__(self, first: Tensor, second: Tensor, size: float) -> Tensor:
        """Shape ``(..., d, d)`` for layers of shape ``(..., d, 13)`` and ``(..., 10, d)``; ``size`` may be infinite."""
        P = second @ first
        gradient = P - self.optimum
        whole = _square(second.mT @ gradient) - _square((gradient @ first.mT).mT)
        mixed = P @ self._yx.T
        errors = P @ self._xx @ P.mT - mixed - mixed.mT + self._yy
        inputs = torch.einsum("...ab,abcd->...cd", P.mT @ P, self._fourth)
        inputs = inputs - 2 * torch.einsum("...ka,kacd->...cd", P, self._third) + self._norm
        single = second.mT @ errors @ second - first @ inputs @ first.mT
        return whole + (single - whole) / size


def _square(x: Tensor) -> Tensor:
    product = x @ x.mT
    return (product + product.mT) / 2


@dataclass(frozen=True)
class Wear:
    """The charges of a linear pair along runs on mini-batches, and what the mean push predicts for them.

    Attributes:
        steps: at which they were taken, ``(T,)``.
        charge: measured, ``(T, seeds, d, d)``.
        forecast: the start and the sum of the mean pushes at the points that the run has visited, the same shape.
    """

    steps: Tensor
    charge: Tensor
    forecast: Tensor

    def share_of_means(self, other: Wear | None = None) -> tuple[float, float]:
        """How much of the predicted mean change came true in the mean over seeds, and its standard error.

        A run's charge minus its own forecast has the mean zero exactly, whatever the run does.

        Args:
            other: runs whose forecast is taken instead, for a control.
        """
        start = self.charge[0, 0]
        predicted = (self if other is None else other).forecast[-1].mean(0) - start
        measured = self.charge[-1] - start
        scale = predicted.square().sum()
        share = (measured.mean(0) * predicted).sum() / scale
        beyond = ((self.charge[-1] - self.forecast[-1]) * predicted).sum((-2, -1)) / scale
        return float(share), mean_and_error(beyond)[1]


def worn_by_noise(
    data: WhitenedDigits,
    start: Sequence[Tensor],
    *,
    size: float,
    seeds: int,
    lr: float = 0.05,
    steps: int = 500,
    every: int = 5,
) -> Wear:
    """Plain descent of a pair of linear layers on mini-batches drawn with replacement, for many seeds at once.

    Args:
        start: the two layers.
        size: of a batch; infinite for all images.
        every: steps between two entries.
    """
    still = math.isinf(size)
    push, generator = MeanPush(data), torch.Generator().manual_seed(0 if still else int(size))  # a stream for each
    first, second = (W.expand(seeds, *W.shape).clone() for W in start)
    gone = torch.zeros(seeds, len(first[0]), len(first[0])).double()
    charges, forecasts = [_square(first) - _square(second.mT)], []
    forecasts.append(charges[0])
    for n in range(steps):
        gone = gone + lr**2 * push(first, second, size)
        if still:
            gradient = second @ first - data.optimum
        else:
            rows = draw_rows(seeds, len(data.inputs), int(size), generator, replacement=True)
            x, y = data.inputs[rows], data.targets[rows]
            error = x @ (second @ first).mT - y
            gradient = error.mT @ x / size
        first, second = first - lr * second.mT @ gradient, second - lr * gradient @ first.mT
        if (n + 1) % every == 0:
            charges.append(_square(first) - _square(second.mT))
            forecasts.append(charges[0] + gone)
    return Wear(torch.arange(0, steps + 1, every), torch.stack(charges), torch.stack(forecasts))
