r"""Continuous trajectories: SciPy's solvers around torch gradients.

The solver's arrays and torch's tensors share memory, so a right-hand side costs one gradient and little else.
Rules with a Euclidean metric integrate ``(q, v)``; mirror-type rules integrate ``q`` with the dual point
:math:`Y = \nabla h(q + e^{-\alpha}v)`, in which TK's Euler-Lagrange equation needs no Hessian:

.. math:: \dot q = e^{\alpha}(z - q), \quad \dot Y = (e^{\alpha} - \dot\gamma)\,(Y - \nabla h(q))
          - e^{\alpha+\beta}(\nabla f + k q), \quad z = (\nabla h)^{-1}(Y).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.integrate
import torch
from torch import Tensor
from torch.func import grad, hessian

from nlcompanion.learning_rules import LearningRule
from nlcompanion.mechanics import _span, acceleration, as_point

__all__ = ["FlowError", "Trajectory", "integrate"]

_EXPLICIT = ("RK23", "RK45", "DOP853")
_IMPLICIT = ("Radau", "BDF", "LSODA")
_MAX_NFEV = 100_000
_MAX_JACOBIAN_BYTES = 2**31
_WARN_STORED_BYTES = 2**30


@dataclass(frozen=True)
class Trajectory:
    """A trajectory, continuous or discrete.

    Attributes:
        t: times, shape ``(T,)``.
        q: points, shape ``(T, n)``; the last one only, ``(1, n)``, where ``record`` replaced the stored states.
        v: velocities, same shape as ``q``. Of a discrete run: ``(q[n+1] - q[n]) / dt``.
        record: what ``record`` returned, as a dict of tensors of shape ``(T,)``.
        nfev: gradient evaluations (or calls of the right-hand side) spent.
        method: solver or algorithm.
        beside: what was integrated beside the state, from 0 at the start: shape ``(T, ...)``; None if nothing was.

    All are float64 CPU tensors without gradient.
    """

    t: Tensor
    q: Tensor
    v: Tensor
    record: dict[str, Tensor] = field(default_factory=dict)
    nfev: int = 0
    method: str = ""
    beside: Tensor | None = None

    def __repr__(self) -> str:
        span = f"t = {self.t[0]:.4g} .. {self.t[-1]:.4g}" if len(self.t) else "empty"
        return f"Trajectory({self.method}, {len(self.t)} times, {span}, n = {self.q.shape[-1]}, nfev = {self.nfev})"


class FlowError(RuntimeError):
    """An integration that could not be finished; ``trajectory`` holds what was reached."""

    def __init__(self, message: str, trajectory: Trajectory):
        super().__init__(message)
        self.trajectory = trajectory


class LossGradient:
    """The gradient of ``f`` at a float64 point, with ``f``'s value checked to be a finite scalar.

    Non-finite values make the gradient NaN: adaptive solvers then shorten the step, and callers can tell.
    """

    def __init__(self, f: Callable[[Tensor], Tensor]):
        if not callable(f):
            raise TypeError(f"f must be a function f(q) -> scalar tensor, got {type(f).__name__}")
        self.f = f
        self.calls = 0

    def __call__(self, q: Tensor) -> Tensor:
        self.calls += 1
        q = q.detach().requires_grad_()
        value = self.f(q)
        self._check(value)
        (slope,) = torch.autograd.grad(value, q)
        if not math.isfinite(value.item()):
            return torch.full_like(slope, math.nan)
        return slope

    @staticmethod
    def _check(value) -> None:
        if not isinstance(value, Tensor) or value.numel() != 1 or value.ndim > 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"the loss f(q) must be a scalar tensor, got {got}; reduce it with .mean() or .sum() inside f"
            )
        if not value.requires_grad:
            raise TypeError(
                "the loss f(q) does not depend on q through torch operations, so it has no gradient; "
                "avoid .item(), .numpy() and torch.tensor(...) inside f"
            )


class _Stalled(Exception):
    pass


# --- the differential equation as arrays -------------------------------------------------------------------------


class _System:
    """State vector, right-hand side and Jacobian of one kind of equation."""

    jacobian: Callable | None = None

    def __init__(self, n: int, max_nfev: float):
        self.n, self.max_nfev, self.nfev = n, max_nfev, 0
        self.last_bad: float | None = None

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        if self.nfev >= self.max_nfev:
            raise _Stalled
        self.nfev += 1
        out = self.slope(t, y)
        if not np.isfinite(out).all():
            self.last_bad = t
        return out

    def velocity(self, t: float, y: np.ndarray) -> np.ndarray:
        return y[self.n :]


class _Descent(_System):
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


class _Particle(_System):
    """a = -c1(t) v - c2(t) (grad f + k q): the state is (q, v)."""

    def __init__(self, rule: LearningRule, gradient, n, max_nfev):
        super().__init__(n, max_nfev)
        self.equation, self.gradient, self.decay = rule.equation, gradient, rule.weight_decay
        self.jacobian = self._jacobian

    def slope(self, t, y):
        n, (c1, c2) = self.n, self.equation(t)
        out = np.empty_like(y)
        out[:n] = y[n:]
        np.multiply(self.gradient(torch.from_numpy(y[:n])).numpy(), -c2, out=out[n:])
        if self.decay:
            out[n:] -= c2 * self.decay * y[:n]
        if c1:
            out[n:] -= c1 * y[n:]
        return out

    def _jacobian(self, t, y):
        n, (c1, c2) = self.n, self.equation(t)
        J = np.zeros((2 * n, 2 * n))
        J[:n, n:] = np.eye(n)
        J[n:, :n] = -c2 * _hessian(self.gradient.f, y[:n], self.decay)
        J[n:, n:] = -c1 * np.eye(n)
        return J


class _Mirror(_System):
    """A non-Euclidean rule: the state is (q, Y) with Y = grad h(q + exp(-alpha) v)."""

    def __init__(self, rule: LearningRule, gradient, q0, v0, t0, max_nfev):
        super().__init__(len(q0), max_nfev)
        self.rule, self.gradient, self.grad_h = rule, gradient, grad(rule.h)
        z0 = q0 + math.exp(-rule.rates(t0)[0]) * v0
        self._last_z = z0  # Newton's next start: the dual point moves little between calls
        self.dual0 = self.grad_h(z0)
        if not (torch.isfinite(self.dual0).all() and torch.isfinite(self.grad_h(q0)).all()):
            raise ValueError(
                "grad h is not finite at q0 or at q0 + exp(-alpha) v0: the start lies outside the domain of h "
                "(entropy needs positive q); move it inside, or take a smaller v0"
            )

    def slope(self, t, y):
        n, rule = self.n, self.rule
        alpha, beta, _, gamma_rate = rule.rates(t)
        q, Y = torch.from_numpy(y[:n]), torch.from_numpy(y[n:])
        z = self._inverse(Y)
        force = self.gradient(q) + rule.weight_decay * q
        dual = (math.exp(alpha) - gamma_rate) * (Y - self.grad_h(q)) - math.exp(alpha + beta) * force
        return torch.cat([math.exp(alpha) * (z - q), dual]).numpy()

    def velocity(self, t, y):
        q, Y = torch.from_numpy(y[: self.n]), torch.from_numpy(y[self.n :])
        return (math.exp(self.rule.rates(t)[0]) * (self._inverse(Y) - q)).numpy()

    def _inverse(self, Y: Tensor) -> Tensor:
        if self.rule.grad_h_inverse is not None:
            return self.rule.grad_h_inverse(Y)
        z = _invert_gradient(self.rule.h, self.grad_h, Y, self._last_z)
        if torch.isfinite(z).all():
            self._last_z = z
        return z


class _Lagrange(_System):
    """Any Lagrangian L(t, q, v), solved for the acceleration: the state is (q, v)."""

    def __init__(self, L, n, max_nfev):
        super().__init__(n, max_nfev)
        self.acceleration = acceleration(L)

    def slope(self, t, y):
        q, v = torch.from_numpy(y[: self.n]), torch.from_numpy(y[self.n :])
        a = self.acceleration(torch.tensor(t, dtype=torch.float64), q, v)
        return np.concatenate([y[self.n :], a.numpy()])


class _Beside:
    """Another system with an integral beside its state: (state, integral of g), of which nothing acts back.

    In all systems q leads the state, so v leads its slope: g costs no gradient of its own.
    """

    def __init__(self, system: _System, g: Callable, t0: float, y0: np.ndarray):
        self.system, self.n, self.size, self.g = system, system.n, len(y0), g
        self.shape: tuple[int, ...] | None = None
        self.shape = tuple(self._value(t0, y0, system.velocity(t0, y0)).shape)
        self.start = np.concatenate([y0, np.zeros(math.prod(self.shape))])
        self.jacobian = system.jacobian and self._jacobian

    nfev = property(lambda self: self.system.nfev)
    last_bad = property(lambda self: self.system.last_bad)

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
                f"beside(t, q, v) must return a tensor of any shape to be integrated, got {type(value).__name__}; "
                "stack several quantities into one tensor"
            ) from error
        if self.shape is not None and value.shape != self.shape:
            raise ValueError(
                f"beside(t, q, v) returned shape {tuple(value.shape)} after {self.shape}; return the same each time"
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
    beside: Callable[[float, Tensor, Tensor], Tensor] | None = None,
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
        rtol, atol: SciPy's tolerances.
        t_eval: increasing times to report, inside ``t_span``; the solver's own steps when None.
        max_nfev: calls of the right-hand side allowed, 100,000 when None. ReLU gradient flow can stall an adaptive
            solver at a kink; this is where it stops.
        record: ``record(t, q, v) -> dict of scalars``, called at every reported time instead of storing states:
            the way to follow large networks.
        beside: ``g(t, q, v) -> tensor`` of any shape, whose integral over time is taken beside the state by the same
            solver, at the same accuracy: the independent side of a law that an integral stands in. With ``method``
            BDF, Radau or LSODA write it in torch operations, since its slopes enter the Jacobian.

    Returns:
        A :class:`Trajectory`; its ``beside`` holds the integrals from ``t0`` to each time, shape ``(T, ...)``.

    Raises:
        ValueError, TypeError: arguments out of range or of the wrong shape.
        FlowError: the loss turned non-finite, the solver stalled or gave up; ``.trajectory`` holds what was reached.

    Source: TK Eqs. 1 to 4, Table 1; GU Eq. 22, Table 1.

    Example:
        >>> import torch
        >>> from nlcompanion import newtonian
        >>> half_turn = integrate(newtonian(), lambda q: 0.5 * q @ q, [1.0], t_span=(0.0, torch.pi))
        >>> round(half_turn.q[-1].item(), 9)
        -1.0
        >>> work = lambda t, q, v: v @ v
        >>> half_turn = integrate(newtonian(), lambda q: 0.5 * q @ q, [1.0], t_span=(0, torch.pi), beside=work)
        >>> round(half_turn.beside[-1].item() / torch.pi, 9)   # the mean of sin^2
        0.5
    """
    t0, t1 = _span(t_span)
    q0 = as_point("q0", q0)
    max_nfev = _MAX_NFEV if max_nfev is None else max_nfev
    if not max_nfev >= 1:
        raise ValueError(f"max_nfev must be at least 1, got {max_nfev}; math.inf removes the limit")
    system, y0 = _set_up(rule, f, q0, v0, t0, max_nfev)
    solver_class = _choose(method, rule, system, len(y0), t0, t1)
    if beside is not None:
        system = _Beside(system, _function("beside", beside), t0, y0)
        y0 = system.start
        _choose(method, rule, system, len(y0), t0, t1)  # the Jacobian has grown
    t_eval = _check_times(t_eval, t0, t1)
    options = {"jac": system.jacobian} if method in _IMPLICIT and system.jacobian else {}
    log = _Log(system, record, t_eval, t0)
    try:
        solver = solver_class(system, t0, y0, t1, rtol=rtol, atol=atol, **options)
        log.start(solver)
        while solver.status == "running":
            message = solver.step()
            if solver.status == "failed":
                raise FlowError(_why_failed(message, solver.t, system, method), log.trajectory(method))
            log.step(solver)
    except _Stalled:
        t, shown = log.last_t, f"{max_nfev:g}"
        raise FlowError(
            f"the solver used up max_nfev = {shown} right-hand sides at t = {t:.6g} of {t1:g}. Either a ReLU kink "
            "pins the step (use RePU or Swish, or descend() where ReLU is the point), or the equation is stiff "
            "(use method='BDF'), or the span is long (raise max_nfev)",
            log.trajectory(method),
        ) from None
    return log.trajectory(method)


