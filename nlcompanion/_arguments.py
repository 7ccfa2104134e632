"""What the whole package asks of numbers, times, seeds and points, with errors that name the argument and the fix.

Everything that comes from outside passes here: no complex number loses its imaginary part, no NaN stands among times,
no seed is cut off to an integer, and nothing is left for torch or NumPy to complain about in their own words.
"""

from __future__ import annotations

import math
import numbers as abstract
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST_SEED = 2**63 - 1

# --- single numbers -----------------------------------------------------------------------------------------------


def real_number(name: str, value: Any) -> float:
    """A single real number: of Python, of NumPy, or a tensor with one entry; NaN and infinity pass."""
    if isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1 and not _is_odd(value):
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, abstract.Real):
        raise TypeError(f"{name} must be a real number, got {described(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a floating-point number; give one below 1e308") from None


def finite_number(name: str, value: Any) -> float:
    number = real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def positive_number(name: str, value: Any) -> float:
    number = real_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {number:g}; nothing moves, or uphill, otherwise")
    return number


def number_from(name: str, value: Any, least: float, why: str) -> float:
    """A finite number that is not below ``least``; ``why`` ends the message."""
    number = real_number(name, value)
    if not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name} must be >= {least:g}, got {number:g}; {why}")
    return number


def fraction(name: str, value: Any, why: str) -> float:
    """A number in [0, 1)."""
    number = real_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be in [0, 1), got {number:g}; {why}")
    return number


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer of Python or NumPy, within bounds; neither True nor 3.0."""
    span = "" if least is None else f" >= {least}" if most is None else f" from {least} to {most}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, abstract.Integral):
        raise ValueError(f"{name} must be an integer{span}, got {described(value)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be an integer{span}, got {number}")
    return number


def seed_number(name: str, value: Any) -> int:
    """A seed as torch's and NumPy's generators take it, unchanged."""
    return integer(name, value, 0, _LARGEST_SEED)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)


def function(name: str, value: Any, form: str) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {described(value)}")
    return value


def described(value: Any) -> str:
    """What a value is, in few words: a number as it is written, of all else the type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float | complex | np.generic | type(None)):
        return f"{repr(value)[:60]} ({type(value).__name__})"
    return type(value).__name__


# --- arrays -------------------------------------------------------------------------------------------------------


def real_array(name: str, value: Any) -> Tensor:
    """A float64 tensor on the CPU, without gradient, from anything that holds real numbers; NaN and infinity pass."""
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        value = _stacked(name, value)
    if isinstance(value, Tensor) and not _is_odd(value):
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, str | bytes | type(None) | bool | Tensor) or callable(value):
        raise TypeError(f"{name} must be real numbers, got {described(value)}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers in one shape, got {described(value)}") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {described(value)} with entries of type {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _stacked(name: str, items: list[Any] | tuple[Any, ...]) -> Tensor:
    try:
        return torch.stack([item.detach() if isinstance(item, Tensor) else torch.as_tensor(item) for item in items])
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} must be real numbers in one shape, got a {type(items).__name__} of several") from error


def _is_odd(value: Tensor | np.ndarray) -> bool:
    """Complex, boolean, sparse, quantised or without values: nothing that stands for real numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "iuf"
    odd = value.is_complex() or value.dtype == torch.bool or value.is_meta or value.is_quantized
    return odd or value.layout != torch.strided


def numbers(name: str, value: Any) -> Tensor:
    """Finite real numbers of any shape, at least one."""
    array = real_array(name, value)
    if array.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(array.shape)} and holds no number")
    if not torch.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite; cut the run where it diverged")
    return array


def double(name: str, value: Any) -> Tensor:
    """Real numbers of any shape in float64, checked to be finite where that matters."""
    return real_array(name, value)


def at_least_zero(name: str, value: Any) -> Tensor:
    value = numbers(name, value)
    if (value < 0).any():
        raise ValueError(f"{name} holds {value.min().item():g}; it is a square or a ratio of squares, never below 0")
    return value


def positive(name: str, value: Any) -> Tensor:
    value = numbers(name, value)
    if not (value > 0).all():
        raise ValueError(
            f"{name} must be positive, got {value.min().item():g}; a length or gradient of 0 has no direction"
        )
    return value


def one(name: str, value: Any) -> float:
    value = positive(name, value)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, and an equilibrium is one weight's; call it for each")
    return float(value.item())


def broadcast(name: str, value: Tensor, like: Tensor) -> Tensor:
    try:
        return torch.broadcast_to(value, like.shape).to(torch.float64)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(like.shape)}; give a number or "
            "one value for each weight"
        ) from None


# --- points and tensors that are differentiated ---------------------------------------------------------------------


def as_point(name: str, value: Any) -> Tensor:
    """A float64 tensor of shape (n,) from array-like ``value``; complains by ``name`` otherwise."""
    if isinstance(value, Tensor) and value.dtype not in (torch.float64, torch.float32):
        raise TypeError(
            f"{name} has dtype {value.dtype}; laws of motion need real floating point: pass {name}.double()"
        )
    point = real_array(name, value)
    if point.ndim != 1 or point.numel() == 0:
        raise ValueError(
            f"{name} must have shape (n,) with n > 0, got {tuple(point.shape)}; "
            "flatten network parameters with flat_loss, wrap a single number in a list"
        )
    if not torch.isfinite(point).all():
        raise ValueError(f"{name} holds NaN or infinity; a trajectory cannot start or pass there")
    return point


def as_tensor(name: str, value: Any) -> Tensor:
    """A floating-point tensor, differentiable where ``value`` is; complains by ``name`` otherwise."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.is_meta or value.layout != torch.strided:
            raise TypeError(f"{name} has dtype {value.dtype}; actions are differentiated: pass {name}.double()")
        return value
    return real_array(name, value)


