"""When a flow has gone far enough: conditions on time, point and velocity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nlcompanion._arguments import finite_number, function, positive_number, scalar_of

if TYPE_CHECKING:
    from nlcompanion.dynamics.equations import System, WithIntegral

__all__ = ["Steady", "loss_below", "steady"]

_HALVINGS = 40


@dataclass(frozen=True)
class Steady:
    """The steady state as a condition; made by :func:`steady`."""

    speed: float


def steady(speed: float = 1e-6) -> Steady:
    r"""The steady state, as ``stop=`` of :func:`integrate`: nothing changes faster than ``speed``.

    What must be slow is all that the equation moves: :math:`|\dot q|` for gradient flow, :math:`|(\dot q, \ddot q)|`
    for rules with a mass, so that a start from rest or a turning point is no steady state.

    Args:
        speed: the largest rate of change, in the units of a parameter over time (and over time squared).

    Raises:
        ValueError, TypeError: a speed that is no finite number > 0.

    Example:
        >>> from nlcompanion import gradient_flow, integrate
        >>> run = integrate(gradient_flow(), lambda q: 0.5 * q @ q, [1.0], t_span=(0, 1e5), stop=steady(1e-3))
        >>> round(run.t[-1].item(), 6)      # exp(-t) = 1e-3
        6.907755
        >>> run.stopped
        True
    """
    return Steady(positive_number("speed", speed))


def loss_below(f: Callable[[Tensor], Tensor], level: float) -> Callable[[float, Tensor, Tensor], bool]:
    r"""The loss has come down to a level, as ``stop=`` of :func:`integrate`.

    Args:
        f: loss ``f(q) -> scalar``.
        level: the run ends where :math:`f(q) \le` ``level``, in units of the loss.

    Raises:
        ValueError, TypeError: a level that is no finite number, a loss that is no function.

    Example:
        >>> from nlcompanion import gradient_flow, integrate
        >>> bowl = lambda q: 0.5 * q @ q
        >>> run = integrate(gradient_flow(), bowl, [1.0], t_span=(0, 10), stop=loss_below(bowl, 0.125))
        >>> round(run.q[-1].item(), 9)
        0.5
    """
    level = finite_number("level", level)
    function("f", f, "f(q) -> scalar", 1)

    def condition(t: float, q: Tensor, v: Tensor) -> bool:
        with torch.no_grad():
            return bool(scalar_of("f(q)", f(q)) <= level)

    return condition


class StopCondition:
    """A condition as the solver's steps meet it, and the time in a step at which it begins to hold."""

    def __init__(self, stop: Any, system: System | WithIntegral):
        if not isinstance(stop, Steady):
            function("stop", stop, "stop(t, q, v) -> bool, or a ready one such as steady(1e-6)", 3)
        self.stop, self.system = stop, system

    def holds(self, t: float, y: np.ndarray, slope: np.ndarray | None = None) -> bool:
        """Whether it holds at a state; its slope is computed where the solver does not know it."""
        if isinstance(self.stop, Steady):
            slope = self.system.state_slope(t, y) if slope is None else slope[: self.system.state_size]
            return bool(np.linalg.norm(slope) <= self.stop.speed)
        n = self.system.n
        v = self.system.velocity(t, y) if slope is None else slope[:n]
        verdict = self.stop(float(t), torch.from_numpy(y[:n].copy()), torch.from_numpy(np.array(v)))
        if isinstance(verdict, Tensor) and verdict.numel() == 1:
            verdict = verdict.item()
        if not isinstance(verdict, bool | np.bool_):
            raise TypeError(
                f"stop(t, q, v) must return True or False, got {type(verdict).__name__}; compare inside, as in "
                "lambda t, q, v: bool(v.norm() < 1e-6)"
            )
        return bool(verdict)

    def located(self, before: float, after: float, state: Callable[[float], np.ndarray]) -> float:
        """The earliest time in a step at whose end the condition holds, and at whose start it does not."""
        for _ in range(_HALVINGS):
            middle = 0.5 * (before + after)
            if not before < middle < after:
                break
            if self.holds(middle, state(middle)):
                after = middle
            else:
                before = middle
        return after