def _set_up(rule, f, q0: Tensor, v0, t0: float, max_nfev) -> tuple[_System, np.ndarray]:
    n = len(q0)
    if v0 is not None:
        v0 = as_point("v0", v0)
        if v0.shape != q0.shape:
            raise ValueError(f"v0 has {len(v0)} components, q0 has {n}; a velocity lives in the space of the point")
    if not isinstance(rule, LearningRule):
        if not callable(rule):
            raise TypeError(f"rule must be a LearningRule or a Lagrangian L(t, q, v), got {type(rule).__name__}")
        if f is not None:
            raise ValueError("a Lagrangian already holds its potential; pass f=None, or a LearningRule with this f")
        system = _Lagrange(rule, n, max_nfev)
        return system, torch.cat([q0, torch.zeros(n).double() if v0 is None else v0]).numpy()
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
        return _Descent(gradient, rule.weight_decay, n, max_nfev), q0.numpy().copy()
    if v0 is None:
        v0 = rule.start(t0, q0, slope) if rule.start else torch.zeros_like(q0)
    if rule.is_euclidean:
        return _Particle(rule, gradient, n, max_nfev), torch.cat([q0, v0]).numpy()
    system = _Mirror(rule, gradient, q0, v0, t0, max_nfev)
    return system, torch.cat([q0, system.dual0]).numpy()


