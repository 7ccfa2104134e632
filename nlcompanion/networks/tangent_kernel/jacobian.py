"""Rows of the Jacobian by backpropagation, the way for parameters that no known layer accounts for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from nlcompanion.networks.flat_loss import FlatLoss, outputs_of


class Jacobian:
    """Jacobian rows of some samples, ``(b, picked outputs, n)``, with every sample alone in its batch.

    ``n`` is the number of entries of the parameters in ``names``.
    """

    def __init__(self, f: FlatLoss, q: Tensor, picked: Sequence[int], names: Collection[str], vectorize: bool):
        self.f, self.whole, self.names, self.vectorize = f, q, list(names), vectorize
        self.chosen = torch.tensor(picked)
        self.q = torch.cat([q[f.slices[name]] for name in self.names])  # what is differentiated by

    def single(self, q: Tensor, x: Tensor) -> Tensor:
        """Outputs of one sample at the point with ``q`` in the place of these parameters."""
        if len(q) == len(self.whole):
            return outputs_of(self.f, q, x[None]).reshape(-1)[self.chosen]
        pieces = q.split([self.whole[self.f.slices[name]].numel() for name in self.names])
        varied = dict(zip(self.names, pieces, strict=True))
        point = torch.cat([varied.get(name, self.whole[self.f.slices[name]]) for name in self.f.names])
        return outputs_of(self.f, point, x[None]).reshape(-1)[self.chosen]

    def __call__(self, x: Tensor) -> Tensor:
        if not self.vectorize:
            return torch.stack([self._one_by_one(sample) for sample in x])
        try:
            return vmap(jacrev(self.single), (None, 0))(self.q, x)
        except RuntimeError as error:
            raise ValueError(
                f"torch.func.vmap cannot run this module over samples ({str(error).splitlines()[0]}); "
                "pass vectorize=False, which takes one backward pass per output and sample"
            ) from error

    def _one_by_one(self, sample: Tensor) -> Tensor:
        q = self.q.clone().requires_grad_()
        outputs = self.single(q, sample)
        slopes = [torch.autograd.grad(u, q, retain_graph=True, allow_unused=True)[0] for u in outputs]
        return torch.stack([torch.zeros_like(q) if slope is None else slope for slope in slopes])
