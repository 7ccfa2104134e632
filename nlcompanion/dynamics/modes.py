"""A rule's motion on a quadratic loss, mode by mode."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special

from nlcompanion.dynamics.flows import integrate
from nlcompanion.dynamics.learning_rules import LearningRule


def mode_paths(rule: LearningRule, curvature: np.ndarray, z0: np.ndarray, times: np.ndarray, t0: float) -> np.ndarray:
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
