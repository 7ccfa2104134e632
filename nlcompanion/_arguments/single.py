"""Single numbers: real, positive, in a range; integers, seeds and switches."""

from __future__ import annotations

import math
import numbers as abstract
from typing import Any

from nlcompanion._arguments.descriptions import described, is_array, is_odd, of_class

_LARGEST_SEED = 2**64 - 1  # torch takes no larger one
_MOST_NUMBERS = 2**31


def real_number(name: str, value: Any) -> float:
    """A single real number: of Python, of NumPy, or a tensor with one entry; NaN and infinity pass."""
    if is_array(value) and math.prod(value.shape) == 1 and not is_odd(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, abstract.Real):
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
    if isinstance(value, bool) or not isinstance(value, abstract.Integral):
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
    if not (isinstance(value, bool) or of_class(value, "numpy", "bool_")):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)
