r"""The papers' networks, and a loss as a function of one flat vector.

:func:`flat_loss` is the bridge between a ``torch.nn.Module`` and mechanics: it turns model, data and criterion into
``f(q)``, with ``q`` all trainable parameters in the order of ``model.named_parameters()``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nlcompanion._convnets import conv_bn, vgg11

__all__ = [
    "Ensemble",
    "FlatLoss",
    "Power",
    "RePU",
    "Swish",
    "conv_bn",
    "ensemble",
    "flat_loss",
    "mlp",
    "over_members",
    "vgg11",
]


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
        if not (isinstance(p, int | float) and math.isfinite(p) and p > 0):
            raise ValueError(f"RePU needs a power p > 0, got {p!r}; p = 1 is ReLU, p = 2 its square")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
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
                else f"Power needs an integer p >= 1, got {p!r}"
            )
        if p < 1:
            raise ValueError(f"Power needs p >= 1, got {p}: x**{p} is no activation, constant or singular at 0")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
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
        if not (isinstance(width, int) and width > 0):
            raise ValueError(f"Swish needs the number of neurons, an integer > 0, got {width!r}")
        self.beta = nn.Parameter(torch.full((width,), float(beta)))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.beta):
            raise ValueError(
                f"Swish has {len(self.beta)} betas and its input {x.shape[-1]} neurons; make it with "
                f"Swish({x.shape[-1]})"
            )
        return x * torch.sigmoid(self.beta * x)

    def extra_repr(self) -> str:
        return f"width={len(self.beta)}"


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
    widths = tuple(widths)
    if len(widths) < 2 or any(not isinstance(d, int) or d < 1 for d in widths):
        raise ValueError(f"widths must be two or more positive integers, input first, got {widths}")
    if init not in _INITS:
        raise ValueError(f"init {init!r} is unknown; choose from {', '.join(_INITS)}")
    hidden = widths[1:-1]
    kinds = list(activation) if isinstance(activation, list | tuple) else [activation] * len(hidden)
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


class ScaledLinear(nn.Linear):
    r"""A layer in the tangent kernel's scaling, :math:`W x / \sqrt{\text{fan-in}} + b` (Jacot et al.)."""

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.scale * self.weight, self.bias)


def _linear(fan_in: int, fan_out: int, bias: bool, init: str) -> nn.Linear:
    if init == "ntk":
        layer = ScaledLinear(fan_in, fan_out, bias=bias, dtype=torch.float64)
        nn.init.normal_(layer.weight)
        if bias:
            nn.init.zeros_(layer.bias)
        return layer
    layer = nn.Linear(fan_in, fan_out, bias=bias, dtype=torch.float64)
    if _INITS[init] is not None:
        nn.init.normal_(layer.weight, std=math.sqrt(_INITS[init] / fan_in))
        if bias:
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
    return kind(width)


