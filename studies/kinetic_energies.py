r"""Bregman kinetic energies by other roads than the package's, and the metrics that they are tried on.

Everywhere ``mass`` is :math:`e^{-\alpha}`, and :math:`d = e^{-\alpha} v` is the step that opens the gap.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian

__all__ = ["energy_by_integral", "energy_of_swapped_arguments", "gradient_inverse", "power", "quadratic_energy"]

Metric = Callable[[Tensor], Tensor]


def power(p: float) -> Metric:
    r"""The convex function :math:`h_p` on positive ``q`` whose second derivative is :math:`q^{p-2}` in every component.

    It is :math:`\tfrac{1}{p(p-1)}\sum q^p`, the entropy :math:`\sum q\log q` for ``p = 1`` and Burg's
    :math:`-\sum\log q` for ``p = 0``.

    Example:
        >>> power(2)(torch.tensor([2.0, 4.0])).item()
        10.0
    """

    def h(q):
        if p == 0:
            return -q.log().sum()
        if p == 1:
            return (q * q.log()).sum()
        return (q**p).sum() / (p * (p - 1))

    return h


def gradient_inverse(p: float) -> Callable[[Tensor], Tensor]:
    r"""The inverse of :math:`\nabla h_p`, see :func:`power`.

    Example:
        >>> q = torch.tensor([0.5, 3.0]).double()
        >>> all(gradient_inverse(p)(grad(power(p))(q)).allclose(q) for p in (0, 1, 2, 4))
        True
    """

    def inverse(momentum):
        if p == 1:
            return torch.exp(momentum - 1)
        return ((p - 1) * momentum) ** (1 / (p - 1))

    return inverse


def energy_by_integral(h: Metric, q: Tensor, v: Tensor, mass: float) -> Tensor:
    r"""The Bregman kinetic energy as an integral over the metric on the way.

    .. math:: T_h = e^{\alpha} \int_0^1 (1 - x)\, \langle d, \nabla^2 h(q + x\,d)\, d\rangle\, dx

    by Gauss's rule with 60 nodes, for a smooth ``h``.
    """
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(60))
    d, total = mass * v, torch.zeros((), dtype=q.dtype)
    for x, w in zip((1 + nodes) / 2, weights / 2, strict=True):
        total = total + w * (1 - x) * d @ hessian(h)(q + x * d) @ d
    return total / mass


def quadratic_energy(h: Metric, q: Tensor, v: Tensor, mass: float, *, ahead: float = 0.0) -> Tensor:
    r"""The quadratic form of TK Eq. 7, :math:`\tfrac12 e^{-\alpha}\langle v, \nabla^2 h\, v\rangle`.

    Args:
        ahead: the metric is taken at ``q + ahead * d``; the paper's place is 0.
    """
    return 0.5 * mass * v @ hessian(h)(q + ahead * mass * v) @ v


def energy_of_swapped_arguments(h: Metric, q: Tensor, v: Tensor, mass: float) -> Tensor:
    r"""What would be the energy if the divergence were symmetric: :math:`e^{\alpha} D_h(q,\, q + d)`."""
    end = q + mass * v
    return (h(q) - h(end) + grad(h)(end) @ (mass * v)) / mass
