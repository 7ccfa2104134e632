"""Noether charges of learning rules and the terms that move them; the public names are in ``noether``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp

from nlcompanion._arguments import as_tensor, function, known
from nlcompanion.dynamics.bregman import bregman_momentum
from nlcompanion.dynamics.gradient import gradient_of
from nlcompanion.dynamics.learning_rules import LearningRule, at_time
from nlcompanion.symmetries.actions import Symmetry
from nlcompanion.symmetries.breaking import generator, variation
from nlcompanion.symmetries.states import at_each, state


@dataclass(frozen=True)
class NLDTerms:
    r"""The terms of Noether's learning dynamics at a point (scalars) or along a trajectory (shape ``(T,)``).

    Along motions ``charge_rate + damping == kinetic_asymmetry + metric + potential``. All but the charge are in units
    of the charge over time.

    Attributes:
        charge: :math:`C = \langle\Delta_h, \partial_s Q\rangle`, without :math:`e^\gamma`.
        charge_rate: :math:`dC/dt` along the velocity and acceleration given; None where none was given.
        damping: :math:`\dot\gamma\, C`.
        kinetic_asymmetry: :math:`\langle\Delta_h, \partial_s\dot Q\rangle`.
        metric: :math:`e^{\alpha}\langle\Delta_h - e^{-\alpha}\nabla^2 h\,\dot q, \partial_s Q\rangle`, 0 for Euclidean
            ``h``.
        potential: :math:`-e^{\alpha+\beta}\langle\nabla f + kq, \partial_s Q\rangle`.

    Source: TK Eqs. 11 and 22; the potential's term is this book's.
    """

    charge: Tensor
    charge_rate: Tensor | None
    damping: Tensor
    kinetic_asymmetry: Tensor
    metric: Tensor
    potential: Tensor

    @property
    def predicted_rate(self) -> Tensor:
        r"""What the law says :math:`dC/dt` is: the right-hand side minus the damping. Needs no acceleration."""
        return self.kinetic_asymmetry + self.metric + self.potential - self.damping

    @property
    def residual(self) -> Tensor:
        """Left minus right side of the law; zero along motions. Says something only for an ``a`` that was measured."""
        if self.charge_rate is None:
            raise ValueError(
                "there is no charge_rate, since noether_learning_dynamics was called with a=None; pass an acceleration "
                "measured along the motion, or integrate predicted_rate and compare it with the change of the charge"
            )
        return self.charge_rate - self.predicted_rate


def noether_charge(rule: LearningRule, symmetry: Symmetry, t, q, v) -> Tensor:
    r"""The Noether charge of a learning rule, :math:`C = \langle\Delta_h, \partial_s Q\rangle`.

    TK's own charge carries a factor :math:`e^\gamma`, which overflows; this one never has it. For Euclidean rules it
    is :math:`e^{-\alpha}\langle\dot q, \partial_s Q\rangle`: momentum for a translation, angular momentum for a
    rotation, :math:`\tfrac m2 \frac{d}{dt}|q|^2` for scaling.

    Args:
        rule: any rule with a Lagrangian, any ``h``.
        symmetry: any action.
        t, q, v: a point, ``q`` and ``v`` of shape ``(n,)``, or a trajectory of ``T`` of them.

    Returns:
        A scalar or shape ``(T,)``, in units of :math:`\Delta_h` times those of ``q``.

    Raises:
        ValueError: for the massless gradient flow; outside the domain of ``h``; if the action is not the identity at
            ``s = 0``; wrong shapes.

    Source: TK Eqs. 8 to 11.

    Example:
        >>> import torch
        >>> from nlcompanion import newtonian
        >>> from nlcompanion.symmetries.actions import rotation
        >>> q, v = torch.tensor([2.0, 0.0]).double(), torch.tensor([5.0, 3.0]).double()
        >>> noether_charge(newtonian(), rotation(plane=(0, 1)), 0.0, q, v).item()   # x v_y - y v_x
        6.0
    """
    charge = _charge(rule, symmetry)
    return at_each(charge, *state(rule, symmetry, t, q, v))


def noether_learning_dynamics(
    rule: LearningRule, symmetry: Symmetry, t, q, v, a=None, f: Callable[[Tensor], Tensor] | None = None
) -> NLDTerms:
    r"""The terms of Noether's learning dynamics: what moves a charge, and by how much.

    Along a motion, for any rule, any ``h`` and any action,

    .. math:: C(t_1) - C(t_0) = \int_{t_0}^{t_1} \texttt{terms.predicted\_rate}\; dt,

    which needs no acceleration. Taking ``a`` from the rule's own equation instead makes the law a tautology.

    Args:
        rule: any rule with a Lagrangian.
        symmetry: any action.
        t, q, v: a point, ``q`` and ``v`` of shape ``(n,)``, or a trajectory of ``T`` of them.
        a: acceleration, the shape of ``v``; None leaves ``charge_rate`` out.
        f: the loss. None stands for a loss that has the symmetry; weight decay still counts.

    Returns:
        :class:`NLDTerms`.

    Raises:
        ValueError: as for :func:`noether_charge`, or if the loss is not finite at ``q``.

    Source: TK Eqs. 11 and 22.

    Example:
        >>> import torch
        >>> from nlcompanion import damped
        >>> from nlcompanion.symmetries.actions import scale
        >>> q, v = torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0, 4.0]).double()
        >>> terms = noether_learning_dynamics(damped(mass=1.0, friction=0.5), scale(), 0.0, q, v)
        >>> terms.charge.item(), terms.damping.item(), terms.kinetic_asymmetry.item()
        (3.0, 1.5, 25.0)
    """
    charge, momentum = _charge(rule, symmetry), bregman_momentum(rule)
    if f is not None:
        function("f", f, "f(q) -> scalar", 1)
    t, q, v = state(rule, symmetry, t, q, v)
    push = _push(rule, f, q)

    def static(t, q, v, push):
        alpha, beta, gamma_rate = schedule_at(rule, t)
        (xi, xi_dot), delta = variation(symmetry, t, q, v), momentum(t, q, v)
        C = delta @ xi
        metric = metric_force(rule, alpha, delta, q, v) @ xi
        return C, gamma_rate * C, delta @ xi_dot, metric, -torch.exp(alpha + beta) * (push @ xi)

    def rate(t, q, v, a):
        return jvp(charge, (t, q, v), (torch.ones_like(t), v, a))[1]

    C, damping, asymmetry, metric, potential = at_each(static, t, q, v, push)
    charge_rate = None if a is None else at_each(rate, t, q, v, checked_acceleration(a, v))
    return NLDTerms(C, charge_rate, damping, asymmetry, metric, potential)


def _charge(rule: LearningRule, symmetry: Symmetry) -> Callable[..., Tensor]:
    momentum, xi = bregman_momentum(rule), generator(symmetry)
    return lambda t, q, v: momentum(t, q, v) @ xi(q)


def schedule_at(rule: LearningRule, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, beta and d gamma/dt as tensors that may be batched and differentiated."""
    gamma_rate = rule.gamma_rate or grad(lambda t: at_time(rule.gamma, "gamma", t))
    return at_time(rule.alpha, "alpha", t), at_time(rule.beta, "beta", t), at_time(gamma_rate, "gamma_rate", t)


def metric_force(rule: LearningRule, alpha: Tensor, delta: Tensor, q: Tensor, v: Tensor) -> Tensor:
    r""":math:`\partial T_h/\partial q = e^\alpha\Delta_h - \nabla^2 h\,\dot q`, the force of a curved metric."""
    if rule.is_euclidean:
        return torch.zeros_like(q)
    return torch.exp(alpha) * delta - jvp(grad(rule.h), (q,), (v,))[1]


def _push(rule: LearningRule, f, q: Tensor) -> Tensor:
    """grad f + k q at each point, one by one: a network's loss would not fit in memory batched over a trajectory."""
    slope = torch.zeros_like(q)
    if f is not None:
        slope = gradient_of(f, q) if q.ndim == 1 else torch.stack([gradient_of(f, x) for x in q])
    return slope + rule.weight_decay * q


def checked_acceleration(a, v: Tensor) -> Tensor:
    a = as_tensor("a", a).double()
    if a.shape != v.shape:
        raise ValueError(f"a has shape {tuple(a.shape)}, v {tuple(v.shape)}; give one acceleration per velocity")
    if known(~torch.isfinite(a).all()):
        raise ValueError("a holds NaN or infinity; a motion has no charge there")
    return a
