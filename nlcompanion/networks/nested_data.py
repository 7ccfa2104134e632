"""Data of any nesting: dicts, tuples and lists of tensors, in the precision of a computation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class Precision(NamedTuple):
    """What a computation is made in."""

    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, q: Tensor) -> Precision:
        return cls(q.dtype, q.device)


def cast(data: Any, to: Precision) -> Any:
    """Every floating-point and complex tensor in ``data`` as the computation needs it; all else as it is."""
    if isinstance(data, nn.Parameter):
        return cast(data.detach(), to)
    if isinstance(data, Tensor):
        return _cast_tensor(data, to)
    if isinstance(data, PackedSequence):
        return data._replace(data=cast(data.data, to))
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(cast(item, to) for item in data))
    if type(data) in (list, tuple):
        return type(data)(cast(item, to) for item in data)
    if isinstance(data, Mapping):
        return _cast_mapping(data, to)
    if isinstance(data, functools.partial):
        return functools.partial(data.func, *cast(data.args, to), **cast(dict(data.keywords), to))
    return data


def _cast_tensor(x: Tensor, to: Precision) -> Tensor:
    if x.is_inference():  # autograd refuses those
        x = x.clone()
    if x.is_floating_point():
        moved = x.detach().to(to.device, to.dtype)
    elif x.is_complex():
        moved = x.detach().to(to.device, torch.complex128 if to.dtype == torch.float64 else torch.complex64)
    else:
        return x.to(to.device)
    return moved.clone().requires_grad_() if x.requires_grad else moved


def _cast_mapping(data: Mapping[Any, Any], to: Precision) -> Any:
    items = {name: cast(value, to) for name, value in data.items()}
    if type(data) is dict:
        return items
    try:
        return type(data)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


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
