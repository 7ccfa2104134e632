"""Walks and orbits of one-parameter groups, and Gauss's nodes for integrals along motions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["even_steps", "gauss_times", "orbit", "starts_of_orbits"]


def even_steps(A: Tensor, n: int) -> Tensor:
    r"""Many small steps that look forward and backward evenly, an approximation of :math:`e^A` with order 2 in 1/n.

    .. math:: \Bigl[\bigl(1 - \tfrac{A}{2n}\bigr)^{-1}\bigl(1 + \tfrac{A}{2n}\bigr)\Bigr]^n

    For an antisymmetric ``A`` each step is a rotation.

    Example:
        >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
        >>> steps = even_steps(turn, 3)
        >>> torch.allclose(steps @ steps.T, torch.eye(2).double())
        True
    """
    one = torch.eye(len(A), dtype=A.dtype)
    step = torch.linalg.solve(one - A / (2 * n), one + A / (2 * n))
    return torch.linalg.matrix_power(step, n)


def orbit(A: Tensor, q: Tensor, start: float, end: float, points: int = 121) -> Tensor:
    r"""The points :math:`e^{sA} q` for ``s`` from ``start`` to ``end``, shape ``(points, n)``."""
    s = torch.linspace(start, end, points, dtype=A.dtype)
    return torch.linalg.matrix_exp(s[:, None, None] * A) @ q


def starts_of_orbits(kind: str) -> list[Tensor]:
    """Points in the plane from which the orbits of a kind of group are drawn.

    Args:
        kind: ``"rotation"``, ``"scale"``, ``"rescale"`` or ``"shear"``.
    """

    def circle(radius, count, first=0.0):
        angles = first + torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count
        return list(radius * torch.stack([angles.cos(), angles.sin()], dim=1))

    if kind == "rotation":
        return [torch.tensor([radius, 0.0], dtype=torch.float64) for radius in (0.4, 0.8, 1.2, 1.6)]
    if kind == "scale":
        return circle(0.05, 12)
    if kind == "rescale":  # two branches of hyperbolas in either direction
        return [point for radius in (0.35, 0.7, 1.05) for point in circle(radius, 4, torch.pi / 4)]
    if kind == "shear":
        heights = [sign * height for height in (0.0, 0.5, 1.0, 1.5) for sign in (1, -1)]
        return [torch.tensor([0.0, height], dtype=torch.float64) for height in heights]
    raise ValueError(f"kind must be 'rotation', 'scale', 'rescale' or 'shear', got {kind!r}")


def gauss_times(start: float, end: float, nodes: int = 48) -> tuple[Tensor, Tensor]:
    """Times at which to record a motion, and weights for Gauss's rule over them.

    Returns:
        ``(nodes + 2,)`` increasing times, the two ends included, and the ``(nodes,)`` weights of the inner ones.

    Example:
        >>> t, weights = gauss_times(0.0, 2.0)
        >>> round(float(weights @ t[1:-1] ** 3), 12)
        4.0
    """
    x, w = (torch.from_numpy(z) for z in np.polynomial.legendre.leggauss(nodes))
    half = (end - start) / 2
    inner = (start + end) / 2 + half * x
    ends = torch.tensor([start, end], dtype=torch.float64)
    return torch.cat([ends[:1], inner, ends[1:]]), half * w