def known(condition: Tensor) -> bool:
    """The value of a condition, or False inside ``torch.func.vmap``, where values cannot be looked at."""
    try:
        return bool(condition)
    except RuntimeError:
        return False


# --- times --------------------------------------------------------------------------------------------------------


def as_time(t: Any) -> Tensor:
    """A time as a float64 tensor, differentiable where ``t`` is."""
    if isinstance(t, Tensor) and t.is_floating_point():
        if t.numel() != 1:
            raise TypeError(f"t must be a single time, got {described(t)}")
        return t if t.dtype == torch.float64 else t.double()
    return torch.tensor(real_number("t", t), dtype=torch.float64)


def time_span(t_span: Any) -> tuple[float, float]:
    try:
        first, last = list(t_span)
    except (TypeError, ValueError):
        raise TypeError(f"t_span must be two times (t0, t1), got {described(t_span)}") from None
    t0, t1 = real_number("t_span[0]", first), real_number("t_span[1]", last)
    if not (math.isfinite(t0) and math.isfinite(t1) and t0 < t1):
        raise ValueError(f"t_span = ({t0}, {t1}) is no interval; give finite (t0, t1) with t0 < t1")
    return t0, t1


def times(t: Any) -> Tensor:
    t = numbers("t", t)
    if t.ndim != 1 or len(t) == 0 or not (t.diff() > 0).all():
        raise ValueError(
            f"t has shape {tuple(t.shape)}; times are a non-empty vector that increases from entry to entry, such as "
            "lr * arange(T)"
        )
    return t


def times_within(name: str, value: Any, t0: float, t1: float) -> np.ndarray:
    """Increasing times inside an interval, whose ends forgive one rounding: ``0.1 * 3`` is 0.3 there.

    Times in float32 are forgiven a rounding of float32.
    """
    given = real_array(name, value).numpy()
    bad = f"{name} must be increasing times within [{t0:g}, {t1:g}], of shape (T,) with T > 0"
    if given.ndim != 1 or not len(given):
        raise ValueError(f"{bad}, got shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"{bad}; entry {int(np.flatnonzero(~np.isfinite(given))[0])} is not finite")
    slack = 4 * _rounding(value) * max(abs(t0), abs(t1))
    inside = given.copy()
    inside[(given < t0) & (given >= t0 - slack)] = t0
    inside[(given > t1) & (given <= t1 + slack)] = t1
    if inside[0] < t0 or inside[-1] > t1 or (np.diff(inside) <= 0).any():
        raise ValueError(f"{bad}, got {given[0]:g} to {given[-1]:g}")
    return inside


def _rounding(value: Any) -> float:
    """The spacing of floating-point numbers next to 1, in the precision in which times were given."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return torch.finfo(value.dtype).eps
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return float(np.finfo(value.dtype).eps)
    return float(np.finfo(np.float64).eps)


def names(name: str, value: Any) -> tuple[str, ...]:
    """Several names, of which a single string is none."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be several names in a list, got {described(value)}")
    found = tuple(value)
    if not all(isinstance(item, str) for item in found):
        raise TypeError(f"{name} must be names, got {', '.join(type(item).__name__ for item in found)}")
    return found
