"""What a value is: in few words, of what kind, and whether a condition is known to hold."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def of_class(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of torch or NumPy, without loading either: before that nothing can be."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def is_array(value: Any) -> bool:
    """A tensor or a NumPy array."""
    return of_class(value, "torch", "Tensor") or of_class(value, "numpy", "ndarray")


def described(value: Any) -> str:
    """What a value is, in few words: a number as it is written, of all else the type."""
    if of_class(value, "torch", "Tensor"):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if of_class(value, "numpy", "ndarray"):
        return f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | complex | type(None)) or of_class(value, "numpy", "generic"):
        return f"{repr(value)[:60]} ({type(value).__name__})"
    return type(value).__name__


def counted(number: int, noun: str) -> str:
    """``1 law``, ``2 laws``, ``2,306 parameters``: a number with its noun, which takes an s but for one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_odd(value: Tensor | np.ndarray) -> bool:
    """Complex, boolean, sparse, quantised or without values: nothing that stands for real numbers."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value.dtype.kind not in "iuf"
    odd = value.is_complex() or value.dtype == torch.bool or value.is_meta or value.is_quantized
    return odd or value.layout != torch.strided


def known(condition: Tensor) -> bool:
    """The value of a condition, or False inside ``torch.func.vmap``, where values cannot be looked at."""
    try:
        return bool(condition)
    except RuntimeError:
        return False
