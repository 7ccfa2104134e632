"""Linearised training: what the tangent kernel predicts for any rule."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from nlcompanion._arguments import finite_number, numbers, real_array, real_number
from nlcompanion.dynamics.flows import integrate
from nlcompanion.dynamics.learning_rules import LearningRule, as_rule, gradient_flow

__all__ = ["linearized_dynamics"]

# --- linearised training ------------------------------------------------------------------------------------------


def linearized_dynamics(
    kernel: Tensor,
    u0: Tensor,
    y: Tensor,
    t,
    rule: LearningRule | None = None,
    *,
    weight: float = 1.0,
    t0: float = 0.0,
    cross: Tensor | None = None,
    u0_cross: Tensor | None = None,
) -> Tensor:
    r"""Outputs during training as the kernel predicts them, for a squared loss.

    With :math:`r = u - y` and the loss :math:`f = \tfrac{w}{2}\sum_i r_i^2`, a rule whose motion is
    :math:`\ddot q + c_1\dot q + c_2\nabla f = 0` moves the outputs of a linear model by

    .. math:: \ddot r + c_1\,\dot r + c_2\,w\,H\,r = 0 .

    In an eigenmode of :math:`wH` with eigenvalue :math:`\lambda`, from the rule's own start,

    ========================  ==========================================================================
    ``gradient_flow()``       :math:`e^{-\lambda t}`
    ``newtonian()``           :math:`\cos\sqrt\lambda\,t`
    ``nesterov()``            :math:`2J_1(\sqrt\lambda\,t) / (\sqrt\lambda\,t)` from ``t0 = 0``
    ``damped()``, ``sgd()``   a damped oscillation, in closed form too
    other Euclidean rules     integrated numerically, mode by mode
    ========================  ==========================================================================

    The sign matters: GU print :math:`\ddot u = -H(y - u)`, whose solutions grow as :math:`\cosh\sqrt\lambda\,t`.

    Args:
        kernel: :math:`H` on the training points, ``(N, N)`` or ``(N, N, C, C)``; symmetric.
        u0: outputs of the training points at ``t0``, ``(N,)`` or ``(N, C)`` to match.
        y: targets, the same shape.
        t: times, shape ``(T,)``, none before ``t0``.
        rule: a learning rule without weight decay; gradient flow when None.
        weight: :math:`w` of the loss. 1 is GU's half sum of squares; ``mse_loss`` over ``N C`` numbers is
            ``2 / (N * C)``; half the mean over samples is ``1 / N``.
        t0: when training starts. Nesterov's flow may start at 0 here, its singularity is solved.
        cross: kernel between other points and the training points, ``(M, N)`` or ``(M, N, C, C)``; then the outputs of
            those points are returned, and ``u0_cross`` are their outputs at ``t0``.

    Returns:
        Shape ``(T, N)`` or ``(T, N, C)``, with ``cross`` ``(T, M)`` or ``(T, M, C)``. float64, exact for models linear
        in their parameters.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a kernel that is not symmetric or has negative
            eigenvalues, a weight that is not positive, times before the start, a rule with weight decay or with a
            metric (their linearised outputs do not follow from the kernel).

    Source: GU Eqs. 52 and 53, with the sign corrected, and their remark on kernel regression.

    Example:
        >>> import torch
        >>> from nlcompanion import newtonian
        >>> H, u0, y = torch.tensor([[4.0]]), torch.tensor([0.0]), torch.tensor([1.0])
        >>> u = linearized_dynamics(H, u0, y, [0.0, torch.pi / 2], newtonian())
        >>> [round(x, 9) for x in u[:, 0].tolist()]     # 1 - cos 2t: half a period brings it to 2
        [0.0, 2.0]
    """
    rule = gradient_flow() if rule is None else rule
    _check_rule(rule)
    u0, y = real_array("u0", u0), real_array("y", y)
    H = _matrix(kernel, u0.shape, u0.shape, "kernel")
    if y.shape != u0.shape or u0.ndim not in (1, 2):
        raise ValueError(f"u0 has shape {tuple(u0.shape)} and y {tuple(y.shape)}; both are (N,) or both (N, C)")
    if not (H.isfinite().all() and u0.isfinite().all() and y.isfinite().all()):
        raise ValueError("kernel, u0 or y holds a value that is not finite, so nothing is predicted; find where it is")
    weight, t0 = real_number("weight", weight), finite_number("t0", t0)
    if not (np.isfinite(weight) and weight > 0):
        raise ValueError(
            f"weight must be positive, got {weight}: the loss has no minimum; half the sum of squares has 1"
        )
    if cross is None and u0_cross is not None:
        raise ValueError("u0_cross= was given without cross=, the kernel that moves those points; pass both or neither")
    if not (H - H.T).abs().max() <= 1e-6 * H.abs().max():
        raise ValueError("the kernel is not symmetric, so it is not one of training points with themselves; see cross=")
    times = np.atleast_1d(real_array("t", t).numpy())
    if times.ndim != 1 or not times.size or not (np.isfinite(times) & (times >= t0)).all():
        raise ValueError(f"t must be times of shape (T,), none before t0 = {t0:g}")
    curvature, modes = torch.linalg.eigh(weight * (H + H.T) / 2)
    if curvature.min() < -1e-5 * curvature.abs().max():  # a kernel of float32 has some from rounding
        raise ValueError(
            f"the kernel has a negative eigenvalue, {curvature.min() / weight:.3g}, which no J Jᵀ has: its modes would "
            "grow; pass the kernel of the training points as ntk() makes it"
        )
    curvature = torch.where(curvature > 1e-14 * curvature.abs().max(), curvature, 0.0).numpy()  # below is rounding
    start = modes.T @ (u0 - y).reshape(-1)
    path = torch.from_numpy(_mode_paths(rule, curvature, start.numpy(), times, t0))
    if cross is None:
        return y + (path @ modes.T).view(len(times), *u0.shape)
    return _elsewhere(cross, u0_cross, u0.shape, weight, curvature, modes, path - start, len(times))


def _elsewhere(cross, u0_cross, shape, weight, curvature, modes, moved, T) -> Tensor:
    """Other points are moved by the same forces: K H^+ times what the training outputs have moved."""
    if u0_cross is None:
        raise ValueError("cross= predicts other points, whose outputs at the start are needed too: pass u0_cross=")
    u0 = numbers("u0_cross", u0_cross)
    K = _matrix(cross, u0.shape, shape, "cross")
    lively = torch.from_numpy(curvature > 0)  # the gradient has nothing along the others
    force = moved[:, lively] / torch.from_numpy(curvature)[lively]
    return u0 + weight * (force @ (K @ modes[:, lively]).T).view(T, *u0.shape)


def _matrix(kernel: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], name: str) -> Tensor:
    kernel = numbers(name, kernel)
    expected = (rows[0], columns[0], *rows[1:], *columns[1:]) if rows and columns else ()
    if tuple(kernel.shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(kernel.shape)}, outputs of shapes {tuple(rows)} and {tuple(columns)} need "
            f"{expected}; ntk(..., output='full') or output=0 makes it"
        )
    if kernel.ndim == 4:
        kernel = kernel.transpose(1, 2).reshape(rows[0] * rows[1], columns[0] * columns[1])
    return kernel


def _check_rule(rule) -> None:
    if as_rule(rule).weight_decay:
        raise ValueError(
            f"{rule.name} has weight decay, which pulls at the parameters and not at the outputs alone; "
            "the kernel cannot tell what it does: use a rule without"
        )
    if not rule.is_euclidean:
        raise ValueError(f"{rule.name} has a metric, so its outputs move by another kernel than J J^T")


def _mode_paths(rule: LearningRule, curvature: np.ndarray, z0: np.ndarray, times: np.ndarray, t0: float) -> np.ndarray:
    """The residual in each eigenmode, ``(T, modes)``."""
    since = (times - t0)[:, None]
    if rule.massless:
        return z0 * np.exp(-curvature * since)
    w0 = np.zeros_like(z0)
    if rule.start is not None:  # linear in the gradient, so that it acts on outputs as on parameters
        w0 = rule.start(t0, torch.from_numpy(z0), torch.from_numpy(curvature * z0)).numpy()
    if rule.fixed_rates is not None:
        from_place, from_speed = _oscillation(*rule.equation(t0), curvature, since)
    elif rule.friction_over_t == 3:
        from_place, from_speed = _bessel(np.sqrt(curvature), times[:, None], t0)
    else:
        return _integrated(rule, curvature, z0, w0, times, t0)
    return from_place * z0 + from_speed * w0


def _oscillation(c1: float, c2: float, curvature: np.ndarray, since: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solutions of z'' + c1 z' + c2 curvature z = 0 that start with (z, z') = (1, 0) and (0, 1)."""
    a = c1 / 2
    square = c2 * curvature - a**2
    omega = np.sqrt(np.abs(square))
    angle = omega * since
    slow = -c2 * curvature / (a + omega) if c1 else 0.0 * curvature  # -a + omega without its cancellation
    decay = np.where(square >= 0, np.exp(-a * since), np.exp(slow * since))
    with np.errstate(invalid="ignore", divide="ignore"):
        creeping = np.where(omega > 0, -np.expm1(-2 * angle) / (2 * omega), since)
    sine = np.where(square >= 0, since * np.sinc(angle / np.pi), creeping)
    cosine = np.where(square >= 0, np.cos(angle), (1 + np.exp(-2 * angle)) / 2)
    return decay * (cosine + a * sine), decay * sine


