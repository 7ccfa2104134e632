"""Activations of a stated degree, and linear layers that carry a factor of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlcompanion._arguments import check_size, described, finite_number, integer, layer_input, real_number

__all__ = ["Power", "RePU", "Swish"]

_HIGHEST = 1000


class RePU(nn.Module):
    r"""Rectified power unit, :math:`\sigma(x) = \max(0, x)^p`, homogeneous of degree :math:`p` (dimensionless).

    Args:
        p: power > 0; 1 is ReLU, 2 and more are smooth enough for tight checks along flows.

    Raises:
        ValueError: if ``p`` is not a positive finite number.

    Source: GU Section 4 and Observation 1.

    Example:
        >>> import torch
        >>> RePU(2)(torch.tensor([-1.0, 3.0])).tolist()
        [0.0, 9.0]
    """

    def __init__(self, p: float):
        super().__init__()
        if isinstance(p, str | bytes) or not 0 < real_number("p", p) < math.inf:
            raise ValueError(f"RePU needs a power p > 0, got {described(p)}; p = 1 is ReLU, p = 2 its square")
        self.p = p if isinstance(p, int) else real_number("p", p)

    def forward(self, x: Tensor) -> Tensor:
        x = layer_input(x)
        if self.p == 1 or float(self.p).is_integer():
            return torch.relu(x) if self.p == 1 else torch.relu(x) ** self.p
        dead = x <= 0  # a broken power is singular at 0: 0 * inf = NaN in its second derivatives
        return torch.where(dead, 0.0, torch.where(dead, 1.0, x) ** self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Power(nn.Module):
    r"""A power with its sign, :math:`\sigma(x) = x^p` for integer :math:`p`, homogeneous of degree :math:`p`.

    Args:
        p: integer >= 1 (dimensionless); 1 is a linear network, 2 makes every layer a quadratic form.

    Raises:
        ValueError: if ``p`` is not an integer >= 1: a broken power of a negative number is not real.

    Source: GU Section 4 and Observation 1, there for any :math:`p`.

    Example:
        >>> import torch
        >>> Power(3)(torch.tensor([-2.0, 3.0])).tolist()
        [-8.0, 27.0]
    """

    def __init__(self, p: int):
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int):
            half = isinstance(p, float) and math.isfinite(p) and p > 0
            raise ValueError(
                f"Power needs an integer p, got {p!r}: x**p of a negative x would not be a real number and the loss "
                f"would be NaN; use RePU({p:g}), which cuts negative inputs off"
                if half
                else f"Power needs an integer p >= 1, got {described(p)}"
            )
        if p < 1:
            raise ValueError(f"Power needs p >= 1, got {p}: x**{p} is no activation, constant or singular at 0")
        integer("p", p, 1, _HIGHEST)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        x = layer_input(x)
        return x if self.p == 1 else x**self.p

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Swish(nn.Module):
    r"""Swish with one trainable :math:`\beta_i` per neuron, :math:`\sigma_i(x) = x / (1 + e^{-\beta_i x})`.

    Not homogeneous, but :math:`\sigma_\beta(\lambda x) = \lambda\,\sigma_{\lambda\beta}(x)`, so that :math:`\beta`
    joins the balance of the weights around it.

    Args:
        width: number of neurons, the last dimension of the input.
        beta: initial value of every :math:`\beta_i` (dimensionless).

    Raises:
        ValueError: if ``width`` is not a positive integer, or a later input has another last dimension.

    Source: GU Section 4.3 and Observation 1.

    Example:
        >>> import torch
        >>> Swish(2)(torch.tensor([0.0, 100.0])).tolist()
        [0.0, 100.0]
    """

    def __init__(self, width: int, beta: float = 1.0):
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"Swish needs the number of neurons, an integer > 0, got {described(width)}")
        check_size(width, "Swish")
        self.beta = nn.Parameter(torch.full((width,), finite_number("beta", beta)))

    def forward(self, x: Tensor) -> Tensor:
        x = layer_input(x, f"(..., {len(self.beta)})")
        if not x.ndim or x.shape[-1] != len(self.beta):
            raise ValueError(
                f"Swish has {len(self.beta)} betas and its input has shape {tuple(x.shape)}; make it with "
                "Swish(number of neurons)"
            )
        return x * torch.sigmoid(self.beta * x)

    def extra_repr(self) -> str:
        return f"width={len(self.beta)}"


class ScaledLinear(nn.Linear):
    r"""A layer in the tangent kernel's scaling, :math:`W x / \sqrt{\text{fan-in}} + b` (Jacot et al.)."""

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.scale * self.weight, self.bias)
