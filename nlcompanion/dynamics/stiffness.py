"""Whether an explicit solver is held up by the largest curvature of a gradient flow: said early, not at the end."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from nlcompanion.dynamics.equations import Descent

_STABLE = {"RK23": (2.5, 3), "RK45": (3.3, 6), "DOP853": (6.1, 12)}  # largest step times curvature; calls of a step
_LOOK_AFTER = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)  # calls of the right-hand side
_MANY = 10_000
_DENSE = 3_000  # parameters for which an implicit solver's dense algebra is still quick


class StiffnessWatch:
    """Looks at a gradient flow after some calls, and warns once.

    A step of an explicit solver is stable below a constant over the largest curvature, however slowly the motion goes.
    Where the steps taken are of that size, the calls that the rest of the span needs are known.
    """

    def __init__(self, system: Descent, method: str, t1: float):
        self.system, self.method, self.t1 = system, method, t1
        self.looks = list(_LOOK_AFTER)

    def after_step(self, t: float, step: float, y: np.ndarray) -> None:
        if not self.looks or self.system.nfev < self.looks[0]:
            return
        self.looks.pop(0)
        limit, calls = _STABLE[self.method]
        ahead = calls * (self.t1 - t) / step
        if ahead < _MANY:
            return
        curvature = self._largest_curvature(y[: self.system.n])
        if not step * curvature > 0.4 * limit:
            return  # accuracy holds the steps, and another solver would not help
        self.looks.clear()
        warnings.warn(
            f"this gradient flow is stiff: its largest curvature is {curvature:.3g}, so {self.method} cannot step "
            f"further than about {limit / curvature:.2g} at a time and needs some {ahead:.2g} calls from t = {t:.4g} "
            f"to {self.t1:g}. {self._way_out()}, or end where nothing moves any more: stop=steady(1e-6)",
            stacklevel=4,
        )

    def _way_out(self) -> str:
        if self.system.n <= _DENSE:
            return "method='BDF' takes far fewer"
        return f"With {self.system.n:,} parameters an implicit method is dear too: shorten t_span"

    def _largest_curvature(self, q: np.ndarray, rounds: int = 12) -> float:
        """By power iteration on differences of the gradient, which need no second derivative."""
        start = torch.from_numpy(q.copy())
        size = 1e-5 * max(float(start.norm()), 1e-3)
        random = torch.Generator().manual_seed(0)
        along = torch.randn(len(start), generator=random, dtype=torch.float64)
        here, curvature = self.system.gradient(start), 0.0
        for _ in range(rounds):
            along = along / along.norm().clamp(min=1e-300)
            bent = (self.system.gradient(start + size * along) - here) / size + self.system.decay * along
            self.system.nfev += 1
            curvature, along = float(bent.norm()), bent
        return curvature