def _choose(method: str, rule, system: _System, size: int, t0: float, t1: float):
    if method not in _EXPLICIT + _IMPLICIT:
        raise ValueError(f"method {method!r} is unknown; choose from {', '.join(_EXPLICIT + _IMPLICIT)}")
    if method in _IMPLICIT and 8 * size**2 > _MAX_JACOBIAN_BYTES:
        raise ValueError(
            f"{method} would need a dense Jacobian of {size} x {size}, {8 * size**2 / 2**30:,.1f} GiB; "
            "use method='DOP853', whose memory grows with the parameters only"
        )
    if method in _EXPLICIT and isinstance(system, _Particle) and 8 * size**2 <= 2**25:
        middles = t0 + (t1 - t0) * (np.arange(17) + 0.5) / 17
        c1 = float(np.mean([abs(system.equation(t)[0]) for t in middles]))
        calls = 2 * c1 * (t1 - t0)  # an explicit step stays below about 6 / c1, at 12 calls a step
        if calls > 1e4 and calls > 20 * system.n:
            warnings.warn(
                f"the mass is small: friction over mass is {c1:.3g}, so {method} needs about {calls:.2g} calls; "
                "method='BDF' takes far fewer",
                stacklevel=3,
            )
    return getattr(scipy.integrate, method)


