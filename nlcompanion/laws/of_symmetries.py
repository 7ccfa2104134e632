"""From a symmetry to its law: the bridge in the other direction is :meth:`nlcompanion.Law.symmetry`."""

from __future__ import annotations

import torch
from torch import Tensor

from nlcompanion._arguments import instance
from nlcompanion.laws.confirmation import confirmed
from nlcompanion.laws.law import Law
from nlcompanion.laws.terms import Squares, expression
from nlcompanion.networks.flat_loss import FlatLoss
from nlcompanion.symmetries.actions import Symmetry, as_symmetry
from nlcompanion.symmetries.breaking import generator, invariance_defect

__all__ = ["law_of"]

_ROUNDING = 1e-10  # relative


def law_of(symmetry: Symmetry, f: FlatLoss) -> Law:
    r"""The law of a symmetry that stretches parameters, each by its own power of :math:`e^s`.

    The generator is then :math:`\xi(q)_j = c_j q_j`, and the charge :math:`C = \sum_j c_j q_j^2`. Within a tensor the
    numbers :math:`c_j` are the same everywhere, or along one axis (a neuron's row or column). Laws of matrices and of
    rotations are made by :func:`linear_law` and :func:`data_rotation_law`.

    Args:
        symmetry: an action such as :func:`scale` or :func:`rescale` on the parameters of ``f``.
        f: the loss that it leaves alone.

    Returns:
        A single law of kind ``"stretch"``; ``law_of(law.symmetry(), f)`` has the charge of ``law.total``.

    Raises:
        ValueError: the action moves nothing or is no stretch, or the loss is not invariant; the message says which.

    Source: GU Eqs. 28 to 31.

    Example:
        >>> import torch
        >>> from nlcompanion import flat_loss, mlp, rescale
        >>> x, y = torch.eye(4).double(), torch.arange(4) % 2
        >>> f = flat_loss(mlp((4, 3, 2), "relu"), x, y, torch.nn.functional.cross_entropy)
        >>> law_of(rescale(f.slices["1.weight"], f.slices["3.weight"]), f).statement
        '|1.weight|² - |3.weight|² = const'
    """
    as_symmetry(symmetry)
    instance("f", f, FlatLoss, "flat_loss(model, x, y, loss)")
    numbers = _stretch(symmetry, f)
    terms = tuple(term for name in f.names for term in _terms(name, f, numbers))
    defect = float(invariance_defect(f, symmetry, f.q0).abs())
    if not defect < 1e-8:
        raise ValueError(
            f"the loss is not invariant under {symmetry.name}: its slope along the generator is {defect:.3g} of what "
            "it could be, so nothing is conserved; noether_learning_dynamics says what moves the charge"
        )
    law = Law("stretch", tuple(term.name for term in terms), f"{expression(terms)} = const", (), terms, len(f))
    return confirmed(law, f)  # the start may be special: a layer that begins at 0 has every symmetry


def _stretch(symmetry: Symmetry, f: FlatLoss) -> Tensor:
    """The numbers ``c`` of the generator ``c * q``, measured at two places."""
    random = torch.Generator().manual_seed(0)
    places = [1 + torch.rand(len(f), generator=random, dtype=torch.float64) for _ in range(2)]
    first, second = (generator(symmetry)(q) / q for q in places)
    size = first.abs().max()
    if not size > 0:
        raise ValueError(f"{symmetry.name} moves no parameter of this loss, so it has no law; look at its parts")
    if not (first - second).abs().max() <= _ROUNDING * size:
        raise ValueError(
            f"{symmetry.name} mixes parameters or shifts them, and is no stretch of each by its own power; matrices "
            "have linear_law, rotations data_rotation_law, other actions noether_charge"
        )
    return torch.where(first.abs() > _ROUNDING * size, first, 0.0)


def _terms(name: str, f: FlatLoss, numbers: Tensor) -> list[Squares]:
    """The squares of one tensor: all of it, or slices along the axis that the numbers depend on."""
    c, place = f.unflatten(numbers)[name], f.slices[name]
    shape = tuple(c.shape)
    if not c.any():
        return []
    for axis in (None, *range(c.ndim)):
        others = [k for k in range(c.ndim) if k != axis]
        spread = c.amax(others) - c.amin(others) if others else torch.zeros(())
        if (spread <= _ROUNDING * numbers.abs().max()).all():
            break
    else:
        raise ValueError(f"{name} is stretched along more than one axis at once; make a law of each part")
    if axis is None:
        return [Squares(name, place, shape, float(_plain(c.mean())))]
    rows = c.movedim(axis, 0).reshape(shape[axis], -1).mean(1)
    return [Squares(name, place, shape, _plain(x), axis, k) for k, x in enumerate(rows) if x]


def _plain(x: Tensor) -> float:
    """Without the rounding of a derivative: 2 and not 1.9999999999999998."""
    return round(float(x), 12)
