"""Data of any nesting: dicts, tuples and lists of tensors, in the precision of a computation."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class Precision(NamedTuple):
    """What a computation is made in; without a device, where each tensor is."""

    dtype: torch.dtype
    device: torch.device | None = None

    @classmethod
    def of(cls, q: Tensor) -> Precision:
        return cls(q.dtype, q.device)


class Place(NamedTuple):
    """Where in nested data a tensor stands: the innermost key above it, and its number in the innermost collection."""

    key: str = ""
    number: int = 0


def mapped(data: Any, function: Callable[[Tensor, Place], Tensor], place: Place = Place()) -> Any:  # noqa: B008
    """The same nesting with ``function(tensor, place)`` for every tensor; all else as it is."""
    if isinstance(data, nn.Parameter):
        return function(data.detach(), place)
    if isinstance(data, Tensor):
        return function(data, place)
    if isinstance(data, PackedSequence):  # the lengths in it are its shape
        return data._replace(data=function(data.data, place))
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        fields = zip(data._fields, data, strict=True)
        return type(data)(*(mapped(item, function, Place(name, k)) for k, (name, item) in enumerate(fields)))
    if type(data) in (list, tuple):
        return type(data)(mapped(item, function, Place(place.key, k)) for k, item in enumerate(data))
    if isinstance(data, Mapping):
        return _mapped_mapping(data, function)
    if isinstance(data, functools.partial):
        keywords = mapped(dict(data.keywords), function)
        return functools.partial(data.func, *mapped(data.args, function), **keywords)
    return data


def _mapped_mapping(data: Mapping[Any, Any], function: Callable[[Tensor, Place], Tensor]) -> Any:
    items = {key: mapped(value, function, Place(str(key), k)) for k, (key, value) in enumerate(data.items())}
    if type(data) is dict:
        return items
    try:
        return type(data)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def cast(data: Any, to: Precision) -> Any:
    """Every floating-point and complex tensor in ``data`` as the computation needs it; all else as it is."""
    return mapped(data, lambda x, _: _cast_tensor(x, to))


def _cast_tensor(x: Tensor, to: Precision) -> Tensor:
    if x.is_inference():  # autograd refuses those
        x = x.clone()
    if x.is_floating_point():
        moved = x.detach().to(device=to.device, dtype=to.dtype)
    elif x.is_complex():
        complex_dtype = torch.complex128 if to.dtype == torch.float64 else torch.complex64
        moved = x.detach().to(device=to.device, dtype=complex_dtype)
    else:
        return x.to(device=to.device)
    return moved.clone().requires_grad_() if x.requires_grad else moved


def cast_criterion(loss: Any, to: Precision) -> Any:
    """A loss function in the precision of a computation: a copy of a module, whose buffers may be class weights."""
    if isinstance(loss, nn.Module):
        return copy.deepcopy(loss).to(device=to.device, dtype=to.dtype)
    return cast(loss, to)


def tensors_in(data: Any) -> Iterator[Tensor]:
    """All tensors of nested data."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, PackedSequence):
        yield data.data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from tensors_in(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from tensors_in(value)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """A model on its inputs: a mapping gives arguments by name, a tuple by place, all else is one argument."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple) and not isinstance(inputs, PackedSequence):
        return tuple(inputs), {}
    return (inputs,), {}
