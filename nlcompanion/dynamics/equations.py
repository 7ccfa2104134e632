"""A rule's equation of motion as arrays for SciPy's solvers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian

from nlcompanion._arguments import as_point, function
from nlcompanion.dynamics.gradient import LossGradient
from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.dynamics.trajectory import FlowError, Trajectory
from nlcompanion.mechanics.lagrangian import acceleration_of_numbers


class Stalled(Exception):
    pass


# --- the differential equation as arrays -------------------------------------------------------------------------


class System:
    """State vector, right-hand side and Jacobian of one kind of equation."""

    jacobian: Callable | None = None

    def slope(self, t: float, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def __init__(self, n: int, max_nfev: float):
        self.n, self.max_nfev, self.nfev = n, max_nfev, 0
        self.last_bad: float | None = None

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        return self.counted(self.slope, t, y)

    def counted(self, function: Callable, t: float, y: np.ndarray) -> np.ndarray:
        """A call of what costs a gradient, within the limit, and noted where it is not finite."""
        if self.nfev >= self.max_nfev:
            raise Stalled
        self.nfev += 1
        out = function(t, y)
        if not np.isfinite(out).all():
            self.last_bad = t
        return out

    def velocity(self, t: float, y: np.ndarray) -> np.ndarray:
        return y[self.n :]

    @property
    def state_size(self) -> int:
        return 2 * self.n

    def state_slope(self, t: float, y: np.ndarray) -> np.ndarray:
        """All that the equation moves, at one state."""
        self.nfev += 1
        return self.slope(t, y[: self.state_size])


class Descent(System):
    """Gradient flow: the state is q."""

    def __init__(self, gradient, decay, n, max_nfev):
        super().__init__(n, max_nfev)
        self.gradient, self.decay = gradient, decay
        self.jacobian = lambda t, y: -_hessian(self.gradient.f, y, self.decay)

    def slope(self, t, y):
        out = -self.gradient(torch.from_numpy(y)).numpy()
        return out - self.decay * y if self.decay else out

    def velocity(self, t, y):
        self.nfev += 1
        return self.slope(t, y)

    @property
    def state_size(self) -> int:
        return self.n


class Particle(System):
    """a = -c1(t) v - c2(t) (grad f + k q): the state is (q, v)."""

    def __init__(self, rule: LearningRule, gradient, n, max_nfev):
        super().__init__(n, max_nfev)
        self.equation, self.gradient, self.decay = rule.equation, gradient, rule.weight_decay
        self.jacobian = self._jacobian

    def slope(self, t, y):
        return np.concatenate([y[self.n :], self.push(t, y)])

    def acceleration(self, t: float, y: np.ndarray) -> np.ndarray:
        """For solvers that know that the slope of q is v."""
        return self.counted(self.push, t, y)

    def push(self, t: float, y: np.ndarray) -> np.ndarray:
        n, (c1, c2) = self.n, self.equation(t)
        out = self.gradient(torch.from_numpy(y[:n])).numpy() * -c2
        if self.decay:
            out -= c2 * self.decay * y[:n]
        if c1:
            out -= c1 * y[n:]
        return out

    def _jacobian(self, t, y):
        n, (c1, c2) = self.n, self.equation(t)
        J = np.zeros((2 * n, 2 * n))
        J[:n, n:] = np.eye(n)
        J[n:, :n] = -c2 * _hessian(self.gradient.f, y[:n], self.decay)
        J[n:, n:] = -c1 * np.eye(n)
        return J


class Mirror(System):
    """A non-Euclidean rule: the state is (q, Y) with Y = grad h(q + exp(-alpha) v)."""

    def __init__(self, rule: LearningRule, gradient, q0, v0, t0, max_nfev):
        super().__init__(len(q0), max_nfev)
        self.rule, self.gradient, self.grad_h = rule, gradient, grad(rule.h)
        z0 = q0 + math.exp(-rule._rates(t0)[0]) * v0
        self._last_z = z0  # Newton's next start: the dual point moves little between calls
        self.dual0 = self.grad_h(z0)
        if not (torch.isfinite(self.dual0).all() and torch.isfinite(self.grad_h(q0)).all()):
            raise ValueError(
                "grad h is not finite at q0 or at q0 + exp(-alpha) v0: the start lies outside the domain of h "
                "(entropy needs positive q); move it inside, or take a smaller v0"
            )

    def slope(self, t, y):
        n, rule = self.n, self.rule
        alpha, beta, _, gamma_rate = rule._rates(t)
        q, Y = torch.from_numpy(y[:n]), torch.from_numpy(y[n:])
        z = self._inverse(Y)
        force = self.gradient(q) + rule.weight_decay * q
        dual = (math.exp(alpha) - gamma_rate) * (Y - self.grad_h(q)) - math.exp(alpha + beta) * force
        return torch.cat([math.exp(alpha) * (z - q), dual]).numpy()

    def velocity(self, t, y):
        q, Y = torch.from_numpy(y[: self.n]), torch.from_numpy(y[self.n :])
        return (math.exp(self.rule._rates(t)[0]) * (self._inverse(Y) - q)).numpy()

    def _inverse(self, Y: Tensor) -> Tensor:
        if self.rule.grad_h_inverse is not None:
            return self.rule.grad_h_inverse(Y)
        z = _invert_gradient(self.rule.h, self.grad_h, Y, self._last_z)
        if torch.isfinite(z).all():
            self._last_z = z
        return z


class Lagrange(System):
    """Any Lagrangian L(t, q, v), solved for the acceleration: the state is (q, v)."""

    def __init__(self, L, n, max_nfev):
        super().__init__(n, max_nfev)
        self.acceleration = acceleration_of_numbers(L)

    def slope(self, t, y):
        q, v = torch.from_numpy(y[: self.n]), torch.from_numpy(y[self.n :])
        a = self.acceleration(torch.tensor(t, dtype=torch.float64), q, v)
        return np.concatenate([y[self.n :], a.numpy()])


class WithIntegral:
    """Another system with an integral beside its state: (state, integral of g), of which nothing acts back.

    In all systems q leads the state, so v leads its slope: g costs no gradient of its own.
    """

    def __init__(self, system: System, g: Callable, t0: float, y0: np.ndarray):
        self.system, self.n, self.size, self.g = system, system.n, len(y0), g
        self.shape = tuple(self._value(t0, y0, system.velocity(t0, y0)).shape)
        self.start = np.concatenate([y0, np.zeros(math.prod(self.shape))])
        self.jacobian = system.jacobian and self._jacobian

    nfev = property(lambda self: self.system.nfev)
    last_bad = property(lambda self: self.system.last_bad)
    state_size = property(lambda self: self.size)

    def state_slope(self, t: float, y: np.ndarray) -> np.ndarray:
        return self.system.state_slope(t, y)

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        slope = self.system(t, y[: self.size])
        rate = self._value(t, y, slope).detach().numpy().reshape(-1)
        if not np.isfinite(rate).all():
            self.system.last_bad = t
        return np.concatenate([slope, rate])

    def velocity(self, t: float, y: np.ndarray) -> np.ndarray:
        return self.system.velocity(t, y[: self.size])

    def integral(self, y: np.ndarray) -> Tensor:
        return torch.from_numpy(y[self.size :].copy()).view(self.shape)

    def _value(self, t, y, slope) -> Tensor:
        value = self.g(float(t), torch.from_numpy(y[: self.n]), torch.from_numpy(slope[: self.n]))
        try:
            value = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"integrand(t, q, v) must return a tensor of any shape to be integrated, got {type(value).__name__}; "
                "stack several quantities into one tensor"
            ) from error
        if value.shape != getattr(self, "shape", value.shape):
            raise ValueError(
                f"integrand(t, q, v) returned shape {tuple(value.shape)} after {self.shape}; return the same each time"
            )
        return value

    def _jacobian(self, t, y):
        """The system's own, above the slopes of g: by q, and by v, which is itself a function of the state."""
        inner = np.asarray(self.system.jacobian(t, y[: self.size]))
        slope = self.system.slope(t, y[: self.size])
        point = (torch.from_numpy(y[: self.n]), torch.from_numpy(slope[: self.n]))
        by_q, by_v = (
            block.numpy().reshape(-1, self.n)
            for block in torch.autograd.functional.jacobian(
                lambda q, v: torch.as_tensor(self.g(float(t), q, v), dtype=torch.float64), point
            )
        )
        J = np.zeros((len(y), len(y)))
        J[: self.size, : self.size] = inner
        J[self.size :, : self.size] = by_v @ inner[: self.n]
        J[self.size :, : self.n] += by_q
        return J


