"""What moves the outputs of a network: their rate and acceleration along a motion of its parameters."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.func import jvp

from nlcompanion._arguments import instance, vector
from nlcompanion.networks.flat_loss import FlatLoss


class OutputMotion(NamedTuple):
    r"""How outputs move with the parameters: ``rate`` :math:`\dot u`, and ``push`` + ``bend`` :math:`= \ddot u`."""

    rate: Tensor
    push: Tensor
    bend: Tensor


def output_motion(f: FlatLoss, q: Tensor, v: Tensor, a: Tensor) -> OutputMotion:
    r"""Rate and acceleration of a network's outputs along a motion of its parameters.

    .. math:: \dot u = J v, \qquad
              \ddot u = \underbrace{J a}_{\text{push}} + \underbrace{\langle v, \nabla^2 u\, v\rangle}_{\text{bend}}

    Under Newtonian dynamics with half the sum of squares the push is :math:`H (y - u)`. The bend, which GU drop from
    Eq. 52, is what linearised dynamics leaves out. At the kink of a ReLU :math:`\dot u` jumps, which neither shows.

    Args:
        f: a loss made by :func:`~nlcompanion.flat_loss`; its inputs are used.
        q, v, a: point, velocity and acceleration, shape ``(n,)`` each.

    Returns:
        Three tensors of the outputs' shape, by forward differentiation (no Jacobian, no Hessian).

    Source: GU Eq. 52, with its last term kept and its sign corrected.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nlcompanion import flat_loss, mlp
        >>> f = flat_loss(mlp((1, 1, 1), "linear"), torch.ones(1, 1), torch.ones(1, 1), nn.functional.mse_loss)
        >>> q, v, a = torch.tensor([[3.0, 5.0], [1.0, 2.0], [0.0, 0.0]]).double()   # u = q[0] q[1]
        >>> [x.item() for x in output_motion(f, q, v, a)]
        [11.0, 0.0, 4.0]
    """
    instance("f", f, FlatLoss, "flat_loss(model, x, y, loss)")
    q, v, a = (vector(name, given) for name, given in (("q", q), ("v", v), ("a", a)))
    for name, given in (("q", q), ("v", v), ("a", a)):
        if given.shape != f.q0.shape or given.dtype != q.dtype:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and {given.dtype}, this model's parameters make "
                f"{tuple(f.q0.shape)}; give all three in one precision"
            )
    rate, bend, *_ = jvp(lambda p: jvp(f.outputs, (p,), (v,))[1], (q,), (v,))
    return OutputMotion(rate, jvp(f.outputs, (q,), (a,))[1], bend)
