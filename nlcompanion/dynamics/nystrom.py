r"""DOP853 for equations of second order, in Nyström's form.

For :math:`\ddot q = a(t, q, v)` the slopes of :math:`q` at the stages of a Runge-Kutta step are the velocities there,
which are sums of accelerations already. With :math:`A` the method's coefficients and :math:`k_j` the accelerations,

.. math:: v_i = v + h \sum_j A_{ij} k_j, \qquad q_i = q + h c_i v + h^2 \sum_j (A^2)_{ij} k_j ,

so that the stages of :math:`q` need neither memory nor passes over it. Points, steps and errors are those of SciPy's
DOP853 on the pair :math:`(q, v)`, up to rounding; what is saved is traffic, where a state is larger than a cache.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from scipy.integrate import DOP853

from nlcompanion.dynamics.equations import Particle

_BLOCK = 8192  # columns that are summed at a time: thirteen stages of them stay in a cache
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 10.0  # of the next step over this one, SciPy's own


class NystromDOP853(DOP853):
    """SciPy's solver with another way to form its sums; takes a :class:`Particle` as the right-hand side."""

    # set by SciPy, which declares no types
    t: float
    h_abs: float
    y: ndarray

    _STAGES = np.stack([DOP853.A, DOP853.A @ DOP853.A], axis=1)  # (12, 2, 12): of v and of q
    _END = np.stack([DOP853.B, DOP853.B @ DOP853.A])
    _ALL = np.pad(np.concatenate([DOP853.A, DOP853.B[None]]), ((0, 0), (0, 1)))  # the end is a stage too
    _ERRORS = np.stack([DOP853.E5, DOP853.E5 @ _ALL, DOP853.E3, DOP853.E3 @ _ALL])

    def __init__(self, fun: Particle, t0: float, y0: ndarray, t_bound: float, **options):
        super().__init__(fun, t0, y0, t_bound, **options)
        self.particle, self.half = fun, self.n // 2
        self.blocks = [slice(i, min(i + _BLOCK, self.half)) for i in range(0, self.half, _BLOCK)]

    def _step_impl(self) -> tuple[bool, str | None]:
        least = 10 * abs(np.nextafter(self.t, self.direction * np.inf) - self.t)
        h_abs = min(max(self.h_abs, least), self.max_step)
        rejected = False
        while True:
            if h_abs < least:
                return False, self.TOO_SMALL_STEP
            t_new = self.t + h_abs * self.direction
            if self.direction * (t_new - self.t_bound) > 0:
                t_new = self.t_bound
            h = t_new - self.t
            y_new, end = self._attempt(h, t_new)
            error = self._error_norm_of(h, y_new)
            if error < 1:
                break
            h_abs = abs(h) * max(_LEAST, _SAFETY * error**self.error_exponent)
            rejected = True
        factor = _MOST if error == 0 else min(_MOST, _SAFETY * error**self.error_exponent)
        self.h_abs = abs(h) * (min(1.0, factor) if rejected else factor)
        self.h_previous, self.y_old = h, self.y
        self.t, self.y = t_new, y_new
        self.f = np.concatenate([y_new[self.half :], end])
        return True, None

    def _attempt(self, h: float, t_new: float) -> tuple[ndarray, ndarray]:
        """The state after a step, and the acceleration there."""
        K = self.K[:, self.half :]  # the slopes of q stay unwritten
        K[0] = self.f[self.half :]
        stage = np.empty_like(self.y)
        for s in range(1, self.n_stages):
            self._move(stage, h, self.C[s], self._STAGES[s, :, :s])
            K[s] = self._accelerate(self.t + self.C[s] * h, stage)
        self._move(stage, h, 1.0, self._END)
        K[-1] = self._accelerate(t_new, stage)
        return stage, K[-1]

    def _accelerate(self, t: float, y: ndarray) -> ndarray:
        self.nfev += 1
        return self.particle.acceleration(t, y)

    def _move(self, out: ndarray, h: float, c: float, shares: ndarray) -> None:
        """``v + h (shares[0] K)`` and ``q + h c v + h^2 (shares[1] K)``, for as many stages as there are shares."""
        n, stages = self.half, shares.shape[1]
        weights = shares * np.array([[h], [h * h]])
        for block in self.blocks:
            beyond = slice(n + block.start, n + block.stop)
            sums = weights @ self.K[:stages, beyond]
            v = self.y[beyond]
            np.add(v, sums[0], out=out[beyond])
            q = np.multiply(v, h * c, out=out[block])
            q += self.y[block]
            q += sums[1]

    def _error_norm_of(self, h: float, y_new: ndarray) -> float:
        """SciPy's, of the fifth-order error corrected by the third-order one; relative to what is tolerated."""
        n, squares = self.half, np.zeros(2)
        weights = self._ERRORS * np.array([[1], [h], [1], [h]])
        for block in self.blocks:
            beyond = slice(n + block.start, n + block.stop)
            errors = weights @ self.K[:, beyond]
            for part, (fifth, third) in ((beyond, errors[::2]), (block, errors[1::2])):
                scale = self.atol + self.rtol * np.maximum(np.abs(self.y[part]), np.abs(y_new[part]))
                fifth /= scale
                third /= scale
                squares += fifth @ fifth, third @ third
        fifth, third = squares
        return 0.0 if fifth == 0 and third == 0 else float(abs(h) * fifth / np.sqrt((fifth + 0.01 * third) * self.n))

    def _dense_output_impl(self):
        """SciPy's own needs the slopes of q as well; they are formed where it is asked for, once a step."""
        n = self.half
        np.matmul(self.h_previous * self._ALL, self.K[:, n:], out=self.K[:, :n])
        self.K[:, :n] += self.y_old[n:]
        return super()._dense_output_impl()
