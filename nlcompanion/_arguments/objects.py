"""Functions, objects of a kind, choices, names, paths and dtypes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlcompanion._arguments.descriptions import described, is_array

if TYPE_CHECKING:
    import torch


def function(name: str, value: Any, form: str, takes: int | None = None) -> Callable[..., Any]:
    """Something to call, by its form such as ``f(q) -> scalar``; with ``takes`` arguments by place."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {described(value)}")
    if isinstance(value, type):
        raise TypeError(f"{name} must be a function {form}, got the class {value.__name__}; make one of it first")
    if takes is not None and not _can_take(value, takes):
        raise TypeError(f"{name} must be a function {form}, and this one does not take {takes} arguments by place")
    return value


def _can_take(value: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # built-in functions have none
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def instance(name: str, value: Any, kind: type | tuple[type, ...], example: str) -> Any:
    """An object of a kind, with an example of how one is made."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TypeError(
            f"{name} must be a {' or '.join(k.__name__ for k in kinds)} such as {example}, got {described(value)}"
        )
    return value


def choice(name: str, value: Any, *allowed: str) -> str:
    if not (isinstance(value, str) and value in allowed):
        raise ValueError(f"{name} {described(value)} is unknown; choose from {', '.join(allowed)}")
    return value


def names(name: str, value: Any) -> tuple[str, ...]:
    """Several names, of which a single string is none."""
    if isinstance(value, str | bytes) or is_array(value) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be several names in a list, got {described(value)}")
    found = tuple(value)
    if not all(isinstance(item, str) for item in found):
        raise TypeError(f"{name} must be names, got {', '.join(type(item).__name__ for item in found)}")
    return found


def ordered(name: str, value: Any, what: str) -> Any:
    """Anything with an order, which sets and generators do not have twice."""
    if not (isinstance(value, list | tuple) or is_array(value)):
        raise TypeError(f"{name} must be {what}, got {described(value)}")
    return value


def a_path(name: str, value: Any) -> Path:
    """A path as text or as one of Python's own path objects."""
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise TypeError(f"{name} must be a path, got {described(value)}")
    return Path(value)


def floating_dtype(name: str, value: Any) -> torch.dtype:
    import torch

    if not isinstance(value, torch.dtype) or value not in (torch.float32, torch.float64):
        got = value if isinstance(value, torch.dtype) else described(value)
        raise ValueError(f"{name} must be torch.float32 or torch.float64, got {got}")
    return value


def floating_precision(name: str, value: Any) -> torch.dtype | None:
    """Any floating-point dtype, or None."""
    import torch

    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        got = value if isinstance(value, torch.dtype) else described(value)
        raise TypeError(f"{name} must be a floating-point dtype such as torch.bfloat16, or None, got {got}")
    return value
