r"""One-parameter actions ``Q(q, s)`` on parameters, and what they do to a loss and to a learning rule.

A :class:`Symmetry` is a function, the identity at :math:`s = 0`. Its generator is the derivative there,

.. math:: \xi(q) = \frac{\partial Q}{\partial s}\Big|_{s=0},

always taken by differentiating the action, never from a second formula. Composed with :func:`nlcompanion.lift`, an
action moves velocities too: :func:`kinetic_symmetry_breaking` is the derivative of the kinetic energy along that, and
the Noether charge and its law (:mod:`nlcompanion.noether`) come out of the same composition.

Functions of ``(t, q, v)`` here take one point, ``t`` a number and ``q``, ``v`` of shape ``(n,)``, or a whole
trajectory, ``t`` of shape ``(T,)`` and ``q``, ``v`` of shape ``(T, n)``: ``run.t, run.q, run.v`` of ``integrate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from nlcompanion._matrices import matrix_exp
from nlcompanion.flows import LossGradient
from nlcompanion.learning_rules import LearningRule, _at, kinetic_energy
from nlcompanion.mechanics import lift

__all__ = [
    "LieAlgebra",
    "Part",
    "Symmetry",
    "generator",
    "gl",
    "input_rotation",
    "invariance_defect",
    "kinetic_symmetry_breaking",
    "linear_action",
    "linear_pair",
    "rescale",
    "rotation",
    "scale",
    "so",
    "translation",
]

Action = Callable[[Tensor, Tensor], Tensor]
Part = slice | int | Sequence | Tensor  # where some parameters sit in the flat vector

_IDENTITY_TOLERANCE = 1e-12  # relative; matrix exponentials and user code may round


@dataclass(frozen=True)
class Symmetry:
    r"""A one-parameter action on parameters, :math:`Q(q, s)` with :math:`Q(q, 0) = q`.

    The functions of this module make the usual ones; write your own in torch operations of both arguments:
    ``Symmetry(lambda q, s: q * (1 + s), "TK's scale")``. Whether it *is* a symmetry of a loss,
    :func:`invariance_defect` tells.

    Attributes:
        action: ``Q(q, s)``, from shape ``(n,)`` and a 0-d tensor (dimensionless) to shape ``(n,)``.
        name: what error messages and tables call it.

    Raises:
        TypeError: if ``action`` is not a function, or does not return a tensor.
        ValueError: when called, on a ``q`` that is not of shape ``(n,)``; by :meth:`check` and by everything that
            differentiates the action, if it is not the identity at :math:`s = 0`.

    Source: TK Section 2.1; GU Definition 1.

    Example:
        >>> import math
        >>> import torch
        >>> from nlcompanion import rotation
        >>> q, sixth_turn = torch.tensor([1.0, 0.0]), math.pi / 3
        >>> [round(x, 6) for x in rotation(plane=(0, 1))(q, sixth_turn).tolist()]
        [0.5, 0.866025]
    """

    action: Action = field(repr=False)
    name: str = "symmetry"

    def __post_init__(self) -> None:
        if not callable(self.action):
            raise TypeError(f"a Symmetry needs a function Q(q, s) -> q, got {type(self.action).__name__}")

    def __call__(self, q: Tensor, s: float | Tensor) -> Tensor:
        q = as_tensor("q", q)
        if q.ndim != 1 or q.numel() == 0:
            raise ValueError(
                f"{self.name} acts on q of shape (n,), got {tuple(q.shape)}; flatten the parameters with flat_loss"
            )
        moved = self.action(q, torch.as_tensor(s, dtype=q.dtype, device=q.device))
        if not isinstance(moved, Tensor):
            raise TypeError(f"{self.name}: the action returned {type(moved).__name__}; return a tensor like q")
        if moved.shape != q.shape:
            raise ValueError(
                f"{self.name}: the action turned shape {tuple(q.shape)} into {tuple(moved.shape)}; a symmetry maps the "
                "space of parameters to itself"
            )
        return moved

    def check(self, q: Tensor) -> None:
        """Raise a ValueError unless the action is the identity at ``s = 0``, at this ``q``."""
        q = as_tensor("q", q)
        self._compare(self(q, 0.0), q)

    def _compare(self, moved: Tensor, q: Tensor) -> None:
        distance, size = (moved - q).abs().max(), q.abs().max()
        if known(~(distance <= _IDENTITY_TOLERANCE * size)):  # NaN is no identity either
            raise ValueError(
                f"{self.name} is not the identity at s = 0: it moves q by {float(distance):.3g} there, so it has no "
                "generator. Shift or re-scale its parameter until Q(q, 0) = q; a factor s, for instance, must become "
                "1 + s or torch.exp(s)"
            )


# --- the actions ------------------------------------------------------------------------------------------------


def translation(direction) -> Symmetry:
    r"""Translation along a fixed direction, :math:`Q = q + s\,\hat n`.

    A softmax gives it to a network: adding one number to all biases of the last layer changes nothing.

    Args:
        direction: :math:`\hat n`, array-like of shape ``(n,)``, in units of ``q``; need not have length 1.

    Raises:
        ValueError: if the direction is zero, not finite or not a vector; when called, if ``q`` has another length.

    Source: TK Section 2.1.

    Example:
        >>> import torch
        >>> translation([0.0, 1.0])(torch.tensor([5.0, 5.0]), 0.5).tolist()
        [5.0, 5.5]
    """
    n_hat = _constant("direction", direction, 1)

    def action(q, s):
        _same_length("translation", "direction", len(n_hat), q)
        return q + s * n_hat.to(q)

    return Symmetry(action, "translation")


def rotation(generator=None, *, plane: tuple[int, int] | None = None, dimension: int | None = None) -> Symmetry:
    r"""Rotation, :math:`Q = e^{sA} q` with a skew-symmetric :math:`A`.

    Args:
        generator: :math:`A` of shape ``(n, n)``, with :math:`A^T = -A` (dimensionless); ``s`` is then an angle in
            units of 1 over its eigenvalues.
        plane: instead, two axes ``(i, j)``: turns axis ``i`` towards axis ``j`` by ``s`` radians. Costs no matrix, so
            it serves any number of parameters.
        dimension: with ``plane``, the length ``q`` must have; any that holds both axes when None.

    Raises:
        ValueError: if the generator is not skew-symmetric, the plane is none, or ``q`` does not fit.

    Source: TK Section 2.1; GU Examples 6 to 9, whose matrix (56) turns the other way.

    Example:
        >>> import torch
        >>> from nlcompanion import generator
        >>> turn = rotation([[0.0, -1.0], [1.0, 0.0]])
        >>> q = torch.tensor([3.0, 4.0]).double()
        >>> turn(q, 1.0).norm().item(), generator(turn)(q).tolist()
        (5.0, [-4.0, 3.0])
    """
    if (generator is None) == (plane is None):
        raise ValueError("rotation needs a skew-symmetric generator or plane=(i, j), one of the two")
    if plane is not None:
        return _plane_rotation(plane, dimension)
    A = _skew("rotation", generator)
    return Symmetry(_exponential("rotation", A), "rotation")


def _plane_rotation(plane, dimension) -> Symmetry:
    i, j = plane
    if not (isinstance(i, int) and isinstance(j, int) and min(i, j) >= 0) or i == j:
        raise ValueError(f"plane = {plane} is no plane; name two different axes, numbered from 0")
    if dimension is not None and max(i, j) >= dimension:
        raise ValueError(f"plane = {plane} needs axes below dimension = {dimension}; they are numbered from 0")
    name = f"rotation in plane ({i}, {j})"

    def action(q, s):
        if len(q) <= max(i, j) or (dimension is not None and len(q) != dimension):
            needed = f"{dimension}" if dimension is not None else f"more than {max(i, j)}"
            raise ValueError(f"{name} acts on q with {needed} components, got {len(q)}")
        e_i, e_j = (torch.zeros_like(q).index_fill(0, torch.tensor([k], device=q.device), 1.0) for k in (i, j))
        less, sine = torch.cos(s) - 1, torch.sin(s)
        return q + e_i * (less * q[i] - sine * q[j]) + e_j * (sine * q[i] + less * q[j])

    return Symmetry(action, name)


def scale(part: Part | None = None) -> Symmetry:
    r"""Scaling, :math:`Q = e^s q`, of all parameters or of a part.

    TK write :math:`(1 + s)\,q`: the same generator, but no group in ``s``. Weights before a normalisation layer have
    this symmetry, each normalised group by itself.

    Args:
        part: which components grow: a slice such as ``f.slices["0.weight"]``, an index or a sequence of indices, or a
            sequence of several of these; all of them when None.

    Raises:
        ValueError: when called, if ``part`` reaches beyond ``q`` or is empty.

    Source: TK Section 2.1.

    Example:
        >>> import math
        >>> import torch
        >>> [round(x, 6) for x in scale(part=slice(0, 2))(torch.ones(3), math.log(2)).tolist()]
        [2.0, 2.0, 1.0]
    """
    return _stretch("scale", [(slice(None) if part is None else part, 1.0)])


def rescale(inputs: Part, outputs: Part, p: float = 1.0, extra: Sequence[tuple[Part, float]] = ()) -> Symmetry:
    r"""Rescaling across a homogeneous activation: what comes in times :math:`e^{s}`, what goes out :math:`e^{-ps}`.

    With :math:`\sigma(cx) = c^p\sigma(x)` for :math:`c > 0` the network's function stays the same. For one neuron the
    inputs are its row of weights and its bias, the outputs its column in the next layer.

    Args:
        inputs: the incoming weights and biases: a slice, indices, or a sequence of these.
        outputs: the outgoing weights, likewise.
        p: degree of the activation (dimensionless): 1 for (leaky) ReLU and linear, p for ``RePU(p)`` and :math:`x^p`.
        extra: further ``(part, exponent)`` pairs, each part times :math:`e^{\text{exponent}\cdot s}`: a trainable
            Swish needs ``[(betas, -1.0)]`` at p = 1.

    Raises:
        ValueError: if ``p`` is not finite; when called, if parts overlap, are empty or reach beyond ``q``.

    Source: TK Section 2.1; GU Eq. 28, Section 4 and Appendix B.1.

    Example:
        >>> import math
        >>> import torch
        >>> [round(x, 6) for x in rescale([0, 1], [2], p=2)(torch.ones(3), math.log(2)).tolist()]
        [2.0, 2.0, 0.25]
    """
    if not math.isfinite(p):
        raise ValueError(f"p must be a finite degree of homogeneity, got {p}; ReLU and linear layers have p = 1")
    parts = [(inputs, 1.0), (outputs, -float(p)), *((part, float(exponent)) for part, exponent in extra)]
    return _stretch("rescale" if p == 1 else f"rescale (p={p:g})", parts)


def linear_action(generator) -> Symmetry:
    r"""Any one-parameter group of matrices, :math:`Q = e^{sA} q`.

    Args:
        generator: :math:`A` of shape ``(n, n)``, not zero (dimensionless).

    Raises:
        ValueError: if ``A`` is not a finite square matrix, is zero, or does not fit ``q``.

    Source: GU Appendix A, Eqs. 54 and 57.

    Example:
        >>> import torch
        >>> import torch
        >>> from nlcompanion import linear_action
        >>> shear = linear_action([[0.0, 1.0], [0.0, 0.0]])
        >>> shear(torch.tensor([1.0, 2.0]), 3.0).tolist()
        [7.0, 2.0]
    """
    return Symmetry(_exponential("linear_action", _constant("generator", generator, 2)), "linear action")


def linear_pair(first: slice, second: slice, A) -> Symmetry:
    r"""What two neighbouring linear layers can hand to each other: :math:`W \to e^{sA} W`, :math:`W' \to W' e^{-sA}`.

    Their product stays the same for every matrix :math:`A`: the group GL(d) of the ``d`` neurons between them.

    Args:
        first: where :math:`W`, of shape ``(d, m)``, sits in ``q`` row by row: ``f.slices["1.weight"]``.
        second: where :math:`W'`, of shape ``(k, d)``, sits.
        A: shape ``(d, d)``, not zero (dimensionless); its size tells ``d``, hence both shapes.

    Raises:
        ValueError: if ``A`` is not a finite square matrix or is zero; when called, if the slices overlap, reach beyond
            ``q`` or do not divide into rows and columns of length ``d``.

    Source: GU Eq. 38 and Appendix B.2.

    Example:
        >>> import torch
        >>> pair = linear_pair(slice(0, 2), slice(2, 4), [[0.0, 1.0], [0.0, 0.0]])
        >>> pair(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1.0).tolist()   # the product stays 11
        [3.0, 2.0, 3.0, 1.0]
    """
    A = _constant("A", A, 2)
    if _overlap(first, second):
        raise ValueError(f"the two layers {first} and {second} overlap; a pair needs two different layers")

    def action(q, s):
        here, there = _block("linear_pair", q, first, len(A)), _block("linear_pair", q, second, len(A))
        W, W_next = here.view(len(A), -1), there.view(-1, len(A))
        return _replace(_replace(q, first, _exp(s, A, q) @ W), second, W_next @ _exp(-s, A, q))

    return Symmetry(action, "linear pair")


def input_rotation(weights: slice, P) -> Symmetry:
    r"""Rotation of the inputs of a first layer, :math:`W \to W e^{sP}` with a skew-symmetric :math:`P`.

    A symmetry of the loss on data that no rotation changes: the group SO(d) of the ``d`` inputs.

    Args:
        weights: where :math:`W`, of shape ``(k, d)``, sits in ``q`` row by row.
        P: skew-symmetric, shape ``(d, d)`` (dimensionless).

    Raises:
        ValueError: if ``P`` is not skew-symmetric; when called, if the slice reaches beyond ``q`` or does not divide
            into rows of length ``d``.

    Source: GU Eq. 44 and Appendix B.3.

    Example:
        >>> import torch
        >>> from nlcompanion import generator
        >>> turn = input_rotation(slice(0, 2), [[0.0, 1.0], [-1.0, 0.0]])
        >>> generator(turn)(torch.tensor([3.0, 4.0, 7.0]).double()).tolist()
        [-4.0, 3.0, 0.0]
    """
    P = _skew("input_rotation", P)

    def action(q, s):
        W = _block("input_rotation", q, weights, len(P)).view(-1, len(P))
        return _replace(q, weights, W @ _exp(s, P, q))

    return Symmetry(action, "input rotation")


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
        basis = self.basis
        if not isinstance(basis, Tensor):
            basis = torch.stack([_constant("basis", A, 2) for A in basis])
        basis = basis.double()
        if basis.ndim != 3 or basis.shape[1] != basis.shape[2] or not len(basis):
            raise ValueError(f"a basis has shape (m, d, d) with m > 0, got {tuple(basis.shape)}")
        rank = int(torch.linalg.matrix_rank(basis.flatten(1)))
        if rank < len(basis):
            raise ValueError(f"the basis has {len(basis)} matrices but only {rank} independent ones; drop the others")
        object.__setattr__(self, "basis", basis)

    def __len__(self) -> int:
        return len(self.basis)

    def __getitem__(self, index: int) -> Symmetry:
        return self.action(self.basis[index])

    def __iter__(self) -> Iterator[Symmetry]:
        return (self.action(A) for A in self.basis)

    def element(self, coefficients) -> Symmetry:
        r"""The symmetry of :math:`\sum_i c_i A_i`, with ``coefficients`` of shape ``(m,)``."""
        c = torch.as_tensor(coefficients, dtype=torch.float64)
        if c.shape != (len(self),):
            raise ValueError(f"{self.name} needs {len(self)} coefficients, got shape {tuple(c.shape)}")
        return self.action(torch.einsum("m,mij->ij", c, self.basis))

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
    if not (isinstance(d, int) and d >= 2):
        raise ValueError(f"so(d) needs a dimension d >= 2, got {d!r}; a line has no rotations")
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
    if not (isinstance(d, int) and d >= 1):
        raise ValueError(f"gl(d) needs a dimension d >= 1, got {d!r}")
    basis = torch.eye(d * d, dtype=torch.float64).view(d * d, d, d)
    return LieAlgebra(basis, linear_action if action is None else action, f"gl({d})")


# --- what an action does ----------------------------------------------------------------------------------------


def generator(symmetry: Symmetry) -> Callable[[Tensor], Tensor]:
    r"""The generator of an action, :math:`\xi(q) = \partial_s Q(q, s)` at :math:`s = 0`, by differentiating it.

    Args:
        symmetry: any :class:`Symmetry`.

    Returns:
        A function ``q -> xi`` from shape ``(n,)`` to ``(n,)``, in units of ``q``.

    Raises:
        ValueError: when called, if the action is not the identity at ``s = 0``.

    Source: TK Section 2.1; GU Eqs. 10 and 55.

    Example:
        >>> import torch
        >>> from nlcompanion import scale
        >>> generator(scale())(torch.tensor([1.0, 2.0]).double()).tolist()
        [1.0, 2.0]
    """

    def xi(q):
        q = as_tensor("q", q)
        zero, one = torch.zeros((), dtype=q.dtype, device=q.device), torch.ones((), dtype=q.dtype, device=q.device)
        moved, tangent = jvp(lambda s: symmetry(q, s), (zero,), (one,))
        symmetry._compare(moved, q)
        return tangent

    return xi


def invariance_defect(f: Callable[[Tensor], Tensor], symmetry: Symmetry, q, s=None) -> Tensor:
    r"""How far a loss is from having a symmetry, at a point; 0 when it has it.

    Without ``s`` the infinitesimal defect, the cosine of the angle between gradient and generator,

    .. math:: \frac{|\langle\nabla f(q), \xi(q)\rangle|}{|\nabla f(q)|\,|\xi(q)|} \in [0, 1],

    with ``s`` the finite one,

    .. math:: \frac{|f(Q(q, s)) - f(q)|}{\max(|f(Q(q, s))|, |f(q)|)} \in [0, 2].

    Args:
        f: loss ``f(q) -> scalar``.
        symmetry: the action.
        q: point of shape ``(n,)``.
        s: None, a number, or a sequence of numbers (dimensionless).

    Returns:
        A 0-d tensor, or one of the shape of ``s``; dimensionless.

    Raises:
        ValueError: if gradient or generator vanishes at ``q``, where the cosine would pass whatever the symmetry; if
            the loss or its gradient is not finite there.

    Source: TK Section 2.1; GU Eq. 16.

    Example:
        >>> import torch
        >>> from nlcompanion import rotation, scale
        >>> bowl, q = (lambda q: (q @ q - 1) ** 2), torch.tensor([0.3, 0.4]).double()
        >>> bool(invariance_defect(bowl, rotation(plane=(0, 1)), q, s=[0.5, 2.0]).max() < 1e-15)
        True
        >>> round(invariance_defect(bowl, scale(), q).item(), 12)   # as far from it as can be
        1.0
    """
    q = as_tensor("q", q)
    symmetry.check(q)
    if s is not None:
        return _finite_defect(f, symmetry, q, torch.as_tensor(s, dtype=q.dtype))
    xi, slope = generator(symmetry)(q), gradient_of(f, q)
    for size, what in ((slope.norm(), "the gradient of the loss"), (xi.norm(), f"the generator of {symmetry.name}")):
        if not float(size):
            raise ValueError(
                f"{what} vanishes at q, where every loss would pass; take another point (or, if it vanishes "
                "everywhere, write the function in torch operations of its arguments)"
            )
    # lengths first: products of tiny numbers would underflow
    return ((slope / slope.norm()) @ (xi / xi.norm())).abs().clamp(max=1.0)


def _finite_defect(f, symmetry: Symmetry, q: Tensor, s: Tensor) -> Tensor:
    with torch.no_grad():
        here = torch.as_tensor(f(q))
        values = torch.stack([torch.as_tensor(f(symmetry(q, x))) for x in s.reshape(-1)]).reshape(s.shape)
    if not (torch.isfinite(here) and torch.isfinite(values).all()):
        raise ValueError(f"the loss is not finite at q, or where {symmetry.name} moves it; take a smaller s")
    size = torch.maximum(values.abs(), here.abs())
    return torch.where(size > 0, (values - here).abs() / size, torch.zeros_like(size))


def kinetic_symmetry_breaking(rule: LearningRule, symmetry: Symmetry, t, q, v) -> Tensor:
    r"""How a symmetry changes the kinetic energy of a learning rule: :math:`\partial_s T_h` at :math:`s = 0`.

    .. math:: \frac{d}{ds}\, T_h\big(t,\, Q(q, s),\, \dot Q(q, s)\big)\Big|_{s=0}

    0 means that the rule respects the symmetry. Euclidean rules respect translations and rotations, and scaling gives
    :math:`2T`; a :math:`p`-homogeneous :math:`h` gives :math:`p\,T_h` under scaling; in general all are broken.

    Args:
        rule: any rule with a Lagrangian, any ``h``.
        symmetry: any action, a symmetry of the loss or not.
        t, q, v: a point, ``q`` and ``v`` of shape ``(n,)``, or a trajectory of ``T`` of them.

    Returns:
        A scalar or shape ``(T,)``, in units of :math:`T_h`, which is without :math:`e^\gamma`.

    Raises:
        ValueError: for the massless gradient flow; if ``q`` or :math:`q + e^{-\alpha}v` leaves the domain of ``h``; if
            the action is not the identity at ``s = 0``.

    Source: TK Section 2.2, Eqs. 5, 6 and 9.

    Example:
        >>> import torch
        >>> from nlcompanion import damped, scale
        >>> q, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
        >>> kinetic_symmetry_breaking(damped(mass=1.0, friction=0.5), scale(), 0.0, q, v).item()   # twice 25 / 2
        25.0
    """
    T = kinetic_energy(rule)
    t, q, v = state(rule, symmetry, t, q, v)

    def broken(t, q, v):
        one = torch.ones((), dtype=torch.float64)
        return jvp(lambda s: T(*lift(lambda t, q: symmetry(q, s))(t, q, v)), (one - 1,), (one,))[1]

    return along(broken, t, q, v)


# --- shared with noether ----------------------------------------------------------------------------------------


def variation(symmetry: Symmetry, t: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\partial_s Q` and :math:`\partial_s\dot Q` at :math:`s = 0`: the lifted action, differentiated."""
    one = torch.ones((), dtype=torch.float64)
    return jvp(lambda s: lift(lambda t, q: symmetry(q, s))(t, q, v)[1:], (one - 1,), (one,))[1]


