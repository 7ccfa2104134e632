r"""Learning rules as Lagrangians and as differential equations.

A learning rule is the kinetic half of a Bregman Lagrangian (TK Eq. 2),

.. math:: L(t, q, v) = e^{\gamma_t}\left[T_h(t, q, v) - e^{\alpha_t+\beta_t}\Big(f(q) + \tfrac{k}{2}|q|^2\Big)\right],
          \qquad T_h = e^{\alpha_t} D_h(q + e^{-\alpha_t} v,\, q),

with the Bregman divergence :math:`D_h(y, x) = h(y) - h(x) - \langle\nabla h(x), y - x\rangle` of a convex function
``h``. Once ``f`` is given, the Euler-Lagrange equation is the continuous form of an algorithm. For the Euclidean
:math:`h = \tfrac12|x|^2` it reads

.. math:: a = -(\dot\gamma - \dot\alpha)\, v - e^{2\alpha+\beta}\,(\nabla f + k q).

:math:`e^{\gamma}` overflows within a few hundred steps of SGD, so nothing here forms it except
:func:`lagrangian`, on request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from nlcompanion._arguments import (
    as_time,
    finite_number,
    flag,
    fraction,
    function,
    instance,
    integer,
    number_from,
    positive_number,
    real_number,
    scalar_of,
    tensor_of,
    vector,
)

__all__ = [
    "LearningRule",
    "Steps",
    "bregman",
    "damped",
    "euclidean",
    "general",
    "gradient_flow",
    "natural_gradient",
    "nesterov",
    "newtonian",
    "sgd",
]

Schedule = Callable[[Tensor], Tensor]
Gradient = Callable[[Tensor], Tensor]


def euclidean(x: Tensor) -> Tensor:
    r"""The Euclidean distance-generating function :math:`h(x) = \tfrac12 |x|^2`."""
    x = vector("x", x)
    return 0.5 * (x @ x)


def _constant(value: float) -> Schedule:
    return lambda t: torch.full_like(t, value)


@dataclass(frozen=True)
class Steps:
    r"""A rule's discrete algorithm as data.

    .. math:: d_n = m_n d_{n-1} - \eta\,s_n\,\big(\nabla f(y_n) + k y_n\big), \quad q_{n+1} = q_n + d_n,
              \qquad y_n = q_n + m_n d_{n-1} \text{ if the rule looks ahead, else } y_n = q_n

    with :math:`s_0` the share of the gradient that the first step takes and :math:`s_n = 1` afterwards. Descent, the
    ledger and the statements of laws read a rule's steps from here, and nothing from its name.

    Attributes:
        lr: step size :math:`\eta`.
        time_step: time that passes in a step: :math:`\eta` for SGD, :math:`\sqrt\eta` for NAGD and Newtonian steps.
        memory: :math:`m_n`, what is kept of the last step, dimensionless: a number, or a function of ``n``.
        looks_ahead: whether the gradient is taken where memory alone leads.
        first_share: :math:`s_0`, dimensionless.

    Source: TK Section 1; GU Eqs. 20 and 21.

    Example:
        >>> from nlcompanion import nesterov
        >>> nesterov(lr=0.01).steps.memory_of(10)
        0.75
    """

    lr: float
    time_step: float
    memory: float | Callable[[int], float] = 0.0
    looks_ahead: bool = False
    first_share: float = 1.0

    def __post_init__(self) -> None:
        positive_number("lr", self.lr)
        positive_number("time_step", self.time_step)
        finite_number("first_share", self.first_share)
        flag("looks_ahead", self.looks_ahead)
        if callable(self.memory):
            function("memory", self.memory, "memory(n) -> number", 1)
        else:
            finite_number("memory", self.memory)

    def memory_of(self, n: int) -> float:
        """What step ``n`` keeps of the step before it; nothing for step 0."""
        if integer("n", n, 0) == 0:
            return 0.0
        return finite_number("memory(n)", self.memory(n)) if callable(self.memory) else self.memory


@dataclass(frozen=True)
class LearningRule:
    r"""The data of a learning rule; make one with the functions of this module, not by hand.

    Attributes:
        name: what to call it, with its settings; a label, on which nothing rests.
        alpha, beta, gamma: schedules of TK Eq. 2, functions of a 0-d tensor ``t`` (dimensionless).
        h: distance-generating function ``h(q) -> scalar``; :func:`euclidean` for all but mirror-type rules.
        weight_decay: :math:`k`, the strength of the quadratic potential, in units of ``f`` over length squared.
        grad_h_inverse: inverse of :math:`\nabla h`, or None for Newton's method.
        massless: True for gradient flow, which has an equation but no Lagrangian.
        steps: the discrete algorithm, :class:`Steps`, or None if the rule has none.
        start: the rule's own initial velocity, ``start(t0, q0, gradient) -> v0``, gradient of the potential.
        singular_at: a time at which the equation is singular (0 for Nesterov), or None.
        coefficients: ``t -> (c1, c2)`` in :math:`a = -c_1 v - c_2 (\nabla f + kq)` for Euclidean rules.
        gamma_rate: :math:`\dot\gamma` as a function of ``t``; by autodiff of ``gamma`` when not given.
        fixed_rates: what :meth:`rates` returns, where it is the same at all times; spares a derivative per call.
        friction_over_t: :math:`r` where the equation is :math:`a = -\tfrac rt v - (\nabla f + kq)`, else None.
        letters: mass and friction as a statement writes them, where they are arbitrary functions with names.
    """

    name: str
    alpha: Schedule
    beta: Schedule
    gamma: Schedule
    h: Callable[[Tensor], Tensor] = euclidean
    weight_decay: float = 0.0
    grad_h_inverse: Callable[[Tensor], Tensor] | None = None
    massless: bool = False
    steps: Steps | None = None
    start: Callable | None = field(default=None, repr=False)
    singular_at: float | None = None
    coefficients: Callable[[float], tuple[float, float]] | None = field(default=None, repr=False)
    gamma_rate: Schedule | None = field(default=None, repr=False)
    fixed_rates: tuple[float, float, float, float] | None = field(default=None, repr=False)
    friction_over_t: float | None = None
    letters: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def lr(self) -> float | None:
        """The step size of the discrete algorithm; None without one."""
        return None if self.steps is None else self.steps.lr

    @property
    def time_step(self) -> float | None:
        """The time that passes in a step of the discrete algorithm; None without one."""
        return None if self.steps is None else self.steps.time_step

    @property
    def is_euclidean(self) -> bool:
        return self.h is euclidean

    def rates(self, t) -> tuple[float, float, float, float]:
        r"""``(alpha, beta, d alpha/dt, d gamma/dt)`` at time ``t``, as floats.

        Raises:
            ValueError: a time that is not finite, or at which the schedules are not.
        """
        t = t if _is_time(t) else as_time(t)
        rates = self._rates(t)
        if not all(map(math.isfinite, rates)):
            raise ValueError(f"the schedules of {self.name} are not finite at t = {float(t):g}; take another time")
        return rates

    def _rates(self, t) -> tuple[float, float, float, float]:
        """The same without a look at the time: a right-hand side asks for this at every call."""
        if self.fixed_rates is not None:
            return self.fixed_rates
        t = as_time(t).detach().clone().requires_grad_()

        def slope(schedule, name):  # plain autograd is the fastest
            return torch.autograd.grad(at_time(schedule, name, t), t)[0].item()

        now = t.detach()
        with torch.enable_grad():
            alpha_rate = slope(self.alpha, "alpha")
            gamma_rate = slope(self.gamma, "gamma") if self.gamma_rate is None else float(self.gamma_rate(now))
        return float(at_time(self.alpha, "alpha", now)), float(at_time(self.beta, "beta", now)), alpha_rate, gamma_rate

    def equation(self, t) -> tuple[float, float]:
        r"""``(c1, c2)`` of the Euclidean equation :math:`a = -c_1 v - c_2(\nabla f + k q)` at time ``t``.

        Raises:
            ValueError: a time that is not finite, or not after the one at which the equation is singular.
        """
        t = t if _is_time(t) else float(as_time(t))
        if self.singular_at is not None and not t > self.singular_at:
            raise ValueError(f"{self.name} is singular at t = {self.singular_at:g}, got t = {t:g}; take a later time")
        if self.coefficients is not None:
            return self.coefficients(t)
        alpha, beta, alpha_rate, gamma_rate = self._rates(t)
        return gamma_rate - alpha_rate, math.exp(2 * alpha + beta)


def _is_time(t) -> bool:
    """Whether ``t`` is a finite number of Python, as solvers hand it over: nothing more is to be checked."""
    return type(t) is float and math.isfinite(t)


def at_time(schedule: Schedule, name: str, t: Tensor) -> Tensor:
    """The schedule's value as a scalar that still depends on ``t`` (a constant may come back as a float)."""
    value = schedule(t)
    if not isinstance(value, Tensor):
        return real_number(f"{name}(t)", value) + 0.0 * t
    if value.ndim != 0:
        raise TypeError(f"{name}(t) returned shape {tuple(value.shape)} for one time; return a scalar")
    return scalar_of(f"{name}(t)", value) + 0.0 * t


