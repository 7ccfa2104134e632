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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlcompanion._arguments import (
    as_parameter,
    as_tensor,
    described,
    finite_number,
    function,
    instance,
    integer,
    known,
    ordered,
    real_number,
    vector,
)
from nlcompanion._matrix_exp import matrix_exp

__all__ = [
    "Part",
    "Symmetry",
    "input_rotation",
    "linear_action",
    "linear_pair",
    "rescale",
    "rotation",
    "scale",
    "translation",
]

Action = Callable[[Tensor, Tensor], Tensor]
Part = slice | int | Sequence | Tensor
"""Where some parameters sit in the flat vector: a slice, one index, several indices, or a mask."""

_MOST_COMPONENTS = 2**40
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
        function("action", self.action, "Q(q, s) -> q", 2)
        instance("name", self.name, str, '"my scale"')

    def __call__(self, q: Tensor, s: float | Tensor) -> Tensor:
        q = as_tensor("q", q)
        if q.ndim != 1 or q.numel() == 0:
            raise ValueError(
                f"{self.name} acts on q of shape (n,), got {tuple(q.shape)}; flatten the parameters with flat_loss"
            )
        q = vector("q", q)
        s = as_parameter("s", s, q)
        moved = self.action(q, s)
        if not isinstance(moved, Tensor):
            raise TypeError(f"{self.name}: the action returned {type(moved).__name__}; return a tensor like q")
        if moved.shape != q.shape:
            raise ValueError(
                f"{self.name}: the action turned shape {tuple(q.shape)} into {tuple(moved.shape)}; a symmetry maps the "
                "space of parameters to itself"
            )
        if known(~torch.isfinite(moved).all() & (s != 0)):  # at 0 the identity is asked for, elsewhere
            raise ValueError(f"{self.name} moves q to infinity or NaN at this s; take a smaller one")
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


def as_symmetry(symmetry: Symmetry) -> Symmetry:
    return instance("symmetry", symmetry, Symmetry, "scale() or rotation(plane=(0, 1))")


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
    n_hat = finite_tensor("direction", direction, 1)

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
    axes = instance("plane", plane, (tuple, list), "(0, 1)")
    if len(axes) != 2:
        raise ValueError(f"plane = {plane} is no plane; name two different axes, numbered from 0")
    i, j = (integer("plane", axis, 0, _MOST_COMPONENTS) for axis in axes)
    if i == j:
        raise ValueError(f"plane = {plane} is no plane; name two different axes, numbered from 0")
    if dimension is not None:
        integer("dimension", dimension, 2, _MOST_COMPONENTS)
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
    p = real_number("p", p)
    if not math.isfinite(p):
        raise ValueError(f"p must be a finite degree of homogeneity, got {p}; ReLU and linear layers have p = 1")
    parts = [(inputs, 1.0), (outputs, -p)]
    for pair in list(instance("extra", extra, (list, tuple), "[(betas, -1.0)]")):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"extra must be (part, exponent) pairs, got {described(pair)}; for Swish [(betas, -1.0)]")
        parts.append((pair[0], finite_number("exponent", pair[1])))
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
    return Symmetry(_exponential("linear_action", finite_tensor("generator", generator, 2)), "linear action")


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
    A = finite_tensor("A", A, 2)
    for layer, place in (("first", first), ("second", second)):
        _check_block(layer, place)
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
    _check_block("weights", weights)

    def action(q, s):
        W = _block("input_rotation", q, weights, len(P)).view(-1, len(P))
        return _replace(q, weights, W @ _exp(s, P, q))

    return Symmetry(action, "input rotation")


# --- pieces of the actions --------------------------------------------------------------------------------------


def finite_tensor(name: str, value, ndim: int) -> Tensor:
    """A finite float64 vector or square matrix, not zero."""
    x = as_tensor(name, ordered(name, value, "numbers in a list, an array or a tensor")).detach().double()
    if x.ndim != ndim or x.numel() == 0 or (ndim == 2 and x.shape[0] != x.shape[1]):
        wanted = "(n,)" if ndim == 1 else "(d, d)"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds NaN or infinity; an action needs finite numbers")
    if not x.any():
        raise ValueError(f"{name} is zero: it moves nothing, and every loss would have that symmetry")
    return x


def _skew(name: str, value) -> Tensor:
    A = finite_tensor("generator", value, 2)
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
    parts = [(_checked_part(name, part), exponent) for part, exponent in parts]

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


def _checked_part(name: str, part: Part) -> Any:
    """A slice, an integer, a tensor of indices or of booleans, or a list of these."""
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        if not all(end is None or isinstance(end, Integral) for end in ends):
            raise TypeError(f"{name}: {part} has ends that are no integers; name components as slice(0, 5)")
        return part
    if isinstance(part, Integral) and not isinstance(part, bool):
        return integer(f"{name}: a component", part, 0, _MOST_COMPONENTS)
    if isinstance(part, np.ndarray) and part.dtype.kind in "iub":
        return torch.from_numpy(part)
    if isinstance(part, Tensor):
        plain = not (part.is_meta or part.layout != torch.strided)
        if plain and (part.dtype == torch.bool or not (part.is_floating_point() or part.is_complex())):
            return part.detach().cpu()
    if isinstance(part, list | tuple | range):
        return [_checked_part(name, piece) for piece in part]
    raise TypeError(
        f"{name}: a part of the parameters is a slice such as f.slices['0.weight'], an index, or several of these in "
        f"a list, got {described(part)}"
    )


def _indices(name: str, part: Any, n: int) -> Tensor:
    """Where in a vector of length ``n`` a part sits, as indices."""
    if isinstance(part, slice):
        if part.stop is not None and part.stop > n:
            raise ValueError(f"{name}: {part} reaches beyond the {n} components of q")
        index = torch.arange(n)[part]
    elif isinstance(part, int):
        index = torch.tensor([part])
    elif isinstance(part, Tensor):
        if part.dtype == torch.bool and part.numel() > n:
            raise ValueError(f"{name}: a mask of {part.numel()} entries for {n} components of q")
        index = part.flatten().nonzero().flatten() if part.dtype == torch.bool else part.flatten().long()
    else:
        pieces = [_indices(name, piece, n) for piece in part]
        index = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)
    if not len(index):
        raise ValueError(f"{name}: {part} names no component of q; an empty part has no symmetry")
    if index.min() < 0 or index.max() >= n:
        raise ValueError(f"{name}: {part} names components outside 0 .. {n - 1}")
    return index


def _check_block(name: str, where: slice) -> None:
    if not isinstance(where, slice):
        raise TypeError(f"{name} must be a slice of the flat vector, as f.slices has it, got {described(where)}")
    ends = (where.start, where.stop, where.step)
    if not all(end is None or isinstance(end, Integral) for end in ends):
        raise TypeError(f"{name} must be a slice with integer ends, got {where}")


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
