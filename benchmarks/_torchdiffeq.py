"""The same motion as ``integrate`` for torchdiffeq, written as its documentation has it: a function of (t, state)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchdiffeq import odeint

from nlcompanion import LearningRule


class Motion:
    """Gradient flow ``q' = -grad f``, or ``q' = v, v' = -c1 v - c2 grad f`` for a rule with a mass, from rest."""

    def __init__(self, rule: LearningRule, f: Callable[[Tensor], Tensor], q0: Tensor, v0: Tensor | None = None):
        self.rule, self.f, self.n = rule, f, len(q0)
        self.start = q0 if rule.massless else torch.cat([q0, torch.zeros_like(q0) if v0 is None else v0])
        self.calls = 0

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        self.calls += 1
        q, v = state[: self.n], state[self.n :]
        with torch.enable_grad():  # odeint runs without
            q = q.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.f(q), q)
        if self.rule.massless:
            return -slope
        c1, c2 = self.rule.equation(float(t))
        return torch.cat([v, -c1 * v - c2 * slope])

    def solve(self, times, *, method: str, rtol: float, atol: float, land: bool = False) -> Tensor:
        """The points at ``times[1:]``; ``land`` makes the solver's steps end there, instead of interpolating."""
        self.calls = 0
        times = torch.as_tensor(times, dtype=torch.float64)
        options = {"step_t": times} if land else None
        return odeint(self, self.start, times, method=method, rtol=rtol, atol=atol, options=options)[1:, : self.n]