def as_rule(rule: LearningRule) -> LearningRule:
    return instance("rule", rule, LearningRule, "sgd(lr=0.1)")


# --- the papers' rules ------------------------------------------------------------------------------------------


def gradient_flow() -> LearningRule:
    r"""Gradient flow, :math:`\dot q = -\nabla f`: the massless limit of every damped rule.

    It has an equation of motion but no Lagrangian of its own; :func:`lagrangian` says so.

    Source: GU Eq. 27; TK Section 1.

    Example:
        >>> gradient_flow().massless
        True
    """
    return LearningRule(
        "gradient flow",
        _constant(0.0),
        _constant(0.0),
        _constant(0.0),
        massless=True,
        start=lambda t0, q0, gradient: -gradient,
    )


def newtonian(lr: float | None = None, *, half_first_step: bool = True) -> LearningRule:
    r"""Newtonian dynamics, :math:`\ddot q = -\nabla f`; with ``lr`` also its discrete form.

    .. math:: w_{k+2} = 2 w_{k+1} - w_k - \eta \nabla f(w_{k+1}), \qquad t = k\sqrt\eta

    Args:
        lr: step size :math:`\eta > 0` of the discrete algorithm, in units of time squared; None for the flow alone.
        half_first_step: start from rest with :math:`w_1 = w_0 - \tfrac\eta2\nabla f(w_0)`, which makes the algorithm
            order 2 in :math:`\sqrt\eta`. False takes the full step of an empty momentum buffer: order 1.

    Raises:
        ValueError: if ``lr`` is not positive.

    Source: GU Eqs. 21 and 25.

    Example:
        >>> newtonian(lr=0.01).time_step
        0.1
    """
    flag("half_first_step", half_first_step)
    lr = None if lr is None else positive_number("lr", lr)
    return LearningRule(
        "Newtonian dynamics" + _settings(lr=lr),
        _constant(0.0),
        _constant(0.0),
        _constant(0.0),
        coefficients=lambda t: (0.0, 1.0),
        fixed_rates=(0.0, 0.0, 0.0, 0.0),
        steps=_steps(lr, math.sqrt, memory=1.0, first_share=0.5 if half_first_step else 1.0),
    )


