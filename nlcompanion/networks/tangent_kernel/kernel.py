"""The kernel, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from nlcompanion._arguments import choice, flag, integer
from nlcompanion.networks.flat_loss import FlatLoss, outputs_of
from nlcompanion.networks.tangent_kernel.arguments import check_finite, checked_network, picked_outputs
from nlcompanion.networks.tangent_kernel.capture import Factors, Unfaithful
from nlcompanion.networks.tangent_kernel.gradients import Gradients, Rows
from nlcompanion.networks.tangent_kernel.jacobian import Jacobian
from nlcompanion.networks.tangent_kernel.memory import (
    Demand,
    bytes_kept,
    chunk_within,
    demand_of_factors,
    demand_of_jacobian,
)
from nlcompanion.networks.tangent_kernel.products import STRIP, add_product, mirrored, symmetrize


def ntk(
    model: nn.Module | FlatLoss,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    q: Tensor | None = None,
    output: str | int = "full",
    chunk: int | None = None,
    max_memory: int = 2**31,
    method: str = "auto",
    vectorize: bool = True,
) -> Tensor:
    r"""The empirical neural tangent kernel of any module, in chunks.

    .. math:: H_{ij}^{cd} = \Bigl\langle \frac{\partial f_c(x_i)}{\partial q},\;
              \frac{\partial f_d(x_j)}{\partial q} \Bigr\rangle

    Where a parameter belongs to a layer that torch has (linear, convolution, embedding, the norms' gains and shifts;
    also used several times or shared) its part needs no Jacobian: per layer it is the Gram matrix of the inputs times
    that of the slopes, entry by entry, with sums over positions. Everything else takes rows of the Jacobian, by one
    parameter or by all. What layers say is never trusted: for every block of samples a random combination of all
    gradients is held against backpropagation, and a parameter for which the two differ takes the Jacobian too.

    Blocks of ``chunk`` samples of either argument are held at a time and thrown away again. Of parameters that take the
    Jacobian a sample needs, in bytes, :math:`6\,C\,n \cdot 8` with :math:`n` such parameters and :math:`C` outputs, or
    :math:`4\,C\,n \cdot 8 + (8 + 5\,C)\,S`, with :math:`S` the bytes that backpropagation keeps of one sample; of the
    others the inputs and slopes of their layers, four times, and :math:`2S`. These are rules of thumb, as measured.

    Args:
        model: a module, copied and never changed, or a :class:`~nlcompanion.FlatLoss`. Parameters that do not require
            a gradient do not count. Computed on the CPU.
        x1: inputs, shape ``(N1, ...)``.
        x2: other inputs, ``(N2, ...)``; ``x1`` again when None, and then half of the blocks are mirrored.
        q: the point, shape ``(n,)``; the model's own parameters when None. Its dtype is that of the computation:
            float64 unless a float32 ``q`` asks for less.
        output: ``"full"``; ``"trace"`` sums over ``c = d``, in pieces where all at once exceed ``max_memory``; an
            integer picks that one output.
        chunk: samples per block; as many as ``max_memory`` allows when None. It does not change the result beyond
            rounding.
        max_memory: bytes that result and blocks may take together, 2 GiB by default.
        method: ``"auto"`` as above; ``"jacobian"`` takes rows of the Jacobian for all parameters, slower, the way to
            check the other.
        vectorize: of the Jacobian. False takes one backward pass per output and sample, slower, for modules that
            ``torch.func.vmap`` cannot handle (those that branch on values, recurrent layers).

    Returns:
        Shape ``(N1, N2, C, C)`` for ``"full"``, else ``(N1, N2)``. In units of the output squared over those of a
        parameter squared.

    Raises:
        MemoryError: result and smallest blocks exceed ``max_memory``; says by how much and what to do.
        ValueError: the outputs of a sample depend on its batch (batch normalisation in train mode, dropout), an
            unknown ``output`` or ``method``, shapes that do not fit, outputs or a kernel that are not finite.
        TypeError: no module, or one that does not return a tensor.

    Source: GU Eq. 52, where the sum over parameters appears as :math:`H`; the product of Gram matrices is our own
    reading of it, and well known.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> line = nn.Linear(2, 1, bias=False)      # the kernel of a linear model is the inputs' own
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> ntk(line, x, output=0).tolist()
        [[1.0, 3.0], [3.0, 25.0]]
    """
    choice("method", method, "auto", "jacobian")
    flag("vectorize", vectorize)
    max_memory = integer("max_memory", max_memory, 1)
    f, q, x1, x2 = checked_network(model, x1, x2, q)
    width = outputs_of(f, q, x1[:1]).numel()
    picked = picked_outputs(output, width)
    columns = len(x1 if x2 is None else x2)
    shape = (len(x1), columns, width, width) if output == "full" else (len(x1), columns)
    factored = set(f.names) if method == "auto" else set()

    def of_outputs(picked: range) -> Tensor:
        while True:
            blocks = Blocks(f, q, picked, factored, vectorize)
            try:
                demand = blocks.demand(x1, full=output == "full")
                strip = min(STRIP, max_memory // 8)
                size = chunk_within(max_memory, chunk, shape, q.element_size(), demand, strip)
                return _kernel(blocks, x1, x2, torch.zeros(shape, dtype=q.dtype), size, strip)
            except Unfaithful as error:  # of these parameters the layers do not tell all
                factored.difference_update(error.names)

    return _in_pieces(of_outputs, picked) if output == "trace" else of_outputs(picked)


def _in_pieces(kernel: Callable[[range], Tensor], picked: range) -> Tensor:
    """A sum over outputs, of as many at a time as there is memory for."""
    try:
        return kernel(picked)
    except MemoryError:
        if len(picked) == 1:
            raise
    middle = len(picked) // 2
    return _in_pieces(kernel, picked[:middle]).add_(_in_pieces(kernel, picked[middle:]))


def _kernel(blocks: Blocks, x1: Tensor, x2: Tensor | None, result: Tensor, chunk: int, strip: int) -> Tensor:
    for i in range(0, len(x1), chunk):
        left = blocks(x1[i : i + chunk], check=True)
        for j in range(i if x2 is None else 0, result.shape[1], chunk):
            same = x2 is None and i == j
            right = left if same else blocks((x1 if x2 is None else x2)[j : j + chunk], check=x2 is not None and i == 0)
            block = result[i : i + chunk, j : j + chunk]
            for name, gradients in left.items():
                if name in right:
                    add_product(block, gradients, right[name], strip)
            check_finite("the kernel", block)
            if same:
                symmetrize(block, strip)
            elif x2 is None:
                result[j : j + chunk, i : i + chunk] = mirrored(block)
    return result


class Blocks:
    """Gradients of a block of samples, by parameter: from layers where ``factored`` names it, else by the Jacobian."""

    def __init__(
        self, f: FlatLoss, q: Tensor, picked: Sequence[int], factored: Collection[str], vectorize: bool
    ) -> None:
        self.f, self.q, self.picked = f, q, picked
        rest = [name for name in f.names if name not in factored]
        self.factors = Factors(f, q, picked, factored) if factored else None
        self.jacobian = Jacobian(f, q, picked, rest, vectorize) if rest else None

    def __call__(self, x: Tensor, *, check: bool) -> dict[str, Gradients]:
        found: dict[str, Gradients] = {} if self.factors is None else self.factors(x, check=check)
        if self.jacobian is not None:
            found["the others"] = Rows(self.jacobian(x))
        return found

    def demand(self, x: Tensor, *, full: bool) -> Demand:
        """Bytes of a sample, from a look at a few of them; raises :class:`Unfaithful` as blocks do."""
        few, demand = x[:3], Demand(0)
        if self.factors is not None:
            known = self.factors(few, check=True).values()
            demand += demand_of_factors(known, len(few), bytes_kept(self.f, self.q, few[:1]), full=full)
        if self.jacobian is not None:
            kept = bytes_kept(self.f, self.q, few[:1]) if self.jacobian.vectorize else 0  # else one sample's at a time
            numbers = len(self.jacobian.q)
            demand += demand_of_jacobian(numbers, len(self.picked), self.q.element_size(), kept)
        return demand
