"""How many samples a kernel may hold at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor

from nlcompanion._arguments import described
from nlcompanion.networks.flat_loss import FlatLoss, outputs_of
from nlcompanion.networks.tangent_kernel.gradients import Gradients, Rows
from nlcompanion.networks.tangent_kernel.products import pair_bytes, rows_possible

_BUFFERS = 3  # a block of Jacobian rows, the pieces that backpropagation makes it of, and one copy for the product


@dataclass(frozen=True)
class Demand:
    """Bytes that one sample needs, and that the temporaries of one pair of samples do."""

    sample: int
    pair: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(self.sample + other.sample, max(self.pair, other.pair))


def demand_of_jacobian(numbers: int, outputs: int, itemsize: int, kept: int) -> Demand:
    """Of rows of so many numbers; ``kept`` is what backpropagation keeps of a sample."""
    row = itemsize * outputs * numbers
    return Demand(max(2 * _BUFFERS * row, 4 * row + (8 + 5 * outputs) * kept))


def demand_of_factors(known: Iterable[Gradients], samples: int, kept: int, *, full: bool) -> Demand:
    """Of what a few samples' gradients are made of, by parameters that layers account for.

    Held for two blocks, and twice more while they are made, as measured. The gradients of one parameter at most are
    formed, and copied once for their product.
    """
    stored, formed, pair = 0, 0, 0
    for gradients in known:
        tensors = [x for x in (getattr(gradients, f.name) for f in fields(gradients)) if isinstance(x, Tensor)]
        stored += sum(x.numel() * x.element_size() for x in tensors)
        pair = max(pair, pair_bytes(gradients, full))
        if rows_possible(gradients, full) and not isinstance(gradients, Rows):
            formed = max(formed, gradients.slopes.shape[1] * gradients.size * gradients.slopes.element_size())
    return Demand(4 * stored // samples + 2 * formed + 2 * kept, pair)


def bytes_kept(f: FlatLoss, q: Tensor, sample: Tensor) -> int:
    """Bytes that backpropagation keeps of a sample, its parameters left out."""
    q, kept = q.clone().requires_grad_(), {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = outputs_of(f, q, sample)  # its graph keeps all of it alive, so that no address comes twice
        kept.pop(q.untyped_storage().data_ptr(), None)
        del outputs
    return sum(kept.values())


def chunk_within(
    max_memory: int, chunk: int | None, shape: tuple[int, ...], itemsize: int, demand: Demand, strip: int
) -> int:
    """How many samples to hold at a time, or why there is no such number."""
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk is a number of samples, an integer >= 1, got {described(chunk)}; None chooses one")
    result = itemsize * prod(shape)
    temporaries = max(strip, demand.pair)
    most = (max_memory - result - temporaries) // max(1, demand.sample)
    wanted = 1 if chunk is None else chunk
    if most < wanted:
        fix = "fewer samples at a time, or raise max_memory"
        if chunk is not None and most >= 1:
            fix = "a smaller chunk"
        elif demand.sample + temporaries + itemsize > max_memory:
            fix = "more memory with max_memory=: one sample alone needs it"
        lighter = "output='trace' or one output, " if len(shape) == 4 and shape[-1] > 1 else ""
        raise MemoryError(
            f"a kernel of shape {shape} takes {result:,} bytes, the gradients of {wanted} sample(s) "
            f"{wanted * demand.sample:,} and their product {temporaries:,} more, together above max_memory = "
            f"{max_memory:,}; take {lighter}{fix}"
        )
    return min(max(shape[:2]), most) if chunk is None else chunk
