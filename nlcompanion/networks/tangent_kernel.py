r"""The tangent kernel of a network, and the training that it predicts.

To first order in the motion of the weights a network is linear in them, :math:`u(q) \approx u(q_0) + J\,(q - q_0)`,
and on a squared loss its outputs move by themselves: the weights enter through the kernel :math:`H = JJ^T` alone.
Linearised training under a rule is then that same rule on the quadratic loss :math:`\tfrac12 r^T H r` of the residual
:math:`r = u - y`, mode by mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nlcompanion._arguments import as_tensor, described, flag, instance, integer, vector
from nlcompanion.networks.flat_loss import FlatLoss

__all__ = ["OutputMotion", "ntk", "output_motion"]

_BUFFERS = 3  # a block of Jacobian rows, the pieces that backpropagation makes it of, and one copy for the product


def ntk(
    model: nn.Module | FlatLoss,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    q: Tensor | None = None,
    output: str | int = "full",
    chunk: int | None = None,
    max_memory: int = 2**31,
    vectorize: bool = True,
) -> Tensor:
    r"""The empirical neural tangent kernel of any module, in chunks.

    .. math:: H_{ij}^{cd} = \Bigl\langle \frac{\partial f_c(x_i)}{\partial q},\;
              \frac{\partial f_d(x_j)}{\partial q} \Bigr\rangle

    Rows of the Jacobian are formed for ``chunk`` samples of either argument at a time and thrown away again. What is
    held at most, in bytes, is the result and :math:`6 \cdot \mathrm{chunk} \cdot C\,n \cdot 8`, with :math:`n`
    parameters and :math:`C` outputs. Where activations outweigh the parameters, as in convolutions, it is
    :math:`\mathrm{chunk} \cdot (4\,C\,n \cdot 8 + (8 + 5\,C)\,S)`, with :math:`S` the bytes that backpropagation
    keeps of one sample, as measured; this part is a rule of thumb. Where all samples fit into one chunk each Jacobian
    is computed once.

    Args:
        model: a module, copied and never changed, or a :class:`~nlcompanion.FlatLoss`. Parameters that do not require
            a gradient do not count. Computed on the CPU.
        x1: inputs, shape ``(N1, ...)``.
        x2: other inputs, ``(N2, ...)``; ``x1`` again when None, and then half of the blocks are mirrored.
        q: the point, shape ``(n,)``; the model's own parameters when None. Its dtype is that of the computation:
            float64 unless a float32 ``q`` asks for less.
        output: ``"full"``; ``"trace"`` sums over ``c = d``; an integer picks that one output.
        chunk: samples per block; as many as ``max_memory`` allows when None. It does not change the result beyond
            rounding.
        max_memory: bytes that result and blocks may take together, 2 GiB by default.
        vectorize: False takes one backward pass per output and sample, slower, for modules that ``torch.func.vmap``
            cannot handle (those that branch on values, recurrent layers).

    Returns:
        Shape ``(N1, N2, C, C)`` for ``"full"``, else ``(N1, N2)``. In units of the output squared over those of a
        parameter squared.

    Raises:
        MemoryError: result and smallest blocks exceed ``max_memory``; says by how much and what to do.
        ValueError: the outputs of a sample depend on its batch (batch normalisation in train mode, dropout), an
            unknown ``output``, shapes that do not fit, outputs or a kernel that are not finite.
        TypeError: no module, or one that does not return a tensor.

    Source: GU Eq. 52, where the sum over parameters appears as :math:`H`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> line = nn.Linear(2, 1, bias=False)      # the kernel of a linear model is the inputs' own
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> ntk(line, x, output=0).tolist()
        [[1.0, 3.0], [3.0, 25.0]]
    """
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) == 0:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a tensor of inputs, samples first and at least one, got {got}")
        if x.is_complex() or x.is_meta or x.layout != torch.strided:
            raise ValueError(f"{name} must hold real numbers or integers, got {described(x)}")
    flag("vectorize", vectorize)
    max_memory = integer("max_memory", max_memory, 1)
    f = model if isinstance(model, FlatLoss) else _outputs_of(model, x1)
    q = f.q0 if q is None else as_tensor("q", q).detach()
    if q.shape != f.q0.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, this model's parameters make {tuple(f.q0.shape)}")
    x1 = _inputs(f, q, x1, "x1")
    x2 = None if x2 is None else _inputs(f, q, x2, "x2")
    width = f.outputs(q, x1[:1]).numel()
    picked = _picked(output, width)
    columns = len(x1 if x2 is None else x2)
    shape = (len(x1), columns, width, width) if output == "full" else (len(x1), columns)
    row = q.element_size() * len(picked) * len(q)
    kept = _kept(f, q, x1[:1]) if vectorize else 0  # else one sample's at a time
    per_sample = max(2 * _BUFFERS * row, 4 * row + (8 + 5 * len(picked)) * kept)
    chunk = _chunk(chunk, shape, per_sample, q.element_size(), max_memory)
    rows = _Rows(f, q, picked, vectorize)
    result = torch.empty(shape, dtype=q.dtype)
    for i in range(0, len(x1), chunk):
        left = rows(x1[i : i + chunk])
        for j in range(i if x2 is None else 0, shape[1], chunk):
            right = left if x2 is None and i == j else rows((x1 if x2 is None else x2)[j : j + chunk])
            block = _product(left, right, output)
            _finite("the kernel", block)
            if right is left:  # a product A A^T need not come out symmetric to the last bit
                block = (block + _mirrored(block)) / 2
            result[i : i + chunk, j : j + chunk] = block
            if x2 is None and j > i:
                result[j : j + chunk, i : i + chunk] = _mirrored(block)
    return result


def _outputs_of(model: nn.Module, x: Tensor) -> FlatLoss:
    """Not ``flat_loss``: its trial of the loss would run on all samples at once, and a kernel has trials of its own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return FlatLoss(model, x[:1], x[:1], lambda outputs, targets: outputs.sum())


