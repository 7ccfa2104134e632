"""A chain of linear layers and elementwise activations, forward and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy import ndarray
from torch import nn

from nlcompanion.networks.activations import ScaledLinear, Swish
from nlcompanion.networks.backward.activations import Activation, activation_of, swish
from nlcompanion.networks.backward.criteria import Criterion
from nlcompanion.networks.ensembles import Ensemble, MemberActivations, MemberLinears

Back = Callable[[ndarray, ndarray], ndarray]  # slopes by what came out, gradient to write to -> slopes by what went in


class Workspace:
    """Arrays that are used again at each call: fresh ones of some hundred kB cost page faults, more than the sums."""

    def __init__(self) -> None:
        self.arrays: dict[tuple, ndarray] = {}

    def __call__(self, owner: object, role: str, shape: tuple[int, ...]) -> ndarray:
        key = (id(owner), role, shape)
        if key not in self.arrays:
            self.arrays[key] = np.empty(shape)
        return self.arrays[key]


class Chain:
    """A network as a list of layers, each ``(q, h, work) -> (h, back)`` on ``(..., neurons, samples)``."""

    def __init__(self, model: nn.Module, layers: Sequence[Linear | Elementwise | Gated]):
        self.made_of, self.layers = tuple(model.modules()), layers
        self._spare: list[Workspace] = []  # one for each call at a time: threads may share a chain
        self.members = len(model) if isinstance(model, Ensemble) else None
        self.flattens = self.members is not None or isinstance(next(model.children()), nn.Flatten)

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model is still made of the same modules, without anything hooked on to them."""
        now = tuple(model.modules())
        same = len(now) == len(self.made_of) and all(a is b for a, b in zip(now, self.made_of, strict=True))
        return same and not any(_hooked(module) for module in now)

    def value_and_gradient(self, q: ndarray, inputs: ndarray, criterion: Criterion) -> tuple[float, ndarray]:
        """Loss and gradient; ``inputs`` are ``(features, samples)``."""
        work = self._spare.pop() if self._spare else Workspace()
        h, backs = inputs, []
        for layer in self.layers:
            h, back = layer(q, h, work)
            backs.append(back)
        value, d = criterion(h)
        gradient = np.empty_like(q)
        for back in reversed(backs):
            d = back(d, gradient)
        if not self._spare:
            self._spare.append(work)
        return value, gradient


class Linear:
    """``W h + b`` of one network, or of all members of an ensemble; the first layer has no use for slopes by inputs."""

    def __init__(self, shape: tuple[int, ...], weight: slice, bias: slice | None, scale: float | None, first: bool):
        self.shape, self.weight, self.bias, self.scale, self.first = shape, weight, bias, scale, first

    def __call__(self, q: ndarray, h: ndarray, work: Workspace) -> tuple[ndarray, Back]:
        W = q[self.weight].reshape(self.shape)
        if self.scale is not None:
            W = self.scale * W
        shared = len(self.shape) == 3 and h.ndim == 2  # the inputs of an ensemble: one tall product
        z = work(self, "out", (*self.shape[:-1], h.shape[-1]))
        if shared:
            np.matmul(W.reshape(-1, self.shape[-1]), h, out=z.reshape(-1, h.shape[-1]))
        else:
            np.matmul(W, h, out=z)
        if self.bias is not None:
            z += q[self.bias].reshape(*self.shape[:-1], 1)

        def back(d: ndarray, gradient: ndarray) -> ndarray:
            place = gradient[self.weight]
            if shared:
                np.matmul(d.reshape(-1, d.shape[-1]), h.T, out=place.reshape(-1, self.shape[-1]))
            else:
                np.matmul(d, np.swapaxes(h, -1, -2), out=place.reshape(self.shape))
            if self.scale is not None:
                place *= self.scale
            if self.bias is not None:
                d.sum(-1, out=gradient[self.bias].reshape(self.shape[:-1]))
            return d if self.first else np.matmul(np.swapaxes(W, -1, -2), d, out=work(self, "back", h.shape))

        return z, back


class Elementwise:
    """An activation without parameters."""

    def __init__(self, activation: Activation):
        self.activation = activation

    def __call__(self, q: ndarray, h: ndarray, work: Workspace) -> tuple[ndarray, Back]:
        y, back = self.activation(h)
        return y, lambda d, gradient: back(d)


class Gated:
    """Swish, with a trained number for each neuron."""

    def __init__(self, shape: tuple[int, ...], beta: slice):
        self.shape, self.beta = shape, beta

    def __call__(self, q: ndarray, h: ndarray, work: Workspace) -> tuple[ndarray, Back]:
        y, back = swish(h, q[self.beta].reshape(self.shape))

        def write(d: ndarray, gradient: ndarray) -> ndarray:
            d, gradient[self.beta].reshape(self.shape)[...] = back(d)
            return d

        return y, write


def chain_of(model: nn.Module, slices: Mapping[str, slice]) -> Chain | None:
    """The chain that a network is, or None: a network of known layers in a row, all of whose parameters are trained."""
    if type(model) not in (nn.Sequential, Ensemble) or any(_hooked(module) for module in model.modules()):
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if set(parameters) != set(slices) or len({id(p) for p in parameters.values()}) < len(parameters):
        return None
    if any(True for _ in model.buffers()):
        return None
    layers: list[Linear | Elementwise | Gated] = []
    for name, layer in model.named_children():
        if type(layer) is nn.Flatten and not layers and (layer.start_dim, layer.end_dim) == (1, -1):
            continue
        if type(layer) is nn.Identity:
            continue
        made = _layer(name, layer, slices, first=not layers)
        overwrites = not isinstance(made, Linear)  # an activation does, which only a linear layer's output can bear
        if made is None or (overwrites and not (layers and isinstance(layers[-1], Linear))):
            return None
        layers.append(made)
    return Chain(model, layers) if layers else None


def _layer(
    name: str, layer: nn.Module, slices: Mapping[str, slice], *, first: bool
) -> Linear | Elementwise | Gated | None:
    if type(layer) in (nn.Linear, ScaledLinear, MemberLinears):
        bias = None if layer.bias is None else slices[f"{name}.bias"]
        scale = getattr(layer, "scale", None)
        return Linear(tuple(layer.weight.shape), slices[f"{name}.weight"], bias, scale, first)  # type: ignore[arg-type]
    if (type(layer) is MemberActivations and type(layer.template) is Swish) or type(layer) is Swish:
        return Gated(tuple(layer.beta.shape), slices[f"{name}.beta"])  # type: ignore[arg-type]
    activation = activation_of(layer)
    return None if activation is None else Elementwise(activation)


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
