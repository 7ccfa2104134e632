"""Squares of rows on any device, and of tensors that do not lie row by row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_EXACT = {torch.float32, torch.float64}


class DeviceRows:
    """The sums over rows of some tensors of one device. Nothing here waits for it.

    Vectors (biases, gains) are one row each. They lie one after the other in one long vector, so that all of them
    together cost as many calls as one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.device = next(iter(parameters.values())).device
        first = next((p for p in parameters.values() if _is_vector(p)), None)
        kind = None if first is None else first.dtype
        self._vectors = {n: p for n, p in parameters.items() if _is_vector(p) and p.dtype == kind}
        self._others = {name: p for name, p in parameters.items() if name not in self._vectors}
        self.names = (*self._vectors, *self._others)
        self.counts = [1] * len(self._vectors) + [_count(p) for p in self._others.values()]
        self._before = {name: torch.empty_like(plain(p)) for name, p in self._others.items()}
        self._flat = _FlatVectors(list(self._vectors.values())) if self._vectors else None
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._parts: list[list[Tensor]] = []

    def begin(self, scale: Tensor | None) -> None:
        """Weights and gradients, these divided by a scale."""
        weights, gradients = [], []
        if self._flat is not None:
            ww, gg = self._flat.begin()
            weights.append(ww)
            gradients.append(gg)
        for name, p in self._others.items():
            weight, gradient = plain(p), gradient_of(p)
            self._before[name].copy_(weight)
            weights.append(_squares(weight))
            gradients.append(_squares(gradient) if gradient is not None else torch.zeros_like(weights[-1]))
        if scale is not None:
            gradients = [gg / scale**2 for gg in gradients]
        self._parts = [weights, gradients]

    def end(self) -> None:
        """The step; the copies of the weights become minus it."""
        steps, along = [], []
        if self._flat is not None:
            ee, ew = self._flat.end()
            steps.append(ee)
            along.append(ew)
        for name, p in self._others.items():
            weight, back = plain(p), self._before[name]
            back.sub_(weight)
            steps.append(_squares(back))
            along.append(self._products(back, weight))
        self._parts += [steps, along]

    def take(self) -> Tensor:
        parts = [part.reshape(-1) for kind in self._parts for part in kind]
        self._parts = []
        missing = 4 * sum(self.counts) - sum(part.numel() for part in parts)
        if missing:
            parts.append(torch.zeros(missing, device=self.device))
        if len({part.dtype for part in parts}) > 1:
            parts = [part.float() if self.device.type == "mps" else part.double() for part in parts]
        return torch.cat(parts)

    def step_of(self, name: str) -> Tensor:
        if name in self._before:
            return -self._before[name]
        assert self._flat is not None
        return self._flat.step_of(list(self._vectors).index(name))

    def _products(self, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim < 2:
            return (x * y).sum().reshape(1)
        room = self._scratch.get(x.dtype)
        if room is None or room.numel() < x.numel():
            room = self._scratch[x.dtype] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        product = torch.mul(x, y, out=room[: x.numel()].view(x.shape))
        return product.sum(tuple(range(1, x.ndim)))


class _FlatVectors:
    """Vectors one after the other, and the sums over each."""

    def __init__(self, vectors: list[nn.Parameter]):
        self._vectors = vectors
        first = vectors[0]
        sizes = torch.tensor([p.numel() for p in vectors])
        self._sizes = sizes.tolist()
        self._owner = torch.repeat_interleave(torch.arange(len(vectors)), sizes).to(first.device)
        self._weights, self._gradients, self._next = (
            torch.zeros(len(self._owner), dtype=first.dtype, device=first.device) for _ in range(3)
        )
        self._products = torch.empty(2, len(self._owner), dtype=first.dtype, device=first.device)

    def begin(self) -> tuple[Tensor, Tensor]:
        torch.cat([p.detach().reshape(-1) for p in self._vectors], out=self._weights)
        gradients = [gradient_of(p) for p in self._vectors]
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(self._vectors, gradients, strict=True)]
        torch.cat([g.reshape(-1) for g in flat], out=self._gradients)
        return self._sums((self._weights, self._weights), (self._gradients, self._gradients))

    def end(self) -> tuple[Tensor, Tensor]:
        torch.cat([p.detach().reshape(-1) for p in self._vectors], out=self._next)
        back = self._weights.sub_(self._next)
        return self._sums((back, back), (back, self._next))

    def step_of(self, k: int) -> Tensor:
        return -self._weights.split(self._sizes)[k].view(self._vectors[k].shape)

    def _sums(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        torch.mul(*one, out=self._products[0])
        torch.mul(*other, out=self._products[1])
        sums = torch.zeros(2, len(self._vectors), dtype=self._products.dtype, device=self._products.device)
        sums.index_add_(1, self._owner, self._products)
        return sums[0], sums[1]


def _is_vector(p: Tensor) -> bool:
    return p.ndim <= 1 and p.dtype in _EXACT


def _count(p: Tensor) -> int:
    return plain(p).shape[0] if plain(p).ndim > 1 else 1


def _squares(x: Tensor) -> Tensor:
    """Squared lengths of the rows."""
    if x.ndim < 2:
        return torch.linalg.vector_norm(x).square().reshape(1)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))).square()


def plain(x: Tensor) -> Tensor:
    """A tensor in which sums can be taken: real, and in single precision at least."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    return x if x.dtype in _EXACT else x.float()


def gradient_of(p: nn.Parameter) -> Tensor | None:
    """The gradient that the step is made with, dense."""
    if p.grad is None:
        return None
    gradient = p.grad.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return plain(gradient)
