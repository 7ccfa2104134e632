"""Turning an image of 8 x 8 pixels exactly, by the finite cousin of the quantum oscillator (Atakishiyev and Wolf)."""

from __future__ import annotations

import math

import torch
from scipy.ndimage import rotate
from torch import Tensor

SIDE = 8
QUARTER = torch.arange(SIDE**2).view(SIDE, SIDE).rot90(-1).flatten()  # the pixels' places after a quarter turn


def oscillator_states(points: int = SIDE) -> Tensor:
    """The states of the finite oscillator, (points, points), the smooth ones first.

    Eigenvectors of an angular momentum matrix, with signs chosen so that the position couples neighbours positively.
    """
    spin = (points - 1) / 2
    m = torch.arange(points, dtype=torch.float64) - spin
    hop = ((spin + 1 + m[:-1]) * (spin - m[:-1])).sqrt() / 2
    states = torch.linalg.eigh(hop.diag(1) + hop.diag(-1))[1].flip(1)
    couplings = (states.T @ m.diag() @ states).diag(1)
    states[:, 1:] *= couplings.sign().cumprod(0)
    return states


def smooth_pictures(side: int = SIDE) -> tuple[Tensor, Tensor]:
    r"""The pictures with :math:`a + b < \mathrm{side}` quanta, (pixels, modes), and the generator of their rotation.

    Returns:
        Orthonormal columns, and a skew-symmetric matrix ``G`` whose exponential turns the modes' amplitudes.
    """
    quanta = [(a, b) for a in range(side) for b in range(side - a)]
    a, b = torch.tensor(quanta).T
    states = oscillator_states(side)
    pictures = torch.einsum("xn,yn->xyn", states[:, a], states[:, b]).flatten(0, 1)
    raises = (a[:, None] == a + 1) & (b[:, None] == b - 1)  # one quantum from y to x
    up = raises * ((a + 1) * b).double().sqrt()
    return pictures, up - up.T


def turned(amplitudes: Tensor, G: Tensor, angle: float) -> Tensor:
    """Amplitudes of pictures, (N, modes), turned by an angle."""
    return amplitudes @ torch.linalg.matrix_exp(angle * G).T


def interpolated(pixels: Tensor, angle: float) -> Tensor:
    """Images, (N, 64), turned as an image library does it: by bilinear interpolation."""
    images = pixels.view(-1, SIDE, SIDE).numpy()
    image = rotate(images, -math.degrees(angle), axes=(2, 1), reshape=False, order=1)
    return torch.from_numpy(image).flatten(1)


def equal_angles(n: int) -> list[float]:
    """n angles that share out a full turn."""
    return [math.tau * s / n for s in range(n)]


def share_along(moments: Tensor, G: Tensor, v: Tensor, q: Tensor) -> float:
    r"""The cosine between a first layer's velocity (or gradient) and its generator.

    .. math:: \frac{|\frac12\sum M \circ G|}{|V|\,|Q G|}, \qquad M = V^T Q - Q^T V

    Args:
        moments: M, (d, d).
        G: the generator.
        v, q: first-layer velocity and weights, (neurons, d).
    """
    return float((moments * G).sum().abs() / 2 / (v.norm() * (q @ G).norm()))