def nesterov(lr: float | None = None) -> LearningRule:
    r"""Nesterov's accelerated gradient flow, :math:`\ddot q + \tfrac3t \dot q + \nabla f = 0`; with ``lr`` also NAGD.

    .. math:: w_k = y_{k-1} - \eta\nabla f(y_{k-1}), \quad y_k = w_k + \tfrac{k-1}{k+2}(w_k - w_{k-1}),
              \qquad t = k\sqrt\eta

    The flow is singular at ``t = 0``: start it at ``t0 > 0``, where its own initial velocity is the series
    :math:`-\tfrac{t_0}{4}\nabla f`. ``torch.optim.SGD(nesterov=True)`` is another algorithm, with a constant momentum.

    Args:
        lr: step size :math:`\eta > 0` of the discrete algorithm, in units of time squared; None for the flow alone.

    Raises:
        ValueError: if ``lr`` is not positive.

    Source: TK Table 1, row 1 (whose equation lacks the velocity behind :math:`3/t`); GU Eqs. 20 and 26.

    Example:
        >>> nesterov().equation(1.5)
        (2.0, 1.0)
    """
    lr = None if lr is None else positive_number("lr", lr)
    return LearningRule(
        "Nesterov's accelerated gradient" + _settings(lr=lr),
        lambda t: math.log(2) - torch.log(t),
        lambda t: 2 * torch.log(t) - math.log(4),
        lambda t: 2 * torch.log(t),
        coefficients=lambda t: (3.0 / t, 1.0),
        start=lambda t0, q0, gradient: -(t0 / 4) * gradient,
        singular_at=0.0,
        friction_over_t=3.0,
        steps=_steps(lr, math.sqrt, memory=lambda n: (n - 1) / (n + 2), looks_ahead=True),
    )


def damped(mass: float, friction: float) -> LearningRule:
    r"""A damped particle, :math:`m\ddot q + \mu\dot q + \nabla f = 0`.

    Args:
        mass: :math:`m > 0`.
        friction: :math:`\mu \ge 0`; the memory of the motion is :math:`m/\mu` in time.

    Raises:
        ValueError: if ``mass`` is not positive or ``friction`` is negative.

    Source: TK Table 1, row 2 (Kanai's Lagrangian).

    Example:
        >>> damped(mass=2.0, friction=1.0).equation(0.0)
        (0.5, 0.5)
    """
    mass, friction = _mass_friction(mass, friction)
    return _damped(f"damped particle (mass={mass:g}, friction={friction:g})", mass, friction)


