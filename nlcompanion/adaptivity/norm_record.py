"""The measured past of some weights' norms, checked and in one shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlcompanion._arguments import positive_number, real_array
from nlcompanion.adaptivity.norm_law import SGD, normalized_drive, sgd_drive


@dataclass(frozen=True)
class NormRecord:
    """Measurements of ``N`` weights at ``T`` steps.

    Attributes:
        rule: "sgd" or "normalized".
        momentum: of SGD.
        steps: shape ``(T,)``.
        norms: shape ``(T, N)``; may hold NaN, of weights that get no forecast.
        rates: shape ``(T,)``, the last the present one.
        drives: what the law's terms say of the drive, shape ``(T, N)``, or None where they were not measured.
        turns: how far a lasting update turns the weight in one step, in radians, shape ``(T, N)``, or None.
        shape: of the weights as they were given.
    """

    rule: str
    momentum: float
    steps: Tensor
    norms: Tensor
    rates: Tensor
    drives: Tensor | None
    turns: Tensor | None
    shape: tuple[int, ...]

    @property
    def span(self) -> int:
        """Steps from the first to the last record."""
        return int(self.steps[-1] - self.steps[0])


def record_of(
    rule: str,
    momentum: float,
    steps,
    norms,
    lr,
    lrs,
    grad_norms,
    persistence,
    update_norms,
    memory,
) -> NormRecord:
    """The checked record of a forecast's arguments."""
    steps = _steps(steps)
    length = real_array("norms", norms)
    if length.ndim == 0 or len(length) != len(steps) or not length.numel():
        raise ValueError(f"{len(steps)} steps and norms of shape {tuple(length.shape)}; give one record for each step")
    shape = tuple(length.shape[1:])
    length = length.reshape(len(steps), -1)
    if (length < 0).any():
        raise ValueError(f"norms holds {length.min().item():g}; a norm is never below 0")
    now = positive_number("lr", lr)
    rates = _rates(now, lrs, len(steps))
    like = length.reshape(len(steps), *shape)
    gradients = _measured("grad_norms", grad_norms, like)
    updates = _measured("update_norms", update_norms, like)
    persists = _measured("persistence", persistence, like)
    remembers = _measured("memory", memory, like)
    drives = turns = None
    if rule == SGD and gradients is not None:
        turns = rates[:, None] * gradients / length / (1 - momentum)
        if persists is not None:
            drives = sgd_drive(gradients, length, persists, momentum)
    if rule != SGD and updates is not None:
        turns = rates[:, None] * updates / length
        if remembers is not None:
            drives = normalized_drive(updates, remembers)
    return NormRecord(rule, momentum, steps, length, rates, drives, turns, shape)


def _steps(steps) -> Tensor:
    steps = real_array("steps", steps)
    if steps.ndim != 1 or len(steps) < 2 or not torch.isfinite(steps).all() or not (steps.diff() > 0).all():
        raise ValueError(
            f"steps has shape {tuple(steps.shape)}; they are at least two numbers that increase, such as "
            "range(0, 1000, 10)"
        )
    return steps


def _rates(now: float, lrs, count: int) -> Tensor:
    if lrs is None:
        return torch.full((count,), now, dtype=torch.float64)
    rates = real_array("lrs", lrs)
    if rates.shape != (count,) or not torch.isfinite(rates).all() or (rates < 0).any():
        raise ValueError(f"lrs has shape {tuple(rates.shape)} for {count} steps; give the rate at each, none below 0")
    return rates


def _measured(name: str, value, like: Tensor, least: float = 0.0) -> Tensor | None:
    """An optional measurement in the shape ``(T, N)``; NaN where nothing was."""
    if value is None:
        return None
    value = real_array(name, value)
    if not torch.isfinite(value).any():
        if value.numel() > 1:
            return None  # a column in which nothing was ever measured
        raise ValueError(f"{name} holds no finite number; leave it out where nothing was measured")
    value = torch.where(torch.isfinite(value), value, torch.nan)  # a step that overflowed
    if (value < least).any():
        raise ValueError(f"{name} holds {value.min().item():g}, and is never below {least:g}")
    if value.ndim == 1 and len(value) == len(like) and like.ndim > 1 and value.shape != like.shape[1:]:
        value = value.reshape(-1, *[1] * (like.ndim - 1))  # one for each step
    try:
        return torch.broadcast_to(value, like.shape).reshape(len(like), -1)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the norms' {tuple(like.shape)}; give "
            "a number, one value for each weight, or one for each record"
        ) from None
