"""Whole groups: Lie algebras of actions, with their brackets and structure constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nlcompanion._arguments import as_tensor, function, instance, integer, known, numbers, ordered
from nlcompanion.symmetries.actions import Symmetry, linear_action, rotation

__all__ = ["LieAlgebra", "gl", "so"]

_LARGEST = 128  # the basis of gl(d) holds d^4 numbers

# --- whole groups -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LieAlgebra:
    r"""A Lie algebra of matrices by a basis, and how each of its elements acts on parameters.

    Iterating gives the symmetries of the basis; make one with :func:`so` or :func:`gl`, or from any basis.

    Attributes:
        basis: shape ``(m, d, d)``, linearly independent (dimensionless).
        action: ``A -> Symmetry``, linear in ``A`` at first order: :func:`linear_action`,
            ``lambda A: linear_pair(first, second, A)``, ...
        name: what tables call it.

    Raises:
        ValueError: if the basis is not made of ``m`` independent square matrices of one size.

    Source: GU Appendix A and Appendix B.

    Example:
        >>> import torch
        >>> algebra = LieAlgebra([[[0.0, -1.0], [1.0, 0.0]]])
        >>> len(algebra), [round(x, 6) for x in algebra[0](torch.tensor([1.0, 0.0]), 0.5).tolist()]
        (1, [0.877583, 0.479426])
    """

    basis: Tensor
    action: Callable[[Tensor], Symmetry] = linear_action
    name: str = "Lie algebra"

    def __post_init__(self) -> None:
        function("action", self.action, "action(A) -> Symmetry", 1)
        instance("name", self.name, str, '"so(3)"')
        basis = as_tensor("basis", ordered("basis", self.basis, "matrices of one size in a list or a tensor")).double()
        if not torch.isfinite(basis).all():
            raise ValueError("basis holds NaN or infinity; an action needs finite numbers")
        if basis.ndim != 3 or basis.shape[1] != basis.shape[2] or not len(basis):
            raise ValueError(f"a basis has shape (m, d, d) with m > 0, got {tuple(basis.shape)}")
        rank = int(torch.linalg.matrix_rank(basis.flatten(1)))
        if rank < len(basis):
            raise ValueError(f"the basis has {len(basis)} matrices but only {rank} independent ones; drop the others")
        object.__setattr__(self, "basis", basis)
        self._acting(basis[0])

    def __len__(self) -> int:
        return len(self.basis)

    def __getitem__(self, index: int) -> Symmetry:
        return self._acting(self.basis[index])

    def __iter__(self) -> Iterator[Symmetry]:
        return (self._acting(A) for A in self.basis)

    def _acting(self, A: Tensor) -> Symmetry:
        return instance("what action(A) returns", self.action(A), Symmetry, "linear_action(A)")

    def element(self, coefficients) -> Symmetry:
        r"""The symmetry of :math:`\sum_i c_i A_i`, with ``coefficients`` of shape ``(m,)``."""
        c = numbers("coefficients", coefficients)
        if c.shape != (len(self),):
            raise ValueError(f"{self.name} needs {len(self)} coefficients, got shape {tuple(c.shape)}")
        return self._acting(torch.einsum("m,mij->ij", c, self.basis))

    def pack(self, values: Tensor) -> Tensor:
        r"""One number per element of the basis, as the matrix :math:`X` with :math:`\mathrm{tr}(X A) =` its value.

        All of GL(d) determines :math:`X` (GU Lemma 3). Skew-symmetric elements leave its symmetric part open (GU
        Lemma 4): then the result is :math:`X - X^T`, for a point the matrix of its angular momenta. In between, it is
        the :math:`X` in the span of the transposed basis.

        Args:
            values: shape ``(m,)``, or ``(T, m)`` along a trajectory.

        Returns:
            Shape ``(d, d)`` or ``(T, d, d)``, in the units of the values.

        Source: GU Lemmas 3 and 4, Eqs. 41 and 47.

        Example:
            >>> import torch
            >>> from nlcompanion import so
            >>> so(2).pack(torch.tensor([3.0])).tolist()
            [[0.0, -3.0], [3.0, 0.0]]
        """
        values = as_tensor("values", values).double()
        if known(~torch.isfinite(values).all()):
            raise ValueError("values hold NaN or infinity, which no matrix has; cut the run where it diverged")
        if values.shape[-1:] != (len(self),):
            raise ValueError(f"{self.name} has {len(self)} elements, got values of shape {tuple(values.shape)}")
        flat = self.basis.flatten(1)
        c = torch.linalg.solve(flat @ flat.T, values.unsqueeze(-1)).squeeze(-1)
        X = torch.einsum("...m,mij->...ji", c, self.basis)
        return X - X.mT if torch.equal(self.basis, -self.basis.mT) else X


def so(d: int, action: Callable[[Tensor], Symmetry] | None = None) -> LieAlgebra:
    r"""The skew-symmetric matrices of size ``d``: the infinitesimal rotations, one for each pair of axes.

    Args:
        d: dimension, 2 or more. The basis element of axes ``i < j`` has 1 at ``[i, j]`` and -1 at ``[j, i]`` (GU's
            choice); elements are ordered (0, 1), (0, 2), ..., (d-2, d-1).
        action: ``A -> Symmetry``; :func:`rotation` of the whole ``q`` when None.

    Source: GU Example 9, Lemma 4 and Appendix B.3.

    Example:
        >>> len(so(4)), so(2).basis[0].tolist()
        (6, [[0.0, 1.0], [-1.0, 0.0]])
    """
    if integer("d", d, 1, _LARGEST) < 2:
        raise ValueError(f"so(d) needs a dimension d >= 2, got {d}; a line has no rotations")
    i, j = torch.triu_indices(d, d, offset=1)
    basis = torch.zeros(len(i), d, d, dtype=torch.float64)
    rows = torch.arange(len(i))
    basis[rows, i, j], basis[rows, j, i] = 1.0, -1.0
    return LieAlgebra(basis, rotation if action is None else action, f"so({d})")


def gl(d: int, action: Callable[[Tensor], Symmetry] | None = None) -> LieAlgebra:
    r"""All matrices of size ``d``, with the elementary ones as a basis.

    Args:
        d: dimension, 1 or more. Element ``d * i + j`` has a single 1, at ``[i, j]``.
        action: ``A -> Symmetry``; :func:`linear_action` on the whole ``q`` when None. For the ``d`` neurons between
            two linear layers, ``lambda A: linear_pair(first, second, A)``.

    Source: GU Lemma 3 and Appendix B.2.

    Example:
        >>> len(gl(3)), gl(2).basis[1].tolist()
        (9, [[0.0, 1.0], [0.0, 0.0]])
    """
    integer("d", d, 1, _LARGEST)
    basis = torch.eye(d * d, dtype=torch.float64).view(d * d, d, d)
    return LieAlgebra(basis, linear_action if action is None else action, f"gl({d})")