def sgd(lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> LearningRule:
    r"""Gradient descent with heavy-ball momentum and weight decay, as ``torch.optim.SGD``, and its mechanics.

    .. math:: b \leftarrow \beta b + \nabla f(q) + k q, \quad q \leftarrow q - \eta b, \qquad t = \eta n

    follows, to second order in :math:`\eta`, the damped particle

    .. math:: \frac{\eta(1+\beta)}{2}\,\ddot q + (1-\beta)\,\dot q + \nabla f(q) + k q = 0

    that starts with :math:`\dot q(0) = -(\nabla f + k q_0)/(1+\beta)`. Any other initial velocity gives order 1.
    The equation is stable for every step on a convex loss, the algorithm only below
    :math:`\eta\lambda < 2(1+\beta)`.

    Args:
        lr: step size :math:`\eta > 0`, in units of time.
        momentum: :math:`\beta` in [0, 1), PyTorch's convention (no dampening), dimensionless.
        weight_decay: :math:`k \ge 0`, in 1 / time, coupled to the gradient as in ``torch.optim.SGD``.

    Raises:
        ValueError: if a setting is out of its range.

    Source: TK Eqs. 3 and 4, Table 1 row 4.

    Example:
        >>> rule = sgd(lr=0.1, momentum=0.9)
        >>> round(1 / rule.equation(0.0)[1], 3)   # the mass, eta (1 + beta) / 2
        0.095
    """
    lr = positive_number("lr", lr)
    momentum = fraction(
        "momentum",
        momentum,
        "at 1 the buffer never forgets and the friction is gone: use newtonian() for undamped motion",
    )
    weight_decay = number_from("weight_decay", weight_decay, 0, "a negative one drives q to infinity")
    return _damped(
        "SGD" + _settings(lr=lr, momentum=momentum or None, weight_decay=weight_decay or None),
        lr * (1 + momentum) / 2,
        1 - momentum,
        weight_decay=weight_decay,
        start=lambda t0, q0, gradient: -gradient / (1 + momentum),
        steps=_steps(lr, lambda lr: lr, memory=momentum),
    )


def natural_gradient(
    h: Callable[[Tensor], Tensor],
    mass: float,
    friction: float,
    *,
    grad_h_inverse: Callable[[Tensor], Tensor] | None = None,
) -> LearningRule:
    r"""Natural gradient with inertia; mirror descent's flow with mass.

    As :math:`m \to 0` with :math:`\mu = 1` the motion tends to :math:`\dot q = -(\nabla^2 h)^{-1}\nabla f`, with an
    error of order :math:`m`.

    Args:
        h: strictly convex ``h(q) -> scalar``; its Hessian is the metric.
        mass: :math:`m > 0`.
        friction: :math:`\mu \ge 0`.
        grad_h_inverse: inverse of :math:`\nabla h`, ``(n,) -> (n,)``; Newton's method when None.

    Raises:
        ValueError: if ``mass`` is not positive or ``friction`` is negative.

    Source: TK Table 1, row 3 (whose limit lacks the friction :math:`\mu`).

    Example:
        >>> entropy = lambda q: (q * q.log()).sum()
        >>> natural_gradient(entropy, mass=0.1, friction=1.0).is_euclidean
        False
    """
    mass, friction = _mass_friction(mass, friction)
    name = f"natural gradient (mass={mass:g}, friction={friction:g})"
    return _damped(name, mass, friction, h=_convex(h), grad_h_inverse=_inverse(grad_h_inverse))


def general(kappa2: Schedule, kappa1: Schedule, *, t_ref: float = 1.0) -> LearningRule:
    r"""GU's general dynamics, :math:`\kappa_2(t)\ddot q + \kappa_1(t)\dot q + \nabla f = 0`.

    Its Lagrangian is :math:`e^{\int \kappa_1/\kappa_2}\left(\tfrac12|\dot q|^2 - f/\kappa_2\right)`, the integral taken
    from ``t_ref``; GU print 0, where the integral of Nesterov's :math:`3/t` diverges.

    Args:
        kappa2: mass ``t -> scalar``, positive; a function of a 0-d tensor in torch operations, without branches on
            its value (``torch.where`` is fine).
        kappa1: friction ``t -> scalar``, likewise.
        t_ref: time at which the Lagrangian's prefactor is 1.

    Raises:
        ValueError: when used at a time where ``kappa2`` is not positive.

    Source: GU Eqs. 22 and 23.

    Example:
        >>> rule = general(lambda t: 2.0, lambda t: 3.0 / t)
        >>> rule.equation(1.5)
        (1.0, 0.5)
    """
    function("kappa2", kappa2, "kappa2(t) -> scalar", 1)
    function("kappa1", kappa1, "kappa1(t) -> scalar", 1)
    t_ref = finite_number("t_ref", t_ref)

    def ratio(t):
        return at_time(kappa1, "kappa1", t) / at_time(kappa2, "kappa2", t)

    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(96))

    def gamma(t):  # Gauss-Legendre: differentiable, and exact far beyond rounding for smooth schedules
        half = (t - t_ref) / 2
        return weights @ vmap(ratio)(t_ref + half * (1 + nodes)) * half

    def coefficients(t):
        t = torch.as_tensor(t, dtype=torch.float64)
        k2, k1 = float(at_time(kappa2, "kappa2", t)), float(at_time(kappa1, "kappa1", t))
        if not k2 > 0:
            raise ValueError(
                f"kappa2({float(t):.6g}) = {k2:g}; a mass must be positive: use gradient_flow() for a massless rule"
            )
        return k1 / k2, 1 / k2

    return LearningRule(
        "general dynamics",
        _constant(0.0),
        lambda t: -torch.log(at_time(kappa2, "kappa2", t)),
        gamma,
        coefficients=coefficients,
        gamma_rate=ratio,
        letters=("kappa2", "kappa1"),
    )