def as_tensor(name: str, value) -> Tensor:
    """A floating-point tensor, differentiable where ``value`` is; complains by ``name`` otherwise."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} has dtype {value.dtype}; actions are differentiated: pass {name}.double()")
        return value
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is not an array of numbers ({error})") from error


def known(condition: Tensor) -> bool:
    """The value of a condition, or False inside ``torch.func.vmap``, where values cannot be looked at."""
    try:
        return bool(condition)
    except RuntimeError:
        return False


def state(rule: LearningRule | None, symmetry: Symmetry | None, t, q, v) -> tuple[Tensor, Tensor, Tensor]:
    """``(t, q, v)`` as float64 tensors of a point or of a trajectory, checked against rule and symmetry."""
    t, q, v = (as_tensor(name, x).double() for name, x in (("t", t), ("q", q), ("v", v)))
    if t.ndim > 1 or (t.ndim == 1 and (q.ndim != 2 or len(q) != len(t) or not len(t))):
        raise ValueError(
            f"t has shape {tuple(t.shape)} and q {tuple(q.shape)}; a point needs a single t and q of shape (n,), a "
            "trajectory t of shape (T,) and q of shape (T, n)"
        )
    if v.shape != q.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, q {tuple(q.shape)}; a velocity lives in the space of the point"
        )
    for name, x in (("t", t), ("q", q), ("v", v)):
        if known(~torch.isfinite(x).all()):
            raise ValueError(f"{name} holds NaN or infinity; a motion cannot pass there")
    if symmetry is not None:
        symmetry.check(q if t.ndim == 0 else q[0])
    if rule is not None:
        _check_domain(rule, t, q, v)
    return t, q, v


def along(function: Callable, t: Tensor, *rest: Tensor):
    """``function`` at a point (0-d ``t``), or at every row of all arguments, in one batch where it allows that."""
    if t.ndim == 0:
        return function(t, *rest)
    try:
        return vmap(function)(t, *rest)
    except RuntimeError:  # a schedule, h or action that branches on values; a real error comes again from the loop
        rows = [function(*row) for row in zip(t, *rest, strict=True)]
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def gradient_of(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """The gradient of a loss at one point; an error where it is not finite."""
    slope = LossGradient(f)(q)
    if not torch.isfinite(slope).all():
        raise ValueError(
            "the loss or its gradient is not finite at q; nothing can be said about its symmetries there: take a "
            "point inside its domain"
        )
    return slope


def _check_domain(rule: LearningRule, t: Tensor, q: Tensor, v: Tensor) -> None:
    if rule.massless:
        return
    if rule.fixed_rates is None:
        schedules = along(lambda t: _at(rule.alpha, "alpha", t) + _at(rule.beta, "beta", t), t)
        bad = ~torch.isfinite(schedules)
        if known(bad.any()):
            raise ValueError(
                f"the schedules of {rule.name} are not finite at t = {float(t[bad].flatten()[0]):.6g}: it is singular "
                "there, or its mass is not positive; take a time at which it moves"
            )
    if rule.is_euclidean:
        return

    def slopes(t, q, v):
        return grad(rule.h)(q), grad(rule.h)(q + torch.exp(-_at(rule.alpha, "alpha", t)) * v)

    places = ("q", "q + exp(-alpha) v")
    fixes = (
        "move q inside, or choose an h that lives there",
        "take a smaller v, or a rule with a smaller mass exp(-alpha)",
    )
    for slope, place, fix in zip(along(slopes, t, q, v), places, fixes, strict=True):
        bad = ~torch.isfinite(slope)
        if known(bad.any()):
            where = bad.nonzero()[0].tolist()
            when = f" at t = {float(t if t.ndim == 0 else t[where[0]]):.6g}"
            raise ValueError(
                f"grad h is not finite at {place}{when} (component {where[-1]}): the point lies outside the domain of "
                f"h, as for the entropy wherever a component is <= 0; {fix}"
            )


# --- pieces of the actions --------------------------------------------------------------------------------------


def _constant(name: str, value, ndim: int) -> Tensor:
    """A finite float64 vector or square matrix, not zero."""
    x = as_tensor(name, value).detach().double()
    if x.ndim != ndim or x.numel() == 0 or (ndim == 2 and x.shape[0] != x.shape[1]):
        wanted = "(n,)" if ndim == 1 else "(d, d)"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity; an action needs finite numbers")
    if not x.any():
        raise ValueError(f"{name} is zero: it moves nothing, and every loss would have that symmetry")
    return x


def _skew(name: str, value) -> Tensor:
    A = _constant("generator", value, 2)
    excess = (A + A.T).abs().max().item()
    if excess > 1e-12 * A.abs().max().item():
        raise ValueError(
            f"{name} needs a skew-symmetric generator, got |A + A^T| up to {excess:.3g}; take (A - A.T) / 2, or "
            "linear_action(A) for a general matrix"
        )
    return A


def _exponential(name: str, A: Tensor) -> Action:
    def action(q, s):
        _same_length(name, "generator", len(A), q)
        return _exp(s, A, q) @ q

    return action


def _exp(s: Tensor, A: Tensor, q: Tensor) -> Tensor:
    """exp(s A), computed in float64, in the precision of ``q``."""
    return matrix_exp(s.double() * A.to(q.device)).to(q.dtype)


def _same_length(name: str, what: str, n: int, q: Tensor) -> None:
    if len(q) != n:
        raise ValueError(f"{name}: its {what} is for {n} parameters, q has {len(q)}")


def _stretch(name: str, parts: list[tuple[Part, float]]) -> Symmetry:
    def action(q, s):
        exponents, seen = torch.zeros(len(q), dtype=q.dtype), torch.zeros(len(q), dtype=torch.long)
        for part, exponent in parts:
            index = _indices(name, part, len(q))
            exponents[index] = exponent
            seen += torch.bincount(index, minlength=len(q))
        if seen.max() > 1:
            raise ValueError(
                f"{name}: component {int(seen.argmax())} of q is named twice; a parameter grows by one power only"
            )
        return torch.exp(s * exponents.to(q.device)) * q

    return Symmetry(action, name)


def _indices(name: str, part: Part, n: int) -> Tensor:
    """Where in a vector of length ``n`` a part sits, as indices."""
    if isinstance(part, slice):
        if part.stop is not None and part.stop > n:
            raise ValueError(f"{name}: {part} reaches beyond the {n} components of q")
        index = torch.arange(n)[part]
    elif isinstance(part, Integral):
        index = torch.tensor([int(part)])
    elif isinstance(part, Tensor):
        index = part.nonzero().flatten() if part.dtype == torch.bool else part.flatten().long()
    else:
        pieces = [_indices(name, piece, n) for piece in part]
        index = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)
    if not len(index):
        raise ValueError(f"{name}: {part} names no component of q; an empty part has no symmetry")
    if index.min() < 0 or index.max() >= n:
        raise ValueError(f"{name}: {part} names components outside 0 .. {n - 1}")
    return index


def _block(name: str, q: Tensor, where: slice, d: int) -> Tensor:
    start, stop = where.start or 0, where.stop
    if where.step not in (None, 1) or stop is None or not 0 <= start < stop:
        raise ValueError(f"{name}: {where} is no block of q; give slice(start, stop), as f.slices does")
    if stop > len(q):
        raise ValueError(f"{name}: {where} reaches beyond the {len(q)} components of q")
    if (stop - start) % d:
        raise ValueError(
            f"{name}: a layer of {stop - start} weights has no rows or columns of length {d}, the size of the generator"
        )
    return q[start:stop]


def _replace(q: Tensor, where: slice, block: Tensor) -> Tensor:
    return torch.cat([q[: where.start or 0], block.reshape(-1), q[where.stop :]])


def _overlap(a: slice, b: slice) -> bool:
    return max(a.start or 0, b.start or 0) < min(a.stop or 0, b.stop or 0)
