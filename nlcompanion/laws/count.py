r"""How many independent functions gradient flow conserves, counted numerically.

The flow of any loss :math:`\ell(f(\theta, x), y)` moves in the distribution spanned by the fields
:math:`\nabla_\theta\langle c, f(\theta, x)\rangle`. What all of them conserve is counted by Frobenius' theorem: at a
generic point :math:`D - \dim\mathrm{Lie}(\theta)`, with the Lie algebra that the fields and their brackets span. The
rank of the Jacobian alone counts too many: it forgets the brackets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, replace_all_batch_norm_modules_, vmap

from nlcompanion._arguments import described, integer, seed_number

_TOLERANCE = 1e-9  # singular values below it, relative to the largest, count as zero
_NEEDED_GAP = 1e3
_DEEPEST = 4
_LONGEST = 12  # each bracket doubles the work
_MOST = 1000  # parameters


def count_laws(model: nn.Module, inputs: Any, *, depth: int = _DEEPEST, seed: int = 0) -> int:
    r"""The number of independent functions of the parameters that gradient flow conserves, for every loss and data.

    .. math:: D - \dim\mathrm{Lie}\{\theta\mapsto\nabla\langle c, f(\theta, x)\rangle\}(\theta)

    at a generic point, with :math:`f` the model's outputs, taken over random inputs and random directions :math:`c`.
    Brackets are added until the dimension no longer grows; of several random points the largest dimension counts,
    because a dead ReLU hides directions.

    Args:
        model: any module of up to 1000 trained parameters, in train or eval mode as it is; dropout is not allowed.
        inputs: a tensor, or a tuple of tensors that are passed by position; floating ones are drawn anew.
        depth: of brackets at most (dimensionless, at least 1). Third derivatives through PyTorch's fused normalisations
            are wrong in torch 2.13, so that models with such layers stop at brackets of two.
        seed: of points, inputs and directions.

    Returns:
        The count, beside which an :class:`Audit`'s can be called complete or not. A loss that forgets a shift of the
        logits conserves more than the outputs do, and a count for all losses does not hold those laws.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: no trained parameter or too many, outputs that are no tensor, a rank that is numerically unclear.

    Source: Marcotte, Gribonval and Peyré, arXiv 2307.00144; nested jvp is this book's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> product = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))
        >>> count_laws(product, torch.randn(5, 4))  # U V^T of sizes (3, 4) and rank 2: not the 4 of the Jacobian
        3
        >>> count_laws(nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)), torch.randn(5, 2))
        0
    """
    depth = integer("depth", depth, 1, _LONGEST)
    seed = seed_number("seed", seed)
    fields = _fields_of(model, inputs)
    if _has_fused_norm(model):
        depth = min(depth, 2)
    best, size = 0, len(fields.start)
    for number in range(3):
        generator = torch.Generator().manual_seed((seed * 1009 + number) % 2**63)
        best = max(best, _dimension(fields, generator, depth))
        if best == size:
            break
    return size - best


@dataclass
class _Fields:
    """The gradients of random combinations of a model's outputs on random inputs, as functions of flat parameters."""

    output: Callable[[Tensor, tuple], Tensor]
    inputs: tuple[Tensor, ...]
    start: Tensor

    def __post_init__(self) -> None:
        try:
            with torch.no_grad():
                found = self.output(self.start, self.inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the model fails on these inputs ({error}), so nothing can be counted; pass what its forward takes"
            ) from error
        if not isinstance(found, Tensor):
            raise ValueError(f"the model puts out {type(found).__name__}, and a tensor is counted; wrap it to give one")
        self.shape = found.shape

    def brackets(self, theta: Tensor, many: int, length: int, generator: torch.Generator) -> Tensor:
        """``many`` random brackets of ``length`` fields at a point, shape ``(many, n)``; length 1 is the fields."""
        moving = [k for k, x in enumerate(self.inputs) if x.is_floating_point()]
        drawn = [self._normal((many, length, *self.inputs[k].shape), generator) for k in moving]
        combinations = self._normal((many, length, *self.shape), generator)

        def one(drawn: list[Tensor], combinations: Tensor) -> Tensor:
            fields = []
            for place in range(length):
                x = list(self.inputs)
                for k, values in zip(moving, drawn, strict=True):
                    x[k] = values[place]
                fields.append(self._field(tuple(x), combinations[place]))
            return _bracket(fields)(theta)

        return vmap(one)(drawn, combinations).detach()

    def _field(self, x: tuple, c: Tensor) -> Callable[[Tensor], Tensor]:
        return grad(lambda q: (self.output(q, x) * c).sum())

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def _fields_of(model: nn.Module, inputs: Any) -> _Fields:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    model = replace_all_batch_norm_modules_(copy.deepcopy(model).double())
    for p in model.parameters():
        p.grad = None
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    size = sum(p.numel() for p in named.values())
    if not 0 < size <= _MOST:
        raise ValueError(
            f"the model has {size} trained parameters, and laws are counted for 1 to {_MOST}: the count needs matrices "
            "of that size and brackets of all pairs; count a copy of smaller widths"
        )
    rest = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    rest |= dict(model.named_buffers())
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    for x in given:
        if not isinstance(x, Tensor) or x.is_complex():
            raise TypeError(f"inputs must be a real tensor or a tuple of them, got {described(x)}")
    given = tuple(x.double() if x.is_floating_point() else x for x in given)
    sizes = [p.numel() for p in named.values()]

    def output(theta: Tensor, x: tuple) -> Tensor:
        parts = zip(named.items(), theta.split(sizes), strict=True)
        values = {name: part.view(p.shape) for (name, p), part in parts}
        return functional_call(model, {**values, **rest}, x)

    return _Fields(output, given, torch.cat([p.reshape(-1) for p in named.values()]))


def _dimension(fields: _Fields, generator: torch.Generator, depth: int) -> int:
    """Of what the fields and their left-normed brackets span at a random point."""
    size = len(fields.start)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    theta = fields.start + max(float(fields.start.std(correction=0)), 0.3) * noise
    vectors = fields.brackets(theta, size + 8, 1, generator)
    rank, still = _rank(vectors), 0
    for length in range(2, depth + 1):
        if rank == size or still == 2:
            break
        vectors = torch.cat([vectors, fields.brackets(theta, size + 8, length, generator)])
        grown = _rank(vectors)
        still, rank = (still + 1 if grown == rank else 0), grown
    return rank


def _bracket(fields: list[Callable]) -> Callable:
    """``[[X1, X2], X3] ...`` of vector fields."""
    first, *others = fields
    for other in others:
        first = _of_two(first, other)
    return first


def _of_two(x: Callable, y: Callable) -> Callable:
    return lambda theta: jvp(y, (theta,), (x(theta),))[1] - jvp(x, (theta,), (y(theta),))[1]


def _rank(vectors: Tensor) -> int:
    sizes = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    vectors = vectors[sizes[:, 0] > 0] / sizes[sizes[:, 0] > 0]
    if not len(vectors):
        return 0
    sigma = torch.linalg.svdvals(vectors)
    sigma = sigma / sigma[0]
    rank = int((sigma > _TOLERANCE).sum())
    above, below = float(sigma[rank - 1]), float(sigma[rank]) if rank < len(sigma) else 0.0
    if above < _NEEDED_GAP * max(below, 1e-16):
        raise ValueError(
            f"singular values {above:.0e} and {below:.0e} are too close to tell how many directions the fields span, "
            "so no count is given; try another seed, or a smaller copy of the model"
        )
    return rank


def _has_fused_norm(model: nn.Module) -> bool:
    fused = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    return any(isinstance(module, fused) for module in model.modules())
