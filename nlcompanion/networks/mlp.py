r"""The papers' networks, and a loss as a function of one flat vector.

:func:`flat_loss` is the bridge between a ``torch.nn.Module`` and mechanics: it turns model, data and criterion into
``f(q)``, with ``q`` all trainable parameters in the order of ``model.named_parameters()``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nlcompanion._arguments import check_size, choice, flag, floating_dtype, function, instance, seed_number
from nlcompanion.networks.activations import ScaledLinear, Swish

__all__ = ["mlp"]

_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "leaky_relu": lambda width: nn.LeakyReLU(),
    "swish": Swish,
    "gelu": lambda width: nn.GELU(),
    "tanh": lambda width: nn.Tanh(),
    "softplus": lambda width: nn.Softplus(),
    "linear": lambda width: nn.Identity(),
}
_INITS = {
    "default": None,  # nn.Linear's own: uniform with bound fan_in^-1/2
    "kaiming": 2.0,
    "lecun": 1.0,
    "ntk": 1.0,  # variance 1, and the layer divides by the root of its fan-in
}
Activation = str | nn.Module | Callable[[int], nn.Module]


def mlp(
    widths: Sequence[int],
    activation: Activation | Sequence[Activation] = "relu",
    *,
    bias: bool = False,
    init: str = "default",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    r"""A fully connected network, :math:`f_w(x) = W^{(K)}\sigma_{K-1}(\cdots\sigma_1(W^{(1)} x))`, linear at the end.

    Args:
        widths: ``(d_0, ..., d_K)``, input first, output last.
        activation: for all hidden layers, or a sequence with one per hidden layer. Each is a name (``"relu"``,
            ``"leaky_relu"``, ``"swish"``, ``"gelu"``, ``"tanh"``, ``"softplus"``, ``"linear"``), a module (copied), or
            a function ``width -> module``.
        bias: whether layers have biases; GU's main laws are for networks without.
        init: ``"default"`` (``torch.nn.Linear``'s), ``"kaiming"`` (normal, variance 2 / fan-in), ``"lecun"``
            (1 / fan-in) or ``"ntk"``: variance 1 and layers :math:`W x / \sqrt{\text{fan-in}}`, the same functions as
            ``"lecun"`` with gradients whose kernel stays of one size as the network widens.
        seed: of the initialisation; the global random state stays untouched.
        dtype: float64 for anything that claims conservation.

    Returns:
        ``nn.Sequential`` of ``Flatten``, then ``Linear`` and activation in turn.

    Raises:
        ValueError: impossible widths, unknown names, a wrong number of activations.

    Source: GU Eq. 19.

    Example:
        >>> [tuple(p.shape) for p in mlp((784, 200, 10)).parameters()]
        [(200, 784), (10, 200)]
    """
    widths = tuple(instance("widths", widths, (tuple, list), "(4, 3, 2)"))
    if len(widths) < 2 or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in widths):
        raise ValueError(f"widths must be two or more positive integers, input first, got {widths}")
    check_size(max(a * b for a, b in pairwise(widths)), f"widths {widths}")
    choice("init", init, *_INITS)
    flag("bias", bias)
    seed, dtype = seed_number("seed", seed), floating_dtype("dtype", dtype)
    hidden = widths[1:-1]
    given: Any = activation
    kinds: list[Activation] = list(given) if isinstance(given, list | tuple) else [given] * len(hidden)
    if len(kinds) != len(hidden):
        raise ValueError(
            f"{len(kinds)} activations for {len(hidden)} hidden layers; give one for each, or a single one"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
            layers.append(_linear(fan_in, fan_out, bias, init))
            if k < len(hidden):
                layers.append(_activation(kinds[k], fan_out))
    return nn.Sequential(*layers).to(dtype)


def _linear(fan_in: int, fan_out: int, bias: bool, init: str) -> nn.Linear:
    kind = ScaledLinear if init == "ntk" else nn.Linear
    layer = kind(fan_in, fan_out, bias=bias, dtype=torch.float64)
    variance = _INITS[init]
    if init == "ntk":
        nn.init.normal_(layer.weight)
    elif variance is not None:
        nn.init.normal_(layer.weight, std=math.sqrt(variance / fan_in))
    if bias and (init == "ntk" or variance is not None):
        nn.init.zeros_(layer.bias)
    return layer


def _activation(kind: Activation, width: int) -> nn.Module:
    if isinstance(kind, nn.Module):
        return copy.deepcopy(kind)
    if isinstance(kind, str):
        if kind not in _ACTIVATIONS:
            raise ValueError(
                f"activation {kind!r} is unknown; choose from {', '.join(_ACTIVATIONS)}, or pass a module: RePU(2)"
            )
        return _ACTIVATIONS[kind](width)
    made = function("activation", kind, "width -> module, or a name, or a module", 1)(width)
    return instance("what activation(width) returns", made, nn.Module, "nn.ReLU()")