def _mirrored(block: Tensor) -> Tensor:
    """Samples exchanged, and with them their outputs: entry ``(j, i, d, c)`` in place of ``(i, j, c, d)``."""
    return block.transpose(0, 1).transpose(2, 3) if block.ndim == 4 else block.T


class _Rows:
    """Jacobian rows of some samples, ``(b, picked outputs, n)``, with every sample alone in its batch."""

    def __init__(self, f: FlatLoss, q: Tensor, picked: Sequence[int], vectorize: bool):
        self.f, self.q, self.vectorize = f, q, vectorize
        chosen = torch.tensor(picked)
        self.single = lambda q, x: f.outputs(q, x[None]).reshape(-1)[chosen]

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


def _product(left: Tensor, right: Tensor, output: str | int) -> Tensor:
    if output == "full":
        (a, c, n), (b, d, _) = left.shape, right.shape
        return (left.reshape(a * c, n) @ right.reshape(b * d, n).T).view(a, c, b, d).transpose(1, 2)
    return left.flatten(1) @ right.flatten(1).T


def _inputs(f: FlatLoss, q: Tensor, x: Tensor, name: str) -> Tensor:
    """``x`` in the precision of ``q``, after a look whether a sample's outputs depend on its neighbours."""
    for where, module in f.model.named_modules():  # a single sample, or equal ones, would not show it
        if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)):
            raise ValueError(
                f"{type(module).__name__} ({where}) is in train mode, where outputs depend on the batch or on chance "
                "and there is no kernel between samples; call model.eval() first"
            )
    x = x.to(q.dtype) if x.is_floating_point() else x
    few = x[:3]
    try:
        together = f.outputs(q, few)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"this module cannot run on {name} of shape {tuple(x.shape)} and {x.dtype} ({str(error).splitlines()[0]}); "
            "give inputs as it takes them, samples first (integers only for an embedding, else x.double())"
        ) from error
    if not isinstance(together, Tensor):
        raise TypeError(
            f"the module returns a {type(together).__name__}, and a kernel needs one tensor of outputs; wrap it in a "
            "module that returns the tensor you mean"
        )
    if together.ndim == 0 or len(together) != len(few):
        raise ValueError(
            f"the module gives outputs of shape {tuple(together.shape)} for {len(few)} sample(s) of {name}, and a "
            "kernel between samples needs those first; take a module that does not average over samples, one member of "
            "an ensemble"
        )
    _finite(f"the output for {name}", together)
    together = together.reshape(len(few), -1)
    if len(few) == 1:
        return x
    try:
        alone = torch.cat([f.outputs(q, sample[None]).reshape(1, -1) for sample in few])
        apart = (together - alone).abs().max() / together.abs().max().clamp(min=torch.finfo(q.dtype).tiny)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"this module cannot run on {name} sample by sample ({str(error).splitlines()[0]}), and a kernel needs the "
            "outputs of single samples; put whatever looks at the whole batch into evaluation mode with model.eval()"
        ) from error
    if not apart <= 1e3 * torch.finfo(q.dtype).eps ** 0.75:
        raise ValueError(
            f"the outputs of a sample alone and among others differ by {apart:.2g} of their size, so there is no "
            "kernel between samples: the module mixes or draws at random; call model.eval() first, or take that out"
        )
    return x


