r"""Paths, their action and its slope: what the first chapter's checks of the variational principle are made of.

A path is a differentiable function ``t -> q`` of shape ``(n,)``; a Lagrangian is a function ``L(t, q, v)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, jvp

import nlcompanion as nl

__all__ = [
    "damped_oscillation",
    "damped_oscillator",
    "frozen_variational_derivative",
    "left_end_path",
    "pendulum_kink",
    "quartic_slope",
]

Path = Callable[[Tensor], Tensor]


def quartic_slope(action_at: Callable[[int], float]) -> float:
    r"""The slope at 0 of a function that is a quartic in its argument, exactly, from its values at ±1 and ±2.

    .. math:: S'(0) = \tfrac{1}{12}\bigl(8\,[S(1) - S(-1)] - [S(2) - S(-2)]\bigr)

    Example:
        >>> quartic_slope(lambda e: 3 * e + e**2 - e**4)
        3.0
    """
    return (8 * (action_at(1) - action_at(-1)) - (action_at(2) - action_at(-2))) / 12


def damped_oscillator(friction: float, stiffness: float) -> Callable[..., Tensor]:
    r"""The Lagrangian :math:`e^{\mu t}\,\tfrac12(|\dot q|^2 - c\,|q|^2)` of :math:`\ddot q + \mu\dot q + cq = 0`."""

    def L(t, q, v):
        return torch.exp(friction * t) * 0.5 * (v @ v - stiffness * (q @ q))

    return L


def damped_oscillation(friction: float, stiffness: float, *, slowed: bool = True) -> Path:
    r"""A motion of :func:`damped_oscillator` in closed form, :math:`e^{-\mu t/2}\cos\omega t`.

    Friction slows the oscillation, :math:`\omega^2 = c - \mu^2/4`.

    Args:
        friction, stiffness: :math:`\mu` and :math:`c`, with :math:`\mu^2 < 4c`.
        slowed: False keeps the frequency :math:`\sqrt c` of the oscillator without friction, which is no motion.

    Example:
        >>> import nlcompanion as nl
        >>> residual = nl.euler_lagrange(damped_oscillator(1.0, 1.25), damped_oscillation(1.0, 1.25))
        >>> bool(residual(0.7).abs() < 1e-14)
        True
    """
    frequency = (stiffness - slowed * friction**2 / 4) ** 0.5

    def path(t):
        return (torch.exp(-friction * t / 2) * torch.cos(frequency * t))[None]

    return path


def pendulum_kink(t: Tensor) -> Tensor:
    r"""The pendulum's motion from one upright position to the next, :math:`q = 2\arcsin\tanh t`, shape ``(1,)``.

    It solves :math:`\ddot q = -\sin q` with just the energy that reaches the top.
    """
    return 2 * torch.asin(torch.tanh(t))[None]


def frozen_variational_derivative(L, path: Path) -> Path:
    r"""The variational derivative of somebody who lets the momentum change with the velocity alone.

    .. math:: \frac{\partial L}{\partial q} - \frac{\partial^2 L}{\partial v^2}\,\ddot q

    Right for :math:`\tfrac m2|\dot q|^2 - U`; it misses that a mass may change with time or place.
    """

    def derivative(t):
        t, q, v = nl.along(path)(t)
        acceleration = jvp(lambda t: nl.along(path)(t)[2], (t,), (torch.ones_like(t),))[1]
        change = jvp(lambda v: grad(L, argnums=2)(t, q, v), (v,), (acceleration,))[1]
        return grad(L, argnums=1)(t, q, v) - change

    return derivative


def left_end_path(L, start, end, t_span: tuple[float, float], segments: int) -> tuple[Tensor, Tensor]:
    r"""The path that makes GU's sum (Eq. 8, left ends) stationary, for a Lagrangian quadratic in ``q`` and ``v``.

    One step of Newton's method is exact there. :func:`nlcompanion.stationary_path` uses midpoints instead.

    Returns:
        Times ``(N + 1,)`` and nodes ``(N + 1, n)``.

    Raises:
        ValueError: if the sum's gradient has not vanished, because ``L`` is not quadratic.
    """
    t = torch.linspace(*t_span, segments + 1, dtype=torch.float64)
    start, end = (torch.as_tensor(x, dtype=torch.float64) for x in (start, end))
    line = start + (end - start) * torch.linspace(0, 1, segments + 1, dtype=torch.float64)[:, None]

    def nodes(inner):
        return torch.cat([start[None], inner.view(-1, len(start)), end[None]])

    def total(inner):
        return nl.discrete_action(L, t, nodes(inner))

    inner = line[1:-1].flatten()
    inner = inner - torch.linalg.solve(hessian(total)(inner), grad(total)(inner))
    if not grad(total)(inner).abs().max() < 1e-9 * (1 + inner.abs().max()):
        raise ValueError("the sum is not stationary after one Newton step; L must be quadratic in q and v")
    return t, nodes(inner)
