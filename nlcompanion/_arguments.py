"""What the whole package asks of numbers, times, seeds and points, with errors that name the argument and the fix.

Everything that comes from outside passes here: no complex number loses its imaginary part, no NaN stands among times,
no seed is cut off to an integer, and nothing is left for torch or NumPy to complain about in their own words.
"""

from __future__ import annotations

import inspect
import math
import numbers as abstract
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST_SEED = 2**63 - 1
_MOST_NUMBERS = 2**31

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
    span = "" if least is None else f" >= {least}" if most is None else f" from {least} to {most:,}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, abstract.Integral):
        raise ValueError(f"{name} must be an integer{span}, got {described(value)}")
    number = int(value)
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{name} must be an integer{span}, got {described(number)}")
    return number


def seed_number(name: str, value: Any) -> int:
    """A seed as torch's and NumPy's generators take it, unchanged."""
    return integer(name, value, 0, _LARGEST_SEED)


def check_size(numbers: int, what: str) -> None:
    """Refuse a tensor that no machine holds, before torch tries to."""
    if numbers > _MOST_NUMBERS:
        raise ValueError(f"{what} would need a tensor of more than {_MOST_NUMBERS:,} numbers; make it smaller")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)


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


def floating_dtype(name: str, value: Any) -> torch.dtype:
    if not isinstance(value, torch.dtype) or value not in (torch.float32, torch.float64):
        got = value if isinstance(value, torch.dtype) else described(value)
        raise ValueError(f"{name} must be torch.float32 or torch.float64, got {got}")
    return value


def described(value: Any) -> str:
    """What a value is, in few words: a number as it is written, of all else the type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | complex | np.generic | type(None)):
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


def quantities(**given: Any) -> list[Any]:
    """Finite real numbers, arrays or tensors that one formula takes together: their shapes broadcast.

    Numbers stay numbers; arrays become tensors beside a tensor.
    """
    found = {name: _quantity(name, value) for name, value in given.items()}
    shapes = {name: tuple(value.shape) for name, value in found.items() if not isinstance(value, float)}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"shapes do not go together: {shapes}; give numbers, or as many of each") from None
    if any(isinstance(value, Tensor) for value in found.values()):
        return [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in found.values()]
    return list(found.values())


def _quantity(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim:
        x = as_tensor(name, value)
        if known(~torch.isfinite(x).all()) or not x.numel():
            raise ValueError(f"{name} must hold finite numbers, at least one")
        return x
    if isinstance(value, Tensor) and value.requires_grad:
        return as_tensor(name, value)
    return numbers(name, value).numpy() if isinstance(value, np.ndarray) and value.ndim else finite_number(name, value)


def none_below(name: str, value: Any, least: float = 0.0, strictly: bool = False) -> None:
    """Refuse a quantity with an entry below (or, strictly, at) a bound."""
    smallest = float(value.min()) if not isinstance(value, float) else value
    if smallest < least or (strictly and smallest == least):
        raise ValueError(f"{name} must be {'>' if strictly else '>='} {least:g}, got {smallest:g}")


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
    """A tensor of float32 or float64, differentiable where ``value`` is; complains by ``name`` otherwise."""
    if isinstance(value, Tensor):
        if value.dtype not in (torch.float64, torch.float32):
            raise TypeError(f"{name} has dtype {value.dtype}, which is too coarse or not real: pass {name}.double()")
        if value.is_meta or value.layout != torch.strided:
            raise TypeError(
                f"{name} has no plain values (device {value.device}, {value.layout}): make it dense, .cpu()"
            )
        return value
    return real_array(name, value)


def layer_input(x: Any, shape: str = "(...)") -> Tensor:
    """What a layer may be called with: real floating-point numbers of any precision."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided or x.is_meta:
        raise TypeError(f"x must be a tensor of real numbers of shape {shape}, got {described(x)}")
    return x


def vector(name: str, value: Any) -> Tensor:
    """A finite tensor of shape (n,), differentiable where ``value`` is."""
    x = as_tensor(name, value)
    if x.ndim != 1 or x.numel() == 0:
        raise ValueError(f"{name} must have shape (n,) with n > 0, got {tuple(x.shape)}; see flat_loss for networks")
    if known(~torch.isfinite(x).all()):
        raise ValueError(f"{name} holds NaN or infinity, where nothing is defined")
    return x


def state_of_motion(t: Any, q: Any, v: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Time, point and velocity of a function of (t, q, v)."""
    t, q, v = as_time(t), vector("q", q), vector("v", v)
    if q.shape != v.shape:
        raise ValueError(f"q has {len(q)} components and v {len(v)}; a velocity lives in the space of the point")
    return t, q, v


def scalar_of(name: str, value: Any) -> Tensor:
    """What a function returned, checked to be one number in a tensor."""
    if not isinstance(value, Tensor) or value.ndim != 0 or value.is_complex():
        raise TypeError(f"{name} must return a scalar tensor, got {described(value)}; use torch operations and .sum()")
    return value


def tensor_of(name: str, value: Any, shape: torch.Size | None = None) -> Tensor:
    """What a function returned, checked to be a tensor of real numbers, of a shape where one is asked for."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must return a tensor of real numbers, got {described(value)}; use torch operations")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must return shape {tuple(shape)}, got {tuple(value.shape)}")
    return value


def known(condition: Tensor) -> bool:
    """The value of a condition, or False inside ``torch.func.vmap``, where values cannot be looked at."""
    try:
        return bool(condition)
    except RuntimeError:
        return False


# --- times --------------------------------------------------------------------------------------------------------


def as_time(t: Any) -> Tensor:
    """A finite time as a float64 tensor without dimensions, differentiable where ``t`` is."""
    if isinstance(t, Tensor) and t.is_floating_point() and not _is_odd(t):
        if t.numel() != 1:
            raise TypeError(f"t must be a single time, got {described(t)}")
        time = t.double().reshape(())
    else:
        time = torch.tensor(real_number("t", t), dtype=torch.float64)
    if known(~torch.isfinite(time)):
        raise ValueError("t must be a finite time, got NaN or infinity")
    return time


def as_parameter(name: str, s: Any, like: Tensor) -> Tensor:
    """The finite number of a one-parameter action, in the precision of a point, differentiable where ``s`` is."""
    if isinstance(s, Tensor) and s.is_floating_point() and not _is_odd(s):
        if s.numel() != 1:
            raise TypeError(f"{name} must be a single number, got {described(s)}; call it for each")
        number = s.to(like.device, like.dtype).reshape(())
    else:
        number = torch.tensor(real_number(name, s), dtype=like.dtype, device=like.device)
    if known(~torch.isfinite(number)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return number


def ordered(name: str, value: Any, what: str) -> Any:
    """Anything with an order, which sets and generators do not have twice."""
    if not isinstance(value, list | tuple | np.ndarray | Tensor):
        raise TypeError(f"{name} must be {what}, got {described(value)}")
    return value


def time_span(t_span: Any) -> tuple[float, float]:
    what = "two times (t0, t1)"
    given = ordered("t_span", t_span, what)
    if isinstance(given, Tensor | np.ndarray):
        given = real_array("t_span", given).reshape(-1).tolist()
    if len(given) != 2:
        raise ValueError(f"t_span must be {what}, got {len(given)}")
    t0, t1 = real_number("t_span[0]", given[0]), real_number("t_span[1]", given[1])
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