def _bessel(s: np.ndarray, t: np.ndarray, t0: float) -> tuple[np.ndarray, np.ndarray]:
    """The same for z'' + (3/t) z' + s^2 z = 0; from t0 = 0 only (1, 0) is possible."""
    flat = s == 0
    x, x0 = (np.where(flat | (s * time == 0), 1.0, s * time) for time in (t, t0))
    if t0 == 0:
        return np.where(s * t == 0, 1.0, 2 * special.jv(1, x) / x), np.zeros_like(x)
    wronskian = 2 / (np.pi * x0**3)  # of J1(x)/x and Y1(x)/x, whose slopes are -J2(x)/x and -Y2(x)/x
    j, y, j0, y0 = (b(1, z) / z for z in (x, x0) for b in (special.jv, special.yv))
    j0_slope, y0_slope = (-b(2, x0) / x0 for b in (special.jv, special.yv))
    place = (j * y0_slope - y * j0_slope) / wronskian
    speed = (y * j0 - j * y0) / (wronskian * np.where(flat, 1.0, s))
    free = t0 / 2 * (1 - (t0 / t) ** 2)  # without curvature the start's velocity dies as t^-3
    return np.where(flat, 1.0, place), np.where(flat, free, speed)


def _integrated(rule, curvature, z0, w0, times, t0) -> np.ndarray:
    """Linearised training is the rule itself on a quadratic loss."""
    order = np.unique(times, return_inverse=True)
    quadratic = lambda z: 0.5 * (torch.from_numpy(curvature) * z) @ z  # noqa: E731
    after = order[0][order[0] > t0]
    rows = [np.broadcast_to(z0, (len(order[0]) - len(after), len(z0)))]
    if len(after):
        span = {"t_span": (t0, float(after[-1])), "t_eval": after, "rtol": 1e-11, "atol": 1e-13}
        rows.append(integrate(rule, quadratic, z0, w0, **span).q.numpy())
    return np.concatenate(rows)[order[1]]