def _finite(what: str, x: Tensor) -> None:
    if not all(torch.isfinite(end) for end in x.detach().aminmax()):  # a NaN is both ends; needs no memory
        raise ValueError(
            f"{what} is not finite in {x.dtype}, so nothing follows from it; look for NaN in the inputs and weights, "
            "or make them smaller"
        )


def _picked(output: str | int, width: int) -> range:
    if isinstance(output, str) and output in ("full", "trace"):
        return range(width)
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < width:
        return range(output, output + 1)
    raise ValueError(f"output must be 'full', 'trace' or an integer from 0 to {width - 1}, got {described(output)}")


def _kept(f: FlatLoss, q: Tensor, sample: Tensor) -> int:
    """Bytes that backpropagation keeps of a sample, its parameters left out."""
    q, kept = q.clone().requires_grad_(), {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = f.outputs(q, sample)  # its graph keeps all of it alive, so that no address comes twice
        kept.pop(q.untyped_storage().data_ptr(), None)
        del outputs
    return sum(kept.values())


def _chunk(chunk: int | None, shape: tuple[int, ...], block: int, itemsize: int, max_memory: int) -> int:
    """How many samples' rows to hold at a time, or why there is no such number."""
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk is a number of samples, an integer >= 1, got {described(chunk)}; None chooses one")
    result = itemsize * int(np.prod(shape))
    most = (max_memory - result) // block
    wanted = 1 if chunk is None else chunk
    if most < wanted:
        fix = "a smaller chunk" if chunk is not None and most >= 1 else "fewer samples at a time, or raise max_memory"
        lighter = "output='trace' or one output, " if len(shape) == 4 and shape[-1] > 1 else ""
        raise MemoryError(
            f"a kernel of shape {shape} takes {result:,} bytes and Jacobian rows of {wanted} sample(s) "
            f"{wanted * block:,} more, together above max_memory = {max_memory:,}; take {lighter}{fix}"
        )
    return min(max(shape[:2]), most) if chunk is None else chunk


# --- what moves the outputs ---------------------------------------------------------------------------------------


class OutputMotion(NamedTuple):
    r"""How outputs move with the parameters: ``rate`` :math:`\dot u`, and ``push`` + ``bend`` :math:`= \ddot u`."""

    rate: Tensor
    push: Tensor
    bend: Tensor


def output_motion(f: FlatLoss, q: Tensor, v: Tensor, a: Tensor) -> OutputMotion:
    r"""Rate and acceleration of a network's outputs along a motion of its parameters.

    .. math:: \dot u = J v, \qquad
              \ddot u = \underbrace{J a}_{\text{push}} + \underbrace{\langle v, \nabla^2 u\, v\rangle}_{\text{bend}}

    Under Newtonian dynamics with half the sum of squares the push is :math:`H (y - u)`. The bend, which GU drop from
    Eq. 52, is what linearised dynamics leaves out. At the kink of a ReLU :math:`\dot u` jumps, which neither shows.

    Args:
        f: a loss made by :func:`~nlcompanion.flat_loss`; its inputs are used.
        q, v, a: point, velocity and acceleration, shape ``(n,)`` each.

    Returns:
        Three tensors of the outputs' shape, by forward differentiation (no Jacobian, no Hessian).

    Source: GU Eq. 52, with its last term kept and its sign corrected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, mlp
        >>> f = flat_loss(mlp((1, 1, 1), "linear"), torch.ones(1, 1), torch.ones(1, 1), nn.functional.mse_loss)
        >>> q, v, a = torch.tensor([[3.0, 5.0], [1.0, 2.0], [0.0, 0.0]]).double()   # u = q[0] q[1]
        >>> [x.item() for x in output_motion(f, q, v, a)]
        [11.0, 0.0, 4.0]
    """
    instance("f", f, FlatLoss, "flat_loss(model, x, y, loss)")
    q, v, a = (vector(name, given) for name, given in (("q", q), ("v", v), ("a", a)))
    for name, given in (("q", q), ("v", v), ("a", a)):
        if given.shape != f.q0.shape or given.dtype != q.dtype:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and {given.dtype}, this model's parameters make "
                f"{tuple(f.q0.shape)}; give all three in one precision"
            )
    rate, bend, *_ = jvp(lambda p: jvp(f.outputs, (p,), (v,))[1], (q,), (v,))
    return OutputMotion(rate, jvp(f.outputs, (q,), (a,))[1], bend)