def bregman(
    alpha: Schedule,
    beta: Schedule,
    gamma: Schedule,
    h: Callable[[Tensor], Tensor] = euclidean,
    *,
    grad_h_inverse: Callable[[Tensor], Tensor] | None = None,
) -> LearningRule:
    r"""Any rule of the Bregman Lagrangian, from its three schedules and its metric.

    Args:
        alpha, beta, gamma: functions of a 0-d tensor ``t``, in torch operations so that they can be differentiated.
        h: strictly convex ``h(q) -> scalar``; Euclidean by default.
        grad_h_inverse: inverse of :math:`\nabla h`; Newton's method when None.

    Source: TK Eq. 2; Wibisono, Wilson and Jordan (2016).

    Example:
        >>> import math
        >>> cubic = bregman(lambda t: math.log(3) - t.log(), lambda t: 3 * t.log(), lambda t: 3 * t.log())
        >>> [round(c, 12) for c in cubic.equation(2.0)]   # 4 / t and 9 t
        [2.0, 18.0]
    """
    for name, schedule in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        function(name, schedule, f"{name}(t) -> scalar", 1)
    return LearningRule("Bregman rule", alpha, beta, gamma, h=_convex(h), grad_h_inverse=_inverse(grad_h_inverse))


# --- shared pieces ----------------------------------------------------------------------------------------------


def _damped(name: str, mass: float, friction: float, **more) -> LearningRule:
    log_mass = math.log(mass)
    if "h" not in more:
        more["coefficients"] = lambda t: (friction / mass, 1 / mass)
    return LearningRule(
        name,
        _constant(-log_mass),
        _constant(log_mass),
        lambda t: friction / mass * t,
        fixed_rates=(-log_mass, log_mass, 0.0, friction / mass),
        **more,
    )


def _steps(lr: float | None, time_step: Callable[[float], float], **more) -> Steps | None:
    if lr is None:
        return None
    return Steps(lr, time_step(lr), **more)


def _mass_friction(mass: float, friction: float) -> tuple[float, float]:
    mass, friction = real_number("mass", mass), real_number("friction", friction)
    if not (math.isfinite(mass) and mass > 0):
        raise ValueError(f"mass must be > 0, got {mass}; the massless limit is gradient_flow()")
    if not (math.isfinite(friction) and friction >= 0):
        raise ValueError(f"friction must be >= 0, got {friction}; a negative one feeds energy in without end")
    return mass, friction


def _convex(h: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``h`` with its result checked; :func:`euclidean` stays itself, since rules are told apart by it."""
    if h is euclidean:
        return h
    function("h", h, "h(q) -> scalar", 1)
    return lambda q: scalar_of("h(q)", h(q))


def _inverse(grad_h_inverse: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    if grad_h_inverse is None:
        return None
    function("grad_h_inverse", grad_h_inverse, "grad_h_inverse(y) -> q", 1)
    return lambda y: tensor_of("grad_h_inverse(y)", grad_h_inverse(y), y.shape)


def _settings(**values) -> str:
    given = ", ".join(f"{name}={value:g}" for name, value in values.items() if isinstance(value, int | float))
    return f" ({given})" if given else ""