def _hessian(f, q: np.ndarray, decay: float) -> np.ndarray:
    H = torch.autograd.functional.hessian(f, torch.from_numpy(q)).numpy()
    return H + decay * np.eye(len(q)) if decay else H


def _invert_gradient(h, grad_h, Y: Tensor, z: Tensor, steps: int = 60) -> Tensor:
    """Solve grad h(z) = Y by Newton's method, halving steps that leave the domain; NaN if that fails."""
    residual = grad_h(z) - Y
    tolerance = 1e-13 * (1 + Y.abs().max())
    for _ in range(steps):
        if residual.abs().max() <= tolerance:
            return z
        step = torch.linalg.solve(hessian(h)(z), residual)
        scale = 1.0
        while scale > 1e-9:
            trial = z - scale * step
            r = grad_h(trial) - Y
            if torch.isfinite(r).all() and r.abs().max() < residual.abs().max():
                break
            scale /= 2
        else:  # rounding: no step is better than none
            small = residual.abs().max() <= 1e-9 * (1 + Y.abs().max())
            return z if small else torch.full_like(z, math.nan)
        z, residual = trial, r
    return torch.full_like(z, math.nan)


def set_up(rule, f, q0: Tensor, v0, t0: float, max_nfev) -> tuple[System, np.ndarray]:
    n = len(q0)
    if v0 is not None:
        v0 = as_point("v0", v0)
        if v0.shape != q0.shape:
            raise ValueError(f"v0 has {len(v0)} components, q0 has {n}; a velocity lives in the space of the point")
    if not isinstance(rule, LearningRule):
        function("rule", rule, "L(t, q, v) of a Lagrangian, or a LearningRule", 3)
        if f is not None:
            raise ValueError("a Lagrangian already holds its potential; pass f=None, or a LearningRule with this f")
        motion = Lagrange(rule, n, max_nfev)
        return motion, torch.cat([q0, torch.zeros(n).double() if v0 is None else v0]).numpy()
    if rule.singular_at is not None and t0 <= rule.singular_at:
        raise ValueError(
            f"{rule.name} is singular at t = {rule.singular_at:g} and t_span starts at {t0:g}; start it a little "
            "later, say at 1e-3, where its own initial velocity is known"
        )
    gradient = LossGradient(f)
    slope = gradient(q0) + rule.weight_decay * q0
    if not torch.isfinite(slope).all():
        start = Trajectory(torch.tensor([t0], dtype=torch.float64), q0[None], torch.zeros(1, n).double(), nfev=1)
        raise FlowError(f"the loss or its gradient is not finite at the start, t = {t0:g}; nothing to follow", start)
    if rule.massless:
        if v0 is not None:
            raise ValueError("gradient flow has no initial velocity: its velocity is -grad f; drop v0")
        return Descent(gradient, rule.weight_decay, n, max_nfev), q0.numpy().copy()
    if v0 is None:
        v0 = rule.start(t0, q0, slope) if rule.start else torch.zeros_like(q0)
    if rule.is_euclidean:
        return Particle(rule, gradient, n, max_nfev), torch.cat([q0, v0]).numpy()
    system = Mirror(rule, gradient, q0, v0, t0, max_nfev)
    return system, torch.cat([q0, system.dual0]).numpy()
