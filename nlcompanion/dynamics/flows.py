r"""Continuous trajectories: SciPy's solvers around torch gradients.

The solver's arrays and torch's tensors share memory, so a right-hand side costs one gradient and little else.
Rules with a Euclidean metric integrate ``(q, v)``; mirror-type rules integrate ``q`` with the dual point
:math:`Y = \nabla h(q + e^{-\alpha}v)`, in which TK's Euler-Lagrange equation needs no Hessian:

.. math:: \dot q = e^{\alpha}(z - q), \quad \dot Y = (e^{\alpha} - \dot\gamma)\,(Y - \nabla h(q))
          - e^{\alpha+\beta}(\nabla f + k q), \quad z = (\nabla h)^{-1}(Y).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.integrate
import torch
from torch import Tensor

from nlcompanion._arguments import (
    as_point,
    choice,
    function,
    number_from,
    positive_number,
    real_number,
    time_span,
    times_within,
)
from nlcompanion.dynamics.equations import (
    Descent,
    Particle,
    Stalled,
    System,
    WithIntegral,
    set_up,
)
from nlcompanion.dynamics.failures import why_failed
from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.dynamics.nystrom import NystromDOP853
from nlcompanion.dynamics.stiffness import StiffnessWatch
from nlcompanion.dynamics.stopping import Steady, StopCondition
from nlcompanion.dynamics.trajectory import FlowError, Recorder, Trajectory

__all__ = ["integrate"]

_EXPLICIT = ("RK23", "RK45", "DOP853")
_IMPLICIT = ("Radau", "BDF", "LSODA")
_MAX_NFEV = 100_000
_MAX_JACOBIAN_BYTES = 2**31
_WARN_STORED_BYTES = 2**30


# --- the public function ------------------------------------------------------------------------------------------


def integrate(
    rule: LearningRule | Callable,
    f: Callable[[Tensor], Tensor] | None,
    q0,
    v0=None,
    *,
    t_span: tuple[float, float],
    method: str = "DOP853",
    rtol: float = 1e-9,
    atol: float = 1e-12,
    t_eval=None,
    max_nfev: float | None = None,
    record: Callable[[float, Tensor, Tensor], dict] | None = None,
    integrand: Callable[[float, Tensor, Tensor], Tensor] | None = None,
    stop: Callable[[float, Tensor, Tensor], bool] | Steady | None = None,
) -> Trajectory:
    r"""Integrate the continuous dynamics of a learning rule on a loss.

    Euclidean rules: :math:`a = -(\dot\gamma - \dot\alpha)v - e^{2\alpha+\beta}(\nabla f + kq)`; gradient flow:
    :math:`\dot q = -\nabla f`; mirror-type rules in dual variables (see the module); any Lagrangian through
    :func:`nlcompanion.acceleration`.

    Args:
        rule: a :class:`LearningRule`, or a Lagrangian ``L(t, q, v) -> scalar``, then ``f`` is None.
        f: loss ``f(q) -> scalar tensor`` of an ``(n,)`` float64 tensor.
        q0: state at ``t_span[0]``, array-like of shape ``(n,)``.
        v0: velocity there; None is the rule's own start: :math:`-(\nabla f + kq_0)/(1+\beta)` for ``sgd``, the series
            :math:`-t_0\nabla f/4` for ``nesterov``, the slope for gradient flow, rest for the others.
        t_span: ``(t0, t1)`` with ``t0 < t1``.
        method: SciPy's name. ``DOP853`` unless the equation is stiff (small mass): then ``BDF`` or ``Radau``, which
            get the exact Jacobian and are refused where a dense one would not fit.
        rtol, atol: SciPy's tolerances; ``atol=0`` only where no number begins at 0.
        t_eval: increasing times to report, inside ``t_span``; the solver's own steps when None. One rounding beyond an
            end counts as the end.
        max_nfev: calls of the right-hand side allowed, 100,000 when None. ReLU gradient flow can stall an adaptive
            solver at a kink; this is where it stops.
        record: ``record(t, q, v) -> dict of scalars``, called at every reported time instead of storing states:
            the way to follow large networks.
        integrand: ``g(t, q, v) -> tensor`` of any shape, whose integral over time is taken beside the state by the same
            solver, at the same accuracy: the independent side of a law that an integral stands in. With ``method``
            BDF, Radau or LSODA write it in torch operations, since its slopes enter the Jacobian.
        stop: ``stop(t, q, v) -> bool``: the run ends at the first time at which it is true, found within the solver's
            step, and reports that time last, with ``stopped`` set. Ready conditions are ``steady(speed)``, the steady
            state, and ``loss_below(f, level)``. Asked once a step: what comes and goes within one is not seen.

    Returns:
        A :class:`Trajectory`; its ``integral`` holds the integrals from ``t0`` to each time, shape ``(T, ...)``.

    Raises:
        ValueError, TypeError: arguments out of range or of the wrong shape.
        FlowError: the loss turned non-finite, the solver stalled or gave up; ``.trajectory`` holds what was reached.

    Warns:
        UserWarning: an explicit method will need more than 10,000 calls because the equation is stiff (a small mass, or
            a gradient flow with a large curvature); said early.

    Source: TK Eqs. 1 to 4, Table 1; GU Eq. 22, Table 1.

    Example:
        >>> import torch
        >>> from nlcompanion import newtonian
        >>> half_turn = integrate(newtonian(), lambda q: 0.5 * q @ q, [1.0], t_span=(0.0, torch.pi))
        >>> round(half_turn.q[-1].item(), 9)
        -1.0
        >>> work = lambda t, q, v: v @ v
        >>> half_turn = integrate(newtonian(), lambda q: 0.5 * q @ q, [1.0], t_span=(0, torch.pi), integrand=work)
        >>> round(half_turn.integral[-1].item() / torch.pi, 9)   # the mean of sin^2
        0.5
    """
    t0, t1 = time_span(t_span)
    q0 = as_point("q0", q0)
    rtol, atol = positive_number("rtol", rtol), number_from("atol", atol, 0, "a tolerance is a size")
    max_nfev = _MAX_NFEV if max_nfev is None else real_number("max_nfev", max_nfev)
    if not max_nfev >= 1:
        raise ValueError(f"max_nfev must be at least 1, got {max_nfev}; math.inf removes the limit")
    if record is not None:
        function("record", record, "record(t, q, v) -> dict of scalars", 3)
    motion, y0 = set_up(rule, f, q0, v0, t0, max_nfev)
    solver_class = _choose(method, rule, motion, len(y0), t0, t1)
    system: System | WithIntegral = motion
    if integrand is not None:
        system = WithIntegral(motion, function("integrand", integrand, "integrand(t, q, v)", 3), t0, y0)
        y0 = system.start
        solver_class = _choose(method, rule, system, len(y0), t0, t1)  # the Jacobian has grown
    if atol == 0 and not y0.all():
        raise ValueError(
            "atol = 0 asks for a share of every number, and some begin at 0 (components of q0 or v0, an integral), "
            "where no share is left; give atol > 0, such as 1e-12 of the size that they reach"
        )
    times = None if t_eval is None else times_within("t_eval", t_eval, t0, t1)
    condition = None if stop is None else StopCondition(stop, system)
    options = {"jac": system.jacobian} if method in _IMPLICIT and system.jacobian else {}
    log = _Log(system, record, times, t0)
    watch = StiffnessWatch(motion, method, t1) if isinstance(motion, Descent) and method in _EXPLICIT else None
    try:
        solver = solver_class(system, t0, y0, t1, rtol=rtol, atol=atol, **options)
        log.start(solver)
        if condition is not None and condition.holds(t0, solver.y, log.slope(solver)):
            return log.stopped_at(t0, solver.y, method)
        while solver.status == "running":
            message = solver.step()
            if solver.status == "failed":
                raise FlowError(why_failed(message or "", solver, system, motion, method), log.trajectory(method))
            if condition is not None and condition.holds(solver.t, solver.y, log.slope(solver)):
                return log.ended_within(solver, condition, method)
            log.step(solver)
            if watch is not None:
                watch.after_step(solver.t, solver.step_size, solver.y)
    except Stalled:
        t, shown = log.last_t, f"{max_nfev:g}"
        raise FlowError(
            f"the solver used up max_nfev = {shown} right-hand sides at t = {t:.6g} of {t1:g}. Either a ReLU kink "
            "pins the step (use RePU or Swish, or descend() where ReLU is the point), or the equation is stiff "
            "(use method='BDF'), or the span is long (raise max_nfev)",
            log.trajectory(method),
        ) from None
    return log.trajectory(method)


def _choose(method: str, rule, system: System | WithIntegral, size: int, t0: float, t1: float):
    choice("method", method, *_EXPLICIT, *_IMPLICIT)
    if method in _IMPLICIT and 8 * size**2 > _MAX_JACOBIAN_BYTES:
        raise ValueError(
            f"{method} would need a dense Jacobian of {size} x {size}, {8 * size**2 / 2**30:,.1f} GiB; "
            "use method='DOP853', whose memory grows with the parameters only"
        )
    if method in _EXPLICIT and isinstance(system, Particle) and 8 * size**2 <= 2**25:
        middles = t0 + (t1 - t0) * (np.arange(17) + 0.5) / 17
        c1 = float(np.mean([abs(system.equation(t)[0]) for t in middles]))
        calls = 2 * c1 * (t1 - t0)  # an explicit step stays below about 6 / c1, at 12 calls a step
        if calls > 1e4 and calls > 20 * system.n:
            warnings.warn(
                f"the mass is small: friction over mass is {c1:.3g}, so {method} needs about {calls:.2g} calls; "
                "method='BDF' takes far fewer",
                stacklevel=3,
            )
    if method == "DOP853" and type(system) is Particle:
        return NystromDOP853  # the same steps, with less to move through memory
    return getattr(scipy.integrate, method)


class _Log:
    """The solver's steps, or the times asked for, handed to a :class:`Recorder`."""

    def __init__(self, system: System | WithIntegral, record, t_eval, t0: float):
        self.system, self.t_eval = system, t_eval
        self.integral: list[Tensor] = []
        self.kept = Recorder(record, system.n)
        self.next = 0
        self.last_t, self.warned = t0, False

    def start(self, solver):
        self.last_t = solver.t
        if self.t_eval is None or self.t_eval[0] == solver.t:
            self.add_state(solver)
            self.next = 1

    def step(self, solver):
        self.last_t = solver.t
        if self.t_eval is None:
            self.add_state(solver)
            return
        stop = int(np.searchsorted(self.t_eval, solver.t, side="right"))
        if stop > self.next:
            times = self.t_eval[self.next : stop]
            dense = solver.dense_output() if times[0] < solver.t else None  # DOP853 pays three calls for it
            for t in times:
                self.add_state(solver) if t == solver.t else self.add(t, dense(t))
            self.next = stop

    def slope(self, solver) -> np.ndarray | None:
        """The slope of the whole state, where the solver keeps it: Runge-Kutta's do."""
        return getattr(solver, "f", None) if isinstance(solver, scipy.integrate._ivp.rk.RungeKutta) else None

    def add_state(self, solver):
        slope = self.slope(solver)  # q leads the state, so v leads the slope
        self.add(solver.t, solver.y, None if slope is None else slope[: self.system.n])

    def ended_within(self, solver, condition: StopCondition, method: str) -> Trajectory:
        """The trajectory up to where the condition began to hold in the last step."""
        dense = solver.dense_output()
        end = condition.located(solver.t_old, solver.t, dense)
        if self.t_eval is not None:
            for t in self.t_eval[self.next :]:
                if t >= end:
                    break
                self.add(t, dense(t))
        return self.stopped_at(end, dense(end), method)

    def stopped_at(self, t: float, y: np.ndarray, method: str) -> Trajectory:
        if not (self.kept.t and self.kept.t[-1] == t):
            self.add(t, np.ascontiguousarray(y))
        return replace(self.trajectory(method), stopped=True)

    def add(self, t, y, v=None):
        q = torch.from_numpy(y[: self.system.n])
        v = torch.from_numpy(self.system.velocity(t, y) if v is None else v)
        if self.kept.record is None:
            q, v = q.clone(), v.clone()  # SciPy does not promise that a step makes new arrays, though its solvers do
        self.kept.add(t, q, v)
        if isinstance(self.system, WithIntegral):
            self.integral.append(self.system.integral(y))
        if not self.warned and 16 * q.numel() * len(self.kept.q) > _WARN_STORED_BYTES:
            self.warned = True
            warnings.warn(
                f"{len(self.kept.q)} stored states of {q.numel()} parameters take over 1 GiB; pass record=... to "
                "keep scalars instead of states, or t_eval for fewer of them",
                stacklevel=4,
            )

    def trajectory(self, method: str) -> Trajectory:
        run = self.kept.trajectory(self.system.nfev, method)
        if not isinstance(self.system, WithIntegral):
            return run
        none = torch.empty(0, *self.system.shape, dtype=torch.float64)
        return replace(run, integral=torch.stack(self.integral) if self.integral else none)
