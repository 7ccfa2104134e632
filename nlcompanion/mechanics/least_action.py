r"""The action of a path in steps of time, and the path that makes it stationary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigvals_banded, solve_banded
from scipy.optimize import minimize
from scipy.sparse import dia_array
from torch import Tensor
from torch.func import grad, hessian, vmap

from nlcompanion._arguments import as_point, as_tensor, choice, flag, integer, known, ordered, real_array, time_span
from nlcompanion.mechanics.lagrangian import Lagrangian, scalar_lagrangian

__all__ = ["StationaryPath", "discrete_action", "stationary_path", "variational_derivative"]

_MOST_SEGMENTS = 10_000_000


def discrete_action(L: Lagrangian, t: Tensor, q: Tensor, *, midpoint: bool = False) -> Tensor:
    r"""The action of the broken line through ``q[0], ..., q[N]`` at evenly spaced times.

    .. math:: J = \sum_{i=0}^{N-1} L\!\left(t_i, x_i, \frac{x_{i+1} - x_i}{\Delta}\right) \Delta

    Evaluated in one batch, so ``L`` must not branch on values. Differentiable by ``q``.

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``.
        t: times of shape ``(N + 1,)``, evenly spaced.
        q: nodes of shape ``(N + 1, n)``.
        midpoint: evaluate ``L`` at the middle of each piece instead of its left end.

    Returns:
        A scalar tensor; converges to :func:`action` with order 1 in the spacing, with order 2 at midpoints.

    Source: GU Eq. 8.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 1, 5).double()
        >>> discrete_action(lambda t, q, v: 0.5 * v @ v, t, t[:, None] * 2).item()
        2.0
    """
    t, q, delta = _broken_line(t, q)
    flag("midpoint", midpoint)
    v = (q[1:] - q[:-1]) / delta
    at = ((t[1:] + t[:-1]) / 2, (q[1:] + q[:-1]) / 2) if midpoint else (t[:-1], q[:-1])
    return vmap(scalar_lagrangian(L))(*at, v).sum() * delta


def variational_derivative(L: Lagrangian, t: Tensor, q: Tensor) -> Tensor:
    r"""The gradient of the discretised action per node and per unit of area.

    .. math:: \frac{1}{\Delta}\frac{\partial J}{\partial x_k} \longrightarrow
              \frac{\partial L}{\partial q} - \frac{d}{dt}\frac{\partial L}{\partial v}

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``, free of branches on values.
        t: times of shape ``(N + 1,)``, evenly spaced.
        q: nodes of shape ``(N + 1, n)``; the two ends are held fixed.

    Returns:
        Shape ``(N - 1, n)``, one row per inner node, in units of the Lagrangian over a length. The limit is reached
        with order 1 in the spacing, and it is the negative of :func:`euler_lagrange`.

    Source: GU Eq. 9; its limit is GU Eq. 5.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 1, 5).double()
        >>> free = variational_derivative(lambda t, q, v: 0.5 * v @ v, t, t[:, None] * 2)
        >>> bool(free.abs().max() < 1e-14)
        True
    """
    t, q, delta = _broken_line(t, q)
    return grad(lambda x: discrete_action(L, t, x))(q)[1:-1] / delta


@dataclass(frozen=True)
class StationaryPath:
    """A path at which the discretised action does not change to first order.

    Attributes:
        t: times, shape ``(N + 1,)``.
        q: nodes, shape ``(N + 1, n)``, the ends as given.
        action: the discretised action there.
        index: how many independent deformations lower the action (Morse index); 0 for a minimum.
    """

    t: Tensor
    q: Tensor
    action: float
    index: int


def stationary_path(
    L: Lagrangian,
    q0,
    q1,
    t_span: tuple[float, float],
    *,
    segments: int = 100,
    method: str = "newton",
    guess: Tensor | None = None,
    max_iter: int = 100,
) -> StationaryPath:
    r"""The path between two points that makes the discretised action stationary.

    The sum is the midpoint one, order 2 in the spacing where GU Eq. 8 has order 1:

    .. math:: \sum_i L\!\left(t_{i+1/2}, \tfrac{x_i + x_{i+1}}{2}, \tfrac{x_{i+1}-x_i}{\Delta}\right)\Delta

    Args:
        L: Lagrangian ``L(t, q, v) -> scalar``, twice differentiable, free of branches on values.
        q0, q1: the fixed ends, array-like of shape ``(n,)``.
        t_span: ``(t0, t1)`` with ``t0 < t1``.
        segments: number of straight pieces.
        method: ``"newton"`` solves for a vanishing gradient and finds any stationary path, minimum or not;
            ``"minimize"`` descends on the action (SciPy's Newton-CG) and finds minima only.
        guess: nodes of shape ``(segments + 1, n)`` to start from; the straight line by default.
        max_iter: iterations allowed.

    Returns:
        A :class:`StationaryPath`; its ``index`` tells a minimum (0) from a saddle.

    Raises:
        ValueError: wrong shapes or an unknown method.
        RuntimeError: no stationary path was reached; with ``"minimize"`` this is what happens beyond the first
            conjugate point, where the action has no minimum.

    Source: GU Section 2.1; TK, supplement A. Least action is least only up to the first conjugate point.

    Example:
        >>> oscillator = lambda t, q, v: 0.5 * v @ v - 0.5 * q @ q
        >>> stationary_path(oscillator, [0.0], [1.0], (0.0, 2.0)).index   # shorter than half a period
        0
        >>> stationary_path(oscillator, [0.0], [1.0], (0.0, 4.0)).index   # longer
        1
    """
    t0, t1 = time_span(t_span)
    a, b = as_point("q0", q0), as_point("q1", q1)
    if a.shape != b.shape:
        raise ValueError(f"q0 has {len(a)} components and q1 has {len(b)}; both ends live in one space")
    if integer("segments", segments, 1, _MOST_SEGMENTS) < 2:
        raise ValueError(f"segments = {segments} leaves no inner node to vary; use 2 or more")
    integer("max_iter", max_iter, 1, 10**9)
    choice("method", method, "newton", "minimize")
    t = torch.linspace(t0, t1, segments + 1, dtype=torch.float64)
    straight = a + (b - a) * torch.linspace(0, 1, segments + 1).double()[:, None]
    x = straight if guess is None else real_array("guess", guess)
    if not torch.isfinite(x).all():
        raise ValueError("guess holds NaN or infinity; start from a path")
    if x.shape != (segments + 1, len(a)):
        raise ValueError(f"guess has shape {tuple(x.shape)}, expected {(segments + 1, len(a))}")
    problem = _MidpointAction(L, t, a, b)
    inner = x[1:-1].reshape(-1).numpy().copy()
    inner = (_newton if method == "newton" else _descend)(problem, inner, max_iter)
    bands = problem.hessian_bands(inner)
    negative = eigvals_banded(bands[: problem.width + 1], select="v", select_range=(-np.inf, 0.0))
    return StationaryPath(t, problem.nodes(inner), problem.value(inner), len(negative))


class _MidpointAction:
    """The midpoint action of the inner nodes, with gradient and banded Hessian as NumPy arrays."""

    def __init__(self, L: Lagrangian, t: Tensor, a: Tensor, b: Tensor):
        self.a, self.b, self.n = a, b, len(a)
        self._at: np.ndarray | None = None
        self._matrix: Any = None
        self.width = 2 * self.n - 1  # a node couples to its neighbours only
        delta = (t[1] - t[0]).item()
        middle = (t[1:] + t[:-1]) / 2

        def piece(t, x, y):
            return scalar_lagrangian(L)(t, (x + y) / 2, (y - x) / delta) * delta

        self._pieces = lambda x: vmap(piece)(middle, x[:-1], x[1:])
        self._blocks = lambda x: vmap(hessian(lambda t, z: piece(t, z[: self.n], z[self.n :]), argnums=1))(
            middle, torch.cat([x[:-1], x[1:]], dim=1)
        )

    def nodes(self, inner: np.ndarray) -> Tensor:
        return torch.cat([self.a[None], torch.from_numpy(inner).view(-1, self.n), self.b[None]])

    def value(self, inner: np.ndarray) -> float:
        return self._pieces(self.nodes(inner)).sum().item()

    def gradient(self, inner: np.ndarray) -> np.ndarray:
        return grad(lambda x: self._pieces(x).sum())(self.nodes(inner))[1:-1].reshape(-1).numpy()

    def hessian_bands(self, inner: np.ndarray) -> np.ndarray:
        """Upper form of SciPy's banded storage followed by the lower bands, as ``solve_banded`` wants."""
        n, size, width = self.n, len(inner), self.width
        blocks = self._blocks(self.nodes(inner)).numpy()
        bands = np.zeros((2 * width + 1, size))
        first = (np.arange(len(blocks)) - 1) * n  # row of each piece's left node among the inner nodes
        for r in range(2 * n):
            for c in range(2 * n):
                row, col = first + r, first + c
                inside = (np.minimum(row, col) >= 0) & (np.maximum(row, col) < size)
                np.add.at(bands, (width + row[inside] - col[inside], col[inside]), blocks[inside, r, c])
        return bands

    def hessian_times(self, inner: np.ndarray, p: np.ndarray) -> np.ndarray:
        if self._at is None or not np.array_equal(self._at, inner):  # one Hessian serves a whole inner CG run
            offsets = np.arange(self.width, -self.width - 1, -1)
            shape = (len(inner), len(inner))
            self._at, self._matrix = inner.copy(), dia_array((self.hessian_bands(inner), offsets), shape=shape)
        return self._matrix @ p


def _newton(problem: _MidpointAction, x: np.ndarray, max_iter: int) -> np.ndarray:
    for _ in range(max_iter):
        g = problem.gradient(x)
        step = solve_banded((problem.width, problem.width), problem.hessian_bands(x), -g)
        size = np.linalg.norm(step) / (1 + np.linalg.norm(x))
        if size <= 1e-13:
            return x + step
        scale, norm = 1.0, np.linalg.norm(g)
        # halve until the gradient shrinks: plain Newton overshoots on anharmonic potentials
        while scale > 1e-4 and not np.linalg.norm(problem.gradient(x + scale * step)) < norm:
            scale /= 2
        if scale <= 1e-4:
            if size <= 1e-9:  # nothing left but rounding
                return x
            break
        x = x + scale * step
    raise RuntimeError(
        f"no stationary path found: the gradient of the action is still {np.abs(problem.gradient(x)).max():.2g}; "
        "give a better guess, shorten t_span, or raise max_iter"
    )


def _descend(problem: _MidpointAction, x: np.ndarray, max_iter: int) -> np.ndarray:
    found = minimize(
        problem.value,
        x,
        jac=problem.gradient,
        hessp=problem.hessian_times,
        method="Newton-CG",
        options={"xtol": 1e-13, "maxiter": max_iter},
    )
    slope = np.abs(problem.gradient(found.x)).max() if np.isfinite(found.x).all() else np.inf
    if not np.isfinite(found.fun) or slope > 1e-8 * (1 + np.abs(found.x).max()):
        raise RuntimeError(
            f"the action has no minimum within reach: after {found.nit} iterations it is {found.fun:.3g} and "
            "still falling; beyond a conjugate point the motion is a saddle: use method='newton'"
        )
    return found.x


def _broken_line(t: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Times, nodes and the spacing in time."""
    t, q = as_tensor("t", ordered("t", t, "times of shape (N + 1,)")), as_tensor("q", ordered("q", q, "nodes"))
    if t.ndim != 1 or q.ndim != 2 or len(t) != len(q) or len(t) < 3:
        raise ValueError(
            f"t has shape {tuple(t.shape)} and q {tuple(q.shape)}; a broken line needs t of shape (N + 1,) and "
            "q of shape (N + 1, n) with N >= 2"
        )
    if known(~(torch.isfinite(t).all() & torch.isfinite(q).all())):
        raise ValueError("t or q holds NaN or infinity; a path has no action there")
    delta = t[1:] - t[:-1]
    if not torch.allclose(delta, delta[0].expand_as(delta), rtol=1e-9, atol=0.0):
        raise ValueError(
            "the times t are not evenly spaced, to 1e-9 of the spacing; make them with torch.linspace(t0, t1, N + 1, "
            "dtype=torch.float64), since .double() comes too late"
        )
    return t, q, delta[0]
