"""The kernel as a linear map, for more samples than a matrix of it has room for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jvp

from nlcompanion._arguments import counted, integer, numbers
from nlcompanion.networks.flat_loss import FlatLoss, outputs_of
from nlcompanion.networks.tangent_kernel.arguments import checked_network, picked_outputs
from nlcompanion.networks.tangent_kernel.memory import bytes_kept

_PASSES = 4  # what a pass keeps, its gradients, and as much again in forward differentiation, as measured


class KernelProduct:
    r"""The map :math:`v \mapsto H v = J_1 (J_2^T v)`; made by :func:`ntk_product`.

    Attributes:
        shape: of what it returns and of what it takes, such as ``((N1, C), (N2, C))``.
    """

    def __init__(self, f: FlatLoss, q: Tensor, x1: Tensor, x2: Tensor, picked: range, full: bool, chunk: int):
        self.f, self.q, self.x1, self.x2 = f, q, x1, x2
        self.picked, self.full, self.chunk = list(picked), full, chunk
        self.shape = tuple((len(x), len(self.picked)) if full else (len(x),) for x in (x1, x2))

    def __repr__(self) -> str:
        return f"KernelProduct({self.shape[1]} to {self.shape[0]}, {counted(len(self.q), 'parameter')})"

    def __call__(self, v: Tensor) -> Tensor:
        v = numbers("v", v).to(self.q.dtype).detach()
        if tuple(v.shape) != self.shape[1]:
            raise ValueError(f"v has shape {tuple(v.shape)}, this kernel takes {self.shape[1]}, the shape of outputs")
        push = self._pulled_back(v.reshape(len(self.x2), -1))
        rates = [self._rate(x, push) for x in self.x1.split(self.chunk)]
        return torch.cat(rates).view(self.shape[0])

    def _outputs(self, q: Tensor, x: Tensor) -> Tensor:
        return outputs_of(self.f, q, x).reshape(len(x), -1)[:, self.picked]

    def _pulled_back(self, v: Tensor) -> Tensor:
        """:math:`J_2^T v`, a sum over samples."""
        total = torch.zeros_like(self.q)
        for x, part in zip(self.x2.split(self.chunk), v.split(self.chunk), strict=True):
            with torch.enable_grad():
                q = self.q.clone().requires_grad_()
                (slope,) = torch.autograd.grad((self._outputs(q, x) * part).sum(), q, allow_unused=True)
            if slope is not None:
                total += slope
        return total

    def _rate(self, x: Tensor, push: Tensor) -> Tensor:
        """:math:`J_1 w`, by forward differentiation or, where a layer has none, by differentiating a backward pass."""
        try:
            return jvp(lambda q: self._outputs(q, x), (self.q,), (push,))[1]
        except (NotImplementedError, RuntimeError):
            with torch.enable_grad():
                q = self.q.clone().requires_grad_()
                outputs = self._outputs(q, x)
                v = torch.zeros_like(outputs, requires_grad=True)
                (slope,) = torch.autograd.grad(outputs, q, v, create_graph=True)
                return torch.autograd.grad(slope @ push, v)[0]


def ntk_product(
    model: nn.Module | FlatLoss,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    q: Tensor | None = None,
    output: str | int = "full",
    max_memory: int = 2**31,
) -> KernelProduct:
    r"""The empirical tangent kernel as a map, without its matrix.

    .. math:: (Hv)_i^c = \sum_{jd} H_{ij}^{cd}\, v_j^d, \qquad H = J_1 J_2^T

    One backward pass over ``x2`` and one pass of forward differentiation over ``x1`` a product, in blocks of samples:
    time and memory grow with the number of samples, where those of :func:`~nlcompanion.ntk` grow with its square.

    Args:
        model, x1, x2, q: as for :func:`~nlcompanion.ntk`; any module that can be differentiated.
        output: ``"full"``, or an integer that picks one output.
        max_memory: bytes that a block may take, 2 GiB by default.

    Returns:
        A :class:`KernelProduct`: call it with a tensor of the shape of outputs, ``(N2, C)``, of one output ``(N2,)``.

    Raises:
        MemoryError: one sample alone exceeds ``max_memory``.
        ValueError, TypeError: as for :func:`~nlcompanion.ntk`.

    Source: GU Eq. 52.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> H = ntk_product(nn.Linear(2, 1, bias=False), x, output=0)      # of the kernel [[1, 3], [3, 25]]
        >>> H(torch.tensor([1.0, 1.0])).tolist()
        [4.0, 28.0]
    """
    max_memory = integer("max_memory", max_memory, 1)
    f, q, x1, other = checked_network(model, x1, x2, q)
    picked = picked_outputs(output, outputs_of(f, q, x1[:1]).numel())
    if output == "trace":
        raise ValueError("output='trace' is no map on outputs; take 'full', or an integer, or ntk(..., output='trace')")
    each = max(1, _PASSES * bytes_kept(f, q, x1[:1]))
    if each > max_memory:
        raise MemoryError(f"one sample takes {each:,} bytes, above max_memory = {max_memory:,}; raise it")
    return KernelProduct(f, q, x1, x1 if other is None else other, picked, output == "full", max_memory // each)
