r"""Gradients of outputs by one parameter, kept as what they are made of.

The gradient of output ``c`` of sample ``i`` by the weight of a linear layer is a sum of outer products over the
positions ``p`` at which the layer was used, :math:`\sum_p s_{icp}\, a_{ip}^T` of slope and input. A kernel asks for
inner products of such sums, and :mod:`~nlcompanion.networks.tangent_kernel.products` takes them from the pieces.

``b`` is the number of samples, ``C`` of outputs, ``P`` of positions, ``m`` of the parameter's entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """Sums of outer products, in ``G`` groups (one, but for convolutions that have more)."""

    inputs: Tensor  # (b, G, P, I)
    slopes: Tensor  # (b, C, G, P, O)

    @property
    def size(self) -> int:
        return self.inputs.shape[1] * self.slopes.shape[-1] * self.inputs.shape[-1]

    def part(self, samples: slice) -> Outer:
        return Outer(self.inputs[samples], self.slopes[samples])

    def rows(self) -> Tensor:
        return torch.einsum("bcgpo,bgpi->bcgoi", self.slopes, self.inputs).flatten(2)

    def combined(self, shares: Tensor) -> Tensor:
        slopes = torch.einsum("bc,bcgpo->bgpo", shares, self.slopes)
        return torch.einsum("bgpo,bgpi->goi", slopes, self.inputs).flatten()

    def magnitude(self) -> Tensor:
        slopes, inputs = (torch.linalg.vector_norm(x, 1, dim=-1) for x in (self.slopes, self.inputs))
        return (slopes * inputs[:, None]).sum()


@dataclass(frozen=True)
class Lookup:
    """Rows of a table that were looked up, ``m = V D``: the inputs of an outer product that are 0 but for one 1."""

    entries: Tensor  # (b, P), integers below V
    slopes: Tensor  # (b, C, P, D)
    table: int  # V

    @property
    def size(self) -> int:
        return self.table * self.slopes.shape[-1]

    def part(self, samples: slice) -> Lookup:
        return Lookup(self.entries[samples], self.slopes[samples], self.table)

    def rows(self) -> Tensor:
        b, C, _, D = self.slopes.shape
        rows = self.slopes.new_zeros(b, C, self.table, D)
        where = self.entries[:, None, :, None].expand_as(self.slopes)
        return rows.scatter_add_(2, where, self.slopes).flatten(2)

    def combined(self, shares: Tensor) -> Tensor:
        slopes = torch.einsum("bc,bcpd->bpd", shares, self.slopes)
        total = slopes.new_zeros(self.table, slopes.shape[-1])
        return total.index_add_(0, self.entries.flatten(), slopes.flatten(0, 1)).flatten()

    def magnitude(self) -> Tensor:
        return size_of_terms(self.slopes)


@dataclass(frozen=True)
class Rows:
    """The gradients themselves: of a bias, of a norm's gain, or what backpropagation gave for all parameters."""

    values: Tensor  # (b, C, m)
    terms: Tensor | None = None  # absolute values summed, where the values are sums

    @property
    def size(self) -> int:
        return self.values.shape[-1]

    def part(self, samples: slice) -> Rows:
        return Rows(self.values[samples])

    def rows(self) -> Tensor:
        return self.values

    def combined(self, shares: Tensor) -> Tensor:
        return torch.einsum("bc,bcm->m", shares, self.values)

    def magnitude(self) -> Tensor:
        return size_of_terms(self.values) if self.terms is None else self.terms


Gradients = Outer | Lookup | Rows


def size_of_terms(x: Tensor) -> Tensor:
    """The sum of absolute values, of which the rounding of a sum is a share."""
    return torch.linalg.vector_norm(x, 1)


def together(uses: Sequence[Gradients]) -> Gradients:
    """One parameter used several times: its gradient is the sum, and every use a position more."""
    first, *others = uses
    if not others:
        return first
    if all(isinstance(use, Outer) for use in uses):
        pieces = [(use.inputs, use.slopes) for use in uses if isinstance(use, Outer)]
        if len({(a.shape[1], a.shape[-1], s.shape[-1]) for a, s in pieces}) == 1:
            return Outer(torch.cat([a for a, _ in pieces], 2), torch.cat([s for _, s in pieces], 3))
    if all(isinstance(use, Lookup) for use in uses):
        tables = [use for use in uses if isinstance(use, Lookup)]
        entries = torch.cat([use.entries for use in tables], 1)
        return Lookup(entries, torch.cat([use.slopes for use in tables], 2), tables[0].table)
    values = first.rows().clone()
    for use in others:
        values += use.rows()
    return Rows(values, sum((use.magnitude() for use in uses), torch.zeros(())))
