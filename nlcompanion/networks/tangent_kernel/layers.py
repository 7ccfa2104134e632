"""Layers whose parameters' gradients are known from their inputs and from the slopes of their outputs.

A kind of layer is registered with a function that gets one call of such a layer, the slopes of all outputs of the
network by the layer's output, ``(C, *shape of the output)``, and the number of samples. It returns what belongs to each
of the layer's own parameters. Nothing here needs to be right by itself: whatever it returns is
held against backpropagation, for every block of samples, before it enters a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from nlcompanion.networks.activations import ScaledLinear, Swish
from nlcompanion.networks.tangent_kernel.gradients import Gradients, Lookup, Outer, Rows, size_of_terms


class Seen(NamedTuple):
    """A call of a layer as it was seen."""

    layer: Any
    input: Tensor
    weights: dict[str, Tensor]  # by the layer's own names; after the call it no longer holds those of the point


Factors = dict[str, Gradients]
Handler = Callable[[Seen, Tensor, int], Factors]
_HANDLERS: dict[type[nn.Module], Handler] = {}


def register_layers(*kinds: type[nn.Module]) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return register


def handler_of(layer: nn.Module) -> Handler | None:
    """A subclass counts as what it is made of unless it runs in a way of its own."""
    for kind in type(layer).__mro__:
        if kind in _HANDLERS:
            return _HANDLERS[kind] if type(layer).forward is kind.forward else None
    return None


# --- linear maps --------------------------------------------------------------------------------------------------


@register_layers(nn.Linear, ScaledLinear)
def _linear(seen: Seen, slopes: Tensor, b: int) -> Factors:
    """Dimensions between the samples and the features are positions."""
    layer, x, _ = seen
    inputs = x.reshape(b, 1, -1, layer.in_features)
    if isinstance(layer, ScaledLinear):
        inputs = layer.scale * inputs
    outgoing = _samples_first(slopes.reshape(len(slopes), b, -1, layer.out_features))
    return {"weight": Outer(inputs, outgoing[:, :, None]), "bias": Rows(outgoing.sum(2), size_of_terms(outgoing))}


@register_layers(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(seen: Seen, slopes: Tensor, b: int) -> Factors:
    r"""A linear map at every place of the output, of the patch that is seen from there."""
    layer, x, _ = seen
    dims, groups = len(layer.kernel_size), layer.groups
    x = _padded(layer, x.reshape(-1, layer.in_channels, *x.shape[-dims:]))
    for k in range(dims):
        width = layer.dilation[k] * (layer.kernel_size[k] - 1) + 1
        x = x.unfold(2 + k, width, layer.stride[k])[..., :: layer.dilation[k]]
    patches = x.flatten(2 + dims).flatten(2, 1 + dims)  # (images, channels, places, offsets)
    patches = patches.reshape(b, -1, groups, layer.in_channels // groups, *patches.shape[2:])
    inputs = patches.permute(0, 2, 1, 4, 3, 5).flatten(4).flatten(2, 3)
    outgoing = slopes.reshape(len(slopes), b, -1, groups, layer.out_channels // groups, patches.shape[-2])
    outgoing = outgoing.permute(1, 0, 3, 2, 5, 4).flatten(3, 4)  # (b, C, G, P, O)
    return {"weight": Outer(inputs, outgoing), "bias": Rows(outgoing.sum(3).flatten(2), size_of_terms(outgoing))}


def _padded(layer: _ConvNd, x: Tensor) -> Tensor:
    """``x`` with the border that the layer puts around it."""
    if layer.padding == "valid":
        return x
    border: list[int] = []
    for k in reversed(range(len(layer.kernel_size))):  # F.pad begins with the last dimension
        if layer.padding == "same":
            total = layer.dilation[k] * (layer.kernel_size[k] - 1)
            border += [total // 2, total - total // 2]
        else:
            border += [int(layer.padding[k])] * 2
    return F.pad(x, border, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


@register_layers(nn.Embedding)
def _embedding(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    if layer.max_norm is not None or layer.scale_grad_by_freq:  # neither is a function of the weights alone
        return {}
    entries = x.reshape(b, -1)
    outgoing = _samples_first(slopes.reshape(len(slopes), b, -1, layer.embedding_dim))
    if layer.padding_idx is not None:  # has no gradient by definition
        outgoing = outgoing * (entries != layer.padding_idx)[:, None, :, None]
    return {"weight": Lookup(entries, outgoing, layer.num_embeddings)}


# --- gains and shifts of each feature -----------------------------------------------------------------------------


@register_layers(nn.LayerNorm)
def _layer_norm(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    return _affine(F.layer_norm(x, layer.normalized_shape, eps=layer.eps), slopes, b, layer.normalized_shape)


@register_layers(nn.RMSNorm)
def _rms_norm(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    factors = _affine(F.rms_norm(x, layer.normalized_shape, eps=layer.eps), slopes, b, layer.normalized_shape)
    return {"weight": factors["weight"]}


@register_layers(nn.GroupNorm)
def _group_norm(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    return _affine_of_channels(F.group_norm(x, layer.num_groups, eps=layer.eps), slopes, b)


@register_layers(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    if layer.running_mean is None:  # the batch's own statistics: no kernel between samples
        return {}
    mean, variance = layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype)  # type: ignore[union-attr]
    return _affine_of_channels(F.batch_norm(x, mean, variance, eps=layer.eps), slopes, b)


@register_layers(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    if layer.track_running_stats:
        return {}
    return _affine_of_channels(F.instance_norm(x, eps=layer.eps), slopes, b)


@register_layers(Swish)
def _swish(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, weights = seen
    gate = torch.sigmoid(weights["beta"] * x)
    return {"beta": _affine(x.square() * gate * (1 - gate), slopes, b, layer.beta.shape)["weight"]}


@register_layers(nn.PReLU)
def _prelu(seen: Seen, slopes: Tensor, b: int) -> Factors:
    layer, x, _ = seen
    below = x.clamp(max=0)
    if layer.num_parameters > 1:
        return {"weight": _affine_of_channels(below, slopes, b)["weight"]}
    terms = below.unsqueeze(0) * slopes
    return {
        "weight": Rows(_samples_first(terms.reshape(len(slopes), b, -1)).sum(2, keepdim=True), size_of_terms(terms))
    }


def _affine(x: Tensor, slopes: Tensor, b: int, shape: tuple[int, ...]) -> Factors:
    """Of ``weight * x + bias`` with one number for each entry of the last dimensions, ``shape``."""
    m = int(torch.Size(shape).numel())
    outgoing = _samples_first(slopes.reshape(len(slopes), b, -1, m))
    terms = outgoing * x.reshape(b, 1, -1, m)
    return {
        "weight": Rows(terms.sum(2), size_of_terms(terms)),
        "bias": Rows(outgoing.sum(2), size_of_terms(outgoing)),
    }


def _affine_of_channels(x: Tensor, slopes: Tensor, b: int) -> Factors:
    """The same with one number for each entry of dimension 1."""
    return _affine(x.movedim(1, -1), slopes.movedim(2, -1), b, (x.shape[1],))


def _samples_first(slopes: Tensor) -> Tensor:
    return slopes.transpose(0, 1)
