"""What a monitor asks of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nlcompanion._arguments import choice, described
from nlcompanion.monitoring.alerts import KINDS, Alert
from nlcompanion.monitoring.step_hooks import innermost


def optimizers_of(given: Any) -> list[torch.optim.Optimizer]:
    """The optimizers to hear, without wrappers."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ValueError("a monitor needs the optimizer that moves the model, got an empty list")
    return list(dict.fromkeys(innermost(one)[0] for one in several))


def listener(on_alert: Any) -> Callable[[Alert], Any] | None:
    """What is to be told of alerts."""
    if on_alert is not None and (not callable(on_alert) or isinstance(on_alert, type)):
        raise TypeError(f"on_alert must be a function of an Alert, or None, got {described(on_alert)}")
    return on_alert


def flag_or_none(name: str, value: Any) -> bool | None:
    """True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, got {described(value)}")
    return value


def kinds(ignore: Any) -> tuple[str, ...]:
    """Kinds of alerts."""
    if not isinstance(ignore, list | tuple) or not all(isinstance(kind, str) for kind in ignore):
        raise TypeError(f"ignore must be kinds of alerts in a list, got {described(ignore)}")
    for kind in ignore:
        choice("ignore", kind, *KINDS)
    return tuple(ignore)
