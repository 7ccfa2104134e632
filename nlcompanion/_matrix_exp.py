"""The exponential of a matrix (private), to full precision at every norm."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_exp(A: Tensor) -> Tensor:
    """``exp(A)`` of one square matrix, differentiable; ``torch.linalg.matrix_exp`` of two equal ones.

    For a single matrix of small norm (below 0.05 in float64, 0.6 in float32) PyTorch takes a polynomial of degree 8
    with a wrong coefficient, up to 2.14 at least: off by 3e-10 and 2e-5 (pytorch issue 196592). Of several matrices at
    a time it takes another way, which is right.
    """
    return torch.linalg.matrix_exp(torch.stack([A, A]))[0]
