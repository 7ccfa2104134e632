"""Linearised training: what the tangent kernel predicts for any rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nlcompanion._arguments import finite_number, function, numbers, positive_number, real_array, real_number
from nlcompanion.dynamics.krylov import krylov_modes
from nlcompanion.dynamics.learning_rules import LearningRule, as_rule, gradient_flow
from nlcompanion.dynamics.modes import mode_paths

__all__ = ["linearized_dynamics"]


def linearized_dynamics(
    kernel: Tensor | Callable[[Tensor], Tensor],
    u0: Tensor,
    y: Tensor,
    t,
    rule: LearningRule | None = None,
    *,
    weight: float = 1.0,
    t0: float = 0.0,
    cross: Tensor | Callable[[Tensor], Tensor] | None = None,
    u0_cross: Tensor | None = None,
    tolerance: float = 1e-10,
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
        kernel: :math:`H` on the training points, ``(N, N)`` or ``(N, N, C, C)``; symmetric. Or the map
            :math:`r \mapsto Hr` on tensors of the shape of ``u0``, as :func:`~nlcompanion.ntk_product` makes it, for
            more points than a matrix has room for.
        u0: outputs of the training points at ``t0``, ``(N,)`` or ``(N, C)`` to match.
        y: targets, the same shape.
        t: times, shape ``(T,)``, none before ``t0``.
        rule: a learning rule without weight decay; gradient flow when None.
        weight: :math:`w` of the loss. 1 is GU's half sum of squares; ``mse_loss`` over ``N C`` numbers is
            ``2 / (N * C)``; half the mean over samples is ``1 / N``.
        t0: when training starts. Nesterov's flow may start at 0 here, its singularity is solved.
        cross: kernel between other points and the training points, ``(M, N)`` or ``(M, N, C, C)``; then the outputs of
            those points are returned, and ``u0_cross`` are their outputs at ``t0``. Or the map, as for ``kernel``.
        tolerance: where ``kernel`` is a map, the change of the residuals, over their size at the start, at which
            Lanczos's iteration ends. A matrix is decomposed once, and exactly.

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
    if y.shape != u0.shape or u0.ndim not in (1, 2):
        raise ValueError(f"u0 has shape {tuple(u0.shape)} and y {tuple(y.shape)}; both are (N,) or both (N, C)")
    if not (u0.isfinite().all() and y.isfinite().all()):
        raise ValueError("u0 or y holds a value that is not finite, so nothing is predicted; find where it is")
    weight, t0 = real_number("weight", weight), finite_number("t0", t0)
    tolerance = positive_number("tolerance", tolerance)
    if not (np.isfinite(weight) and weight > 0):
        raise ValueError(
            f"weight must be positive, got {weight}: the loss has no minimum; half the sum of squares has 1"
        )
    if cross is None and u0_cross is not None:
        raise ValueError("u0_cross= was given without cross=, the kernel that moves those points; pass both or neither")
    times = np.atleast_1d(real_array("t", t).numpy())
    if times.ndim != 1 or not times.size or not (np.isfinite(times) & (times >= t0)).all():
        raise ValueError(f"t must be times of shape (T,), none before t0 = {t0:g}")
    residual = (u0 - y).reshape(-1)

    def paths(curvature: Tensor, start: Tensor) -> Tensor:
        return torch.from_numpy(mode_paths(rule, _without_rounding(curvature, weight), start.numpy(), times, t0))

    if callable(kernel):
        function("kernel", kernel, "kernel(r) -> H r", 1)
        product = _weighted(kernel, u0.shape, weight)
        curvature, modes = krylov_modes(product, residual, paths, tolerance)
    else:
        H = _symmetric(_matrix(kernel, u0.shape, u0.shape, "kernel"))
        curvature, modes = torch.linalg.eigh(weight * H)
    start = modes.T @ residual
    path = paths(curvature, start)
    if cross is None:
        return y + (path @ modes.T).view(len(times), *u0.shape)
    return _elsewhere(cross, u0_cross, u0.shape, weight, curvature, modes, path - start, len(times))


def _without_rounding(curvature: Tensor, weight: float) -> np.ndarray:
    most = curvature.abs().max()
    if curvature.min() < -1e-5 * most:  # a kernel of float32 has some from rounding
        raise ValueError(
            f"the kernel has a negative eigenvalue, {curvature.min() / weight:.3g}, which no J Jᵀ has: its modes would "
            "grow; pass the kernel of the training points as ntk() or ntk_product() makes it"
        )
    return torch.where(curvature > 1e-14 * most, curvature, 0.0).numpy()  # below is rounding


def _symmetric(H: Tensor) -> Tensor:
    if not H.isfinite().all():
        raise ValueError("the kernel holds a value that is not finite, so nothing is predicted; find where it is")
    if not (H - H.T).abs().max() <= 1e-6 * H.abs().max():
        raise ValueError("the kernel is not symmetric, so it is not one of training points with themselves; see cross=")
    return (H + H.T) / 2


def _weighted(kernel: Callable, shape: torch.Size, weight: float) -> Callable[[Tensor], Tensor]:
    """The map on flat residuals, times the loss's weight."""

    def product(r: Tensor) -> Tensor:
        moved = numbers("kernel(r)", kernel(r.view(shape)))
        if moved.shape != shape:
            raise ValueError(
                f"kernel(r) has shape {tuple(moved.shape)} for residuals of shape {tuple(shape)}; a kernel of training "
                "points with themselves gives what it takes, as ntk_product(model, x) does"
            )
        if not moved.isfinite().all():
            raise ValueError("kernel(r) holds a value that is not finite, so nothing is predicted; find where it is")
        return weight * moved.reshape(-1)

    return product


def _elsewhere(cross, u0_cross, shape, weight, curvature: Tensor, modes: Tensor, moved: Tensor, T: int) -> Tensor:
    """Other points are moved by the same forces: K H^+ times what the training outputs have moved."""
    if u0_cross is None:
        raise ValueError("cross= predicts other points, whose outputs at the start are needed too: pass u0_cross=")
    u0 = numbers("u0_cross", u0_cross)
    lively = curvature > 1e-14 * curvature.abs().max()  # the gradient has nothing along the others
    force, directions = moved[:, lively] / curvature[lively], modes[:, lively]
    if callable(cross):
        function("cross", cross, "cross(r) -> K r", 1)
        images = [numbers("cross(r)", cross(mode.view(shape))).reshape(-1) for mode in directions.T]
        reached = torch.stack(images, dim=1)
        if len(reached) != u0.numel():
            raise ValueError(
                f"cross(r) gives {len(reached)} numbers and u0_cross holds {u0.numel()}; of the same points"
            )
    else:
        reached = _matrix(cross, u0.shape, shape, "cross") @ directions
    return u0 + weight * (force @ reached.T).view(T, *u0.shape)


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
