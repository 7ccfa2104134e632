r"""Lanczos's iteration: what a symmetric map makes of one vector, without its matrix.

All that linear dynamics makes of a residual :math:`r` lies in the span of :math:`r, Hr, H^2 r, \ldots`. Lanczos's
iteration gives that span an orthonormal basis in which :math:`H` is tridiagonal; a few modes of the small matrix stand
for the large one's as soon as the motion that they predict has settled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FIRST, _GROWTH = 8, 1.4  # sizes at which the prediction is looked at


def krylov_modes(
    product: Callable[[Tensor], Tensor],
    residual: Tensor,
    paths: Callable[[Tensor, Tensor], Tensor],
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Curvatures ``(m,)`` and modes ``(n, m)`` of a symmetric map that carry the motion of one residual.

    Args:
        product: the map, of shape ``(n,)`` to ``(n,)``.
        residual: where the motion starts, ``(n,)``.
        paths: ``paths(curvature, start) -> (T, m)``, the motion in modes that start at ``start``.
        tolerance: the change in the motion between two looks, over the residual's size, that counts as none.
    """
    size = residual.norm()
    if size == 0:
        return torch.zeros(1, dtype=residual.dtype), torch.zeros(len(residual), 1, dtype=residual.dtype)
    basis = [residual / size]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    look = _FIRST
    before: Tensor | None = None
    while True:
        image = product(basis[-1])
        if len(basis) == 1:
            _check_symmetric(product, basis[0], image)
        diagonal.append(image @ basis[-1])
        rest = image
        for _ in range(2):  # against all before, and once more for what rounding left
            span = torch.stack(basis, dim=1)
            rest = rest - span @ (span.T @ rest)
        scale = max(abs(x) for x in diagonal + beside)
        closed = rest.norm() <= 1e-13 * scale or len(basis) == len(residual)  # the span holds its own image
        if closed or len(basis) >= look:
            curvature, turned = torch.linalg.eigh(_tridiagonal(diagonal, beside))
            now = paths(curvature, size * turned[0]) @ turned.T  # in the basis, whose first vectors stay
            if closed or (before is not None and _change(before, now) <= tolerance * size):
                return curvature, torch.stack(basis, dim=1) @ turned
            look = round(_GROWTH * look)
            before = now
        beside.append(rest.norm())
        basis.append(rest / rest.norm())


def _tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    matrix = torch.diag(torch.stack(diagonal))
    if len(diagonal) > 1:
        steps = torch.stack(beside[: len(diagonal) - 1])
        matrix = matrix + torch.diag(steps, 1) + torch.diag(steps, -1)
    return matrix


def _change(before: Tensor, now: Tensor) -> Tensor:
    """The largest over the times, ``(T, m)`` in a basis that has grown."""
    m = before.shape[1]
    return torch.cat([now[:, :m] - before, now[:, m:]], dim=1).norm(dim=1).max()


def _check_symmetric(product: Callable[[Tensor], Tensor], x: Tensor, image: Tensor) -> None:
    y = torch.randn(len(x), generator=torch.Generator().manual_seed(104729), dtype=x.dtype)  # along no start of a test
    other = product(y)
    if not abs(image @ y - x @ other) <= 1e-6 * max(image.norm() * y.norm(), other.norm()):
        raise ValueError("the kernel is not symmetric, so it is not one of training points with themselves; see cross=")