def _function(name: str, value: Callable) -> Callable:
    if not callable(value):
        raise TypeError(f"{name} must be a function {name}(t, q, v), got {type(value).__name__}")
    return value


def _check_times(t_eval, t0: float, t1: float) -> np.ndarray | None:
    if t_eval is None:
        return None
    times = np.asarray(t_eval, dtype=float)
    if times.ndim != 1 or not len(times) or times[0] < t0 or times[-1] > t1 or (np.diff(times) <= 0).any():
        raise ValueError(f"t_eval must be increasing times within [{t0:g}, {t1:g}], of shape (T,) with T > 0")
    return times


def _why_failed(message: str, t: float, system: _System, method: str) -> str:
    if system.last_bad is not None or "step size" in message:
        return (
            f"the motion could not be followed beyond t = {t:.6g}: it runs to infinity there, or to the edge of the "
            "domain where the loss (or h, or what stands beside) turns non-finite. The trajectory up to then is on "
            "this error; check f near its last point"
        )
    return f"{method} gave up at t = {t:.6g}: {message}"


class Recorder:
    """What a trajectory keeps: states, or what ``record`` makes of them. Shared with the discrete algorithms."""

    def __init__(self, record, n: int):
        self.record, self.n = record, n
        self.t: list[float] = []
        self.q: list[Tensor] = []
        self.v: list[Tensor] = []
        self.rows: list[dict[str, float]] = []

    def add(self, t: float, q: Tensor, v: Tensor) -> None:
        self.t.append(float(t))
        if self.record is None:
            self.q.append(q)
            self.v.append(v)
        else:
            self.q, self.v = [q], [v]  # the last state stays at hand, the others would fill the memory
            self.rows.append(self._row(self.record(float(t), q, v)))

    def _row(self, row) -> dict[str, float]:
        if not isinstance(row, dict):
            raise TypeError(f"record(t, q, v) must return a dict of scalars, got {type(row).__name__}")
        if self.rows and row.keys() != self.rows[0].keys():
            raise ValueError(
                f"record returned the names {sorted(row)} after {sorted(self.rows[0])}; return the same each time"
            )
        try:
            return {name: float(value) for name, value in row.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"record(t, q, v) must return scalars: {error}") from error

    def trajectory(self, nfev: int, method: str) -> Trajectory:
        stack = lambda rows: torch.stack(rows) if rows else torch.empty(0, self.n).double()  # noqa: E731
        names = self.rows[0] if self.rows else ()
        record = {name: torch.tensor([row[name] for row in self.rows], dtype=torch.float64) for name in names}
        times = torch.tensor(self.t, dtype=torch.float64)
        return Trajectory(times, stack(self.q), stack(self.v), record, nfev, method)


