r"""The Bregman Lagrangian of a learning rule: its kinetic energy, its momentum, the Lagrangian itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from nlcompanion._arguments import as_time, finite_number, function, positive_number, scalar_of, state_of_motion, vector
from nlcompanion.dynamics.learning_rules import LearningRule, as_rule, at_time

__all__ = ["bregman_momentum", "kinetic_energy", "lagrangian", "modified_loss"]

# --- what a rule is made of -------------------------------------------------------------------------------------


def kinetic_energy(rule: LearningRule) -> Callable[..., Tensor]:
    r"""The Bregman kinetic energy of a rule, without the factor :math:`e^\gamma`.

    .. math:: T_h = e^{\alpha}\left[h(q + e^{-\alpha}v) - h(q) - \langle\nabla h(q), e^{-\alpha}v\rangle\right]

    Args:
        rule: any rule with a Lagrangian.

    Returns:
        A function ``(t, q, v) -> scalar``, in torch operations; :math:`\tfrac12 e^{-\alpha}|v|^2` for Euclidean ``h``.

    Raises:
        ValueError: for the massless gradient flow.

    Source: TK Eqs. 5 and 6.

    Example:
        >>> import torch
        >>> from nlcompanion import damped
        >>> T = kinetic_energy(damped(mass=3.0, friction=1.0))
        >>> round(T(0.0, torch.zeros(2).double(), torch.tensor([1.0, 1.0]).double()).item(), 12)
        3.0
    """
    _has_lagrangian(rule)

    def T(t, q, v):
        t, q, v = state_of_motion(t, q, v)
        scale = torch.exp(at_time(rule.alpha, "alpha", t))
        if rule.is_euclidean:  # the difference below would lose half the digits
            return 0.5 / scale * (v @ v)
        d = v / scale
        return scale * (rule.h(q + d) - rule.h(q) - grad(rule.h)(q) @ d)

    return T


def bregman_momentum(rule: LearningRule) -> Callable[..., Tensor]:
    r"""The Bregman momentum :math:`\Delta_h = \nabla h(q + e^{-\alpha}v) - \nabla h(q)`, shape ``(n,)``.

    It is :math:`e^{-\gamma}\partial L/\partial v`; for Euclidean ``h`` the ordinary momentum :math:`e^{-\alpha}v`.

    Raises:
        ValueError: for the massless gradient flow.

    Source: TK Eqs. 10 and 24.

    Example:
        >>> import torch
        >>> from nlcompanion import damped
        >>> p = bregman_momentum(damped(mass=3.0, friction=1.0))
        >>> [round(x, 12) for x in p(0.0, torch.zeros(1).double(), torch.ones(1).double()).tolist()]
        [3.0]
    """
    _has_lagrangian(rule)

    def momentum(t, q, v):
        t, q, v = state_of_motion(t, q, v)
        scale = torch.exp(-at_time(rule.alpha, "alpha", t))
        if rule.is_euclidean:
            return scale * v
        return grad(rule.h)(q + scale * v) - grad(rule.h)(q)

    return momentum


def lagrangian(
    rule: LearningRule, f: Callable[[Tensor], Tensor], *, t_ref: float | None = None
) -> Callable[..., Tensor]:
    r"""The Lagrangian of training ``f`` with ``rule``.

    .. math:: L = e^{\gamma_t - \gamma_{t_{ref}}}\left[T_h - e^{\alpha+\beta}\left(f + \tfrac k2|q|^2\right)\right]

    A constant factor leaves the equation of motion alone; ``t_ref`` uses that to keep :math:`e^\gamma` finite, since
    for SGD it grows by :math:`2(1-\beta)/(1+\beta)` in the exponent at every step.

    Args:
        rule: any rule with a Lagrangian.
        f: loss ``f(q) -> scalar``.
        t_ref: time at which the prefactor is 1; None takes :math:`e^{\gamma_t}` as in the paper.

    Returns:
        ``L(t, q, v) -> scalar`` for the functions of :mod:`nlcompanion.mechanics`.

    Raises:
        ValueError: for the massless gradient flow.

    Source: TK Eqs. 2 and 4; GU Eq. 23.

    Example:
        >>> import torch
        >>> from nlcompanion import damped
        >>> from nlcompanion.mechanics.lagrangian import acceleration
        >>> L = lagrangian(damped(mass=1.0, friction=2.0), lambda q: 0.5 * q @ q)
        >>> a = acceleration(L)(0.0, torch.tensor([1.0]).double(), torch.tensor([3.0]).double())
        >>> round(a.item(), 12)   # -2 v - q
        -7.0
    """
    _has_lagrangian(rule)
    T, k = kinetic_energy(rule), rule.weight_decay
    shift = 0.0 if t_ref is None else finite_number("gamma(t_ref)", float(rule.gamma(as_time(t_ref))))
    function("f", f, "f(q) -> scalar", 1)

    def L(t, q, v):
        t, q, v = state_of_motion(t, q, v)
        loss = scalar_of("f(q)", f(q))
        potential = loss + 0.5 * k * (q @ q) if k else loss
        alpha, beta, gamma = (at_time(getattr(rule, name), name, t) for name in ("alpha", "beta", "gamma"))
        return torch.exp(gamma - shift) * (T(t, q, v) - torch.exp(alpha + beta) * potential)

    return L


def modified_loss(f: Callable[[Tensor], Tensor], lr: float) -> Callable[[Tensor], Tensor]:
    r"""The loss that gradient flow must follow to imitate gradient descent to second order in the step.

    .. math:: \tilde f(q) = f(q) + \frac{\eta}{4}\,|\nabla f(q)|^2

    TK put the same correction into the kinetic energy instead, as a mass; see :func:`sgd`. This one holds without
    momentum.

    Args:
        f: loss ``f(q) -> scalar``, twice differentiable.
        lr: step size :math:`\eta > 0`.

    Returns:
        ``q -> scalar``, differentiable by ``q``.

    Raises:
        ValueError: if ``lr`` is not positive.

    Source: Barrett and Dherin (2021); TK Section 5.

    Example:
        >>> import torch
        >>> f = modified_loss(lambda q: 0.5 * q @ q, lr=0.4)
        >>> round(f(torch.tensor([2.0]).double()).item(), 12)   # 2 + 0.1 * 4
        2.4
    """
    lr = positive_number("lr", lr)

    function("f", f, "f(q) -> scalar", 1)

    def loss(q: Tensor) -> Tensor:
        return scalar_of("f(q)", f(q))

    def modified(q: Tensor) -> Tensor:
        q = vector("q", q)
        return loss(q) + lr / 4 * grad(loss)(q).square().sum()

    return modified


def _has_lagrangian(rule: LearningRule) -> None:
    if as_rule(rule).massless:
        raise ValueError(
            "gradient flow is massless, so its kinetic energy is zero and no Lagrangian gives q' = -grad f; "
            "take damped(mass, friction=1.0) and let the mass go to 0"
        )