class FlatLoss:
    r"""A network's loss as ``f(q)`` of one flat vector; made by :func:`flat_loss`.

    Attributes:
        q0: the model's parameters at construction, shape ``(n,)``, float64.
        names: parameter names in the order of ``q``.
        slices: where each parameter sits in ``q``, ``{name: slice}``.
        model: the loss's own copy of the model; its weights are never used, its structure and modes are.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("the model has no trainable parameter; flat_loss needs one with requires_grad=True")
        self.model = copy.deepcopy(model)
        self._loss, self._data = loss, (inputs, targets)
        held = [x for named in (model.named_parameters, model.named_buffers) for _, x in named(remove_duplicate=False)]
        self._shared = len({id(x) for x in held}) < len(held)
        self._shapes = {name: p.shape for name, p in trained.items()}
        self._sizes = [p.numel() for p in trained.values()]
        self.names = tuple(trained)
        ends = torch.tensor([0, *self._sizes]).cumsum(0).tolist()
        self.slices = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.names)}
        self.q0 = torch.cat([p.detach().reshape(-1).double().cpu() for p in trained.values()])
        # made here, once: a tensor first cast inside a torch.func.jvp is bound to that differentiation for ever
        self._double = self._cast_to(torch.float64)

    def __repr__(self) -> str:
        return f"FlatLoss({len(self.q0)} parameters in {len(self.names)} tensors)"

    def __len__(self) -> int:
        return len(self.q0)

    def unflatten(self, q: Tensor) -> dict[str, Tensor]:
        """``{name: tensor}``, views into ``q``; differentiable."""
        if q.shape != self.q0.shape:
            raise ValueError(
                f"q has shape {tuple(q.shape)}, this model's parameters make {tuple(self.q0.shape)}; start from .q0"
            )
        pieces = q.split(self._sizes)  # one node in the graph, whose backward is a single concatenation
        return {name: x.view(shape) for (name, shape), x in zip(self._shapes.items(), pieces, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`."""
        missing = set(self.names) - set(tensors)
        if missing:
            raise ValueError(f"no tensor for {', '.join(sorted(missing))}; flatten needs every trained parameter")
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def outputs(self, q: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The network's outputs at parameters ``q``, on the loss's own inputs unless others are given."""
        own, _, state = self._as(q.dtype)
        # in train mode a layer may write to its buffers: give it copies, so that f stays a function of q alone
        state = {name: x.clone() for name, x in state.items()}
        tensors = {**state, **self.unflatten(q)}
        # the search for shared weights costs a seventh of a tiny gradient, so it is made only where there are any
        return functional_call(self.model, tensors, (own if inputs is None else inputs,), tie_weights=self._shared)

    def __call__(self, q: Tensor) -> Tensor:
        value = self._loss(self.outputs(q), self._as(q.dtype)[1])
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss(outputs, targets) must be a scalar tensor, got {got}; use reduction='mean' or 'sum'")
        return value

    def on(self, inputs: Tensor, targets: Tensor) -> FlatLoss:
        """The same model and criterion on other data: a mini-batch's loss."""
        other = copy.copy(self)
        other._data = (inputs, targets)
        other._double = other._cast_to(torch.float64)
        return other

    def _as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Inputs, targets and frozen state in the precision of ``q``."""
        return self._double if dtype == torch.float64 else self._cast_to(dtype)

    def _cast_to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        to = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731  (integers stay integers)
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        state = {**frozen, **dict(self.model.named_buffers())}
        return (*map(to, self._data), {name: to(x.detach()) for name, x in state.items()})


def flat_loss(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> FlatLoss:
    r"""Turn model, data and criterion into a loss :math:`f(q)` of one flat vector.

    Args:
        model: any ``torch.nn.Module``; it is copied and never changed. Parameters with ``requires_grad=False`` and
            buffers are frozen at their present values.
        inputs: what the model takes, first dimension the samples.
        targets: what ``loss`` takes beside the outputs, same first dimension.
        loss: ``loss(outputs, targets) -> scalar``, such as ``torch.nn.functional.cross_entropy``. Sum or mean over
            samples is the caller's choice and changes every rate that names the loss.

    Returns:
        A :class:`FlatLoss` ``f``: call ``f(q)``; ``f.q0`` is the model's own start, ``f.unflatten(q)`` the parameters
        by name, ``f.on(x, y)`` the same loss on other samples.

    Raises:
        ValueError: nothing to train, or inputs and targets of different lengths.
        TypeError: inputs or targets that are no tensors of samples; when called, if ``loss`` does not reduce to a
            scalar.

    Source: GU Eq. 18.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import mlp
        >>> f = flat_loss(mlp((4, 3, 2)), torch.ones(5, 4), torch.zeros(5).long(), nn.functional.cross_entropy)
        >>> f(f.q0).ndim, len(f), f.unflatten(f.q0)["1.weight"].shape
        (0, 18, torch.Size([3, 4]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap a function in a Module")
    for name, given in (("inputs", inputs), ("targets", targets)):
        if not isinstance(given, Tensor) or given.ndim == 0:
            got = "a single number" if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(f"{name} must be a tensor with the samples first, got {got}; use torch.as_tensor")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets; a loss needs as many of each, at least one")
    return FlatLoss(model, inputs, targets, loss)


# at the end: ensembles are made of this module's networks
from nlcompanion._ensembles import Ensemble, ensemble, over_members  # noqa: E402