class _Log:
    """The solver's steps, or the times asked for, handed to a :class:`Recorder`."""

    def __init__(self, system: _System | _Beside, record, t_eval, t0: float):
        self.system, self.t_eval = system, t_eval
        self.beside: list[Tensor] | None = [] if isinstance(system, _Beside) else None
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

    def add_state(self, solver):
        slope = getattr(solver, "f", None)  # Runge-Kutta solvers keep it; q leads the state, so v leads the slope
        self.add(solver.t, solver.y, None if slope is None else slope[: self.system.n])

    def add(self, t, y, v=None):
        q = torch.from_numpy(y[: self.system.n])
        v = torch.from_numpy(self.system.velocity(t, y) if v is None else v)
        if self.kept.record is None:
            q, v = q.clone(), v.clone()  # the solver goes on using its arrays
        self.kept.add(t, q, v)
        if self.beside is not None:
            self.beside.append(self.system.integral(y))
        if not self.warned and 16 * q.numel() * len(self.kept.q) > _WARN_STORED_BYTES:
            self.warned = True
            warnings.warn(
                f"{len(self.kept.q)} stored states of {q.numel()} parameters take over 1 GiB; pass record=... to "
                "keep scalars instead of states, or t_eval for fewer of them",
                stacklevel=4,
            )

    def trajectory(self, method: str) -> Trajectory:
        run = self.kept.trajectory(self.system.nfev, method)
        if self.beside is None:
            return run
        return replace(
            run, beside=torch.stack(self.beside) if self.beside else torch.empty(0, *self.system.shape).double()
        )
