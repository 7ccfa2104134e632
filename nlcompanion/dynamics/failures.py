"""Why a solver gave up, from what stands where it did."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from nlcompanion.dynamics.equations import System, WithIntegral

_NEAR = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6)  # of the point's size: where a kink must show
_JUMP = 1e-3  # of the gradient: a smooth loss changes by 1e-6 times its curvature over such distances
_GROWTH = 1e4  # of the point: what runs to infinity is far beyond when a step is below rounding


def why_failed(message: str, solver: Any, system: System | WithIntegral, motion: System, method: str) -> str:
    """The message of a :class:`FlowError`: a domain's edge, infinity, a kink, or what the solver itself says."""
    t, point = float(solver.t), solver.y[: system.n]
    kept = "The trajectory up to then is on this error"
    shrunk = "step size" in message or "required accuracy" in message
    finite = bool(np.isfinite(point).all())
    gradient = getattr(motion, "gradient", None)
    if finite and shrunk and gradient is not None and _size(point) < _GROWTH:
        jump = largest_jump(gradient, torch.from_numpy(point.copy()), _scale(solver, motion))
        value = float(gradient.f(torch.from_numpy(point.copy())).detach())
        if jump > _JUMP and math.isfinite(value):
            return (
                f"{method} could not pass t = {t:.6g}: the gradient jumps there by {jump:.2g} of its size within "
                f"rounding, a kink of the loss (ReLU, max, absolute value), while the loss is finite ({value:.4g}). "
                f"Smooth activations (RePU(2), Swish, GELU) have none; descend() steps over it. {kept}"
            )
        if system.last_bad is None and math.isfinite(value) and not _domain_ends_ahead(solver, motion, gradient):
            return (
                f"{method} gave up at t = {t:.6g}: its step shrank to rounding where the loss is finite ({value:.4g}) "
                f"and no kink was found; the motion changes too fast for rtol, or f is noisy (float32 inside). {kept}"
            )
    if system.last_bad is not None or shrunk:
        return (
            f"the motion could not be followed beyond t = {t:.6g}: it runs to infinity there, or to the edge of the "
            f"domain where the loss (or h, or the integrand) turns non-finite. {kept}; check f near its last point"
        )
    return f"{method} gave up at t = {t:.6g}: {message}"


def largest_jump(gradient: Any, q: Tensor, size: float) -> float:
    """By how much a gradient differs on opposite sides of a point, relative to its size; 0 where it is not finite.

    The sides lie up to a millionth of ``size`` apart.
    """
    here = gradient(q)
    random = torch.Generator().manual_seed(0)
    directions = [here, *torch.randn(8, len(q), generator=random, dtype=torch.float64)]
    worst = 0.0
    for along in directions:
        length = float(along.norm())
        if not (math.isfinite(length) and length > 0):
            continue
        for near in _NEAR:
            step = near * size * along / length
            before, after = gradient(q - step), gradient(q + step)
            largest = max(float(before.norm()), float(after.norm()))
            jump = float((after - before).norm())
            if math.isfinite(jump) and largest > 0:
                worst = max(worst, jump / largest)
    return worst


def _domain_ends_ahead(solver: Any, motion: System, gradient: Any) -> bool:
    """Whether the gradient is not finite a millionth of the span further on, where a solver cannot step any more."""
    point, ahead = torch.from_numpy(solver.y[: motion.n].copy()), _way_of_a_span(solver, motion)
    return not all(bool(torch.isfinite(gradient(point + near * ahead)).all()) for near in _NEAR)


def _way_of_a_span(solver: Any, motion: System) -> Tensor:
    """How far the motion would go at its present velocity in a time as long as the whole run."""
    span = abs(float(solver.t_bound)) + abs(float(solver.t))
    return span * torch.from_numpy(np.array(motion.velocity(solver.t, solver.y[: motion.state_size])))


def _scale(solver: Any, motion: System) -> float:
    """The size of the point, or of its way where the point is 0."""
    way = float(_way_of_a_span(solver, motion).norm())
    return max(float(np.linalg.norm(solver.y[: motion.n])), min(way, 1.0))


def _size(point: np.ndarray) -> float:
    return float(np.abs(point).max())
