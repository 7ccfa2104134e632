"""Problems with known solutions, for the tests of flows, descents and mechanics.

Each is a rule, a loss and the exact motion as a function of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import jv
from torch import Tensor

from nlcompanion.dynamics import LearningRule, bregman, damped, general, gradient_flow, nesterov, newtonian, sgd

CURVATURES = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
START = torch.tensor([1.0, -0.7, 0.3], dtype=torch.float64)


def quadratic(q: Tensor) -> Tensor:
    """A bowl with three curvatures; every rule's motion on it is known."""
    return 0.5 * (CURVATURES * q * q).sum()


def quartic(q: Tensor) -> Tensor:
    """A convex loss that is not quadratic, and couples its coordinates."""
    return 0.5 * (q[0] - 2 * q[1]) ** 2 + 0.25 * (q**4).sum() + 0.1 * q[0]


@dataclass(frozen=True)
class Problem:
    name: str
    rule: LearningRule
    t_span: tuple[float, float]
    exact: Callable[[np.ndarray], np.ndarray]  # (T,) -> (T, n)
    q0: np.ndarray | None = None  # START when None
    v0: np.ndarray | None = None  # the rule's own start when None
    f: Callable[[Tensor], Tensor] = quadratic


_lam, _q0 = CURVATURES.numpy(), START.numpy()


def damped_oscillator(t, mass, friction, curvature, q0, v0):
    """m q'' + mu q' + lambda q = 0, over- or under-damped, through the complex roots of its polynomial."""
    root = np.sqrt(complex(friction**2 - 4 * mass * curvature))
    r1, r2 = (-friction + root) / (2 * mass), (-friction - root) / (2 * mass)
    a = (v0 - r2 * q0) / (r1 - r2)
    return (a * np.exp(r1 * t) + (q0 - a) * np.exp(r2 * t)).real


def _each(solution):
    return lambda t: np.stack([solution(np.asarray(t, float), c, x) for c, x in zip(_lam, _q0, strict=True)], axis=-1)


def _bessel(t, c, x):
    """Nesterov's flow on a quadratic, 2 J1(z)/z with z = sqrt(lambda) t."""
    z = np.sqrt(c) * t
    return x * 2 * jv(1, z) / z


def _sgd_start(t, c, x, lr=0.1, beta=0.5, k=0.2):
    return damped_oscillator(t, lr * (1 + beta) / 2, 1 - beta, c + k, x, -(c + k) * x / (1 + beta))


_nag = _each(_bessel)
_nag_start = 0.1

FLOWS = (
    Problem("gradient flow", gradient_flow(), (0.0, 3.0), _each(lambda t, c, x: x * np.exp(-c * t))),
    Problem("newtonian", newtonian(), (0.0, 6.0), _each(lambda t, c, x: x * np.cos(np.sqrt(c) * t))),
    Problem(
        "damped",
        damped(mass=0.7, friction=1.1),
        (0.0, 5.0),
        _each(lambda t, c, x: damped_oscillator(t, 0.7, 1.1, c, x, 0.4)),
        v0=np.full(3, 0.4),
    ),
    Problem("sgd, its own start", sgd(0.1, 0.5, 0.2), (0.0, 3.0), _each(_sgd_start)),
    Problem(
        "nesterov",
        nesterov(),
        (_nag_start, 6.0),
        _nag,
        q0=_nag(np.array([_nag_start]))[0],
        v0=_each(lambda t, c, x: -2 * x * jv(2, np.sqrt(c) * t) / t)(np.array([_nag_start]))[0],
    ),
    # kappa2 = t^2, kappa1 = 4 t: Euler's equation, q = t^r with r (r - 1) + 4 r + lambda = 0
    Problem(
        "general, Euler's equation",
        general(lambda t: t**2, lambda t: 4.0 * t),
        (1.0, 4.0),
        _each(lambda t, c, x: damped_oscillator(np.log(t), 1.0, 3.0, c, x, 0.0)),
    ),
    # the same motion as the damped particle above, from Bregman's schedules in another gauge
    Problem(
        "bregman, another gauge",
        bregman(lambda t: 0.3 - 0.2 * t, lambda t: -np.log(0.7) - 0.6 + 0.4 * t, lambda t: (1.1 / 0.7 - 0.2) * t),
        (0.0, 5.0),
        _each(lambda t, c, x: damped_oscillator(t, 0.7, 1.1, c, x, 0.0)),
    ),
)


def heavy_ball(n: np.ndarray, lr: float, beta: float, curvature: float, q0: float) -> np.ndarray:
    """The heavy ball on a quadratic with an empty buffer: two powers, from its characteristic polynomial."""
    trace = 1 + beta - lr * curvature
    root = np.sqrt(complex(trace**2 - 4 * beta))
    r1, r2 = (trace + root) / 2, (trace - root) / 2
    q1 = (1 - lr * curvature) * q0
    a = (q1 - r2 * q0) / (r1 - r2)
    return (a * r1**n + (q0 - a) * r2**n).real
