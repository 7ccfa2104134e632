r"""Noether charges along motions and along the steps of heavy ball."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp, vmap

import nlcompanion as nl

__all__ = ["change_by_sliding", "damped_charge", "discrete_entries", "heavy_ball_memory"]


def change_by_sliding(L, F, symmetry: nl.Symmetry, path: nl.Trajectory) -> tuple[Tensor, Tensor]:
    r"""Both sides of Noether's theorem along a path that is slid as a whole (TK Eq. 8).

    Args:
        L: the Lagrangian whose momentum makes the charge :math:`\langle\partial_v L, \xi\rangle`.
        F: the function of ``(t, q, v)`` that is slid: ``L`` itself, or the part of it that changes.
        symmetry: the action.
        path: a motion of ``L``.

    Returns:
        The charge and :math:`\partial_s F` at the path's times, shape ``(T,)`` each.
    """
    momentum, xi = nl.generalized_momentum(L), nl.generator(symmetry)

    def charge(t, q, v):
        return momentum(t, q, v) @ xi(q)

    def slope(t, q, v):
        def slid(s):
            return F(*nl.lift(lambda t, q: symmetry(q, s))(t, q, v))

        zero = torch.zeros((), dtype=torch.float64)
        return jvp(slid, (zero,), (torch.ones_like(zero),))[1]

    return vmap(charge)(path.t, path.q, path.v), vmap(slope)(path.t, path.q, path.v)


def damped_charge(t: Tensor, start: Tensor, mass: float, friction: float) -> Tensor:
    r"""A charge that nothing feeds under a damped rule, :math:`C(t_0)\,e^{-\mu(t - t_0)/m}`."""
    return start * torch.exp(-friction / mass * (t - t[0]))


def discrete_entries(rule: nl.LearningRule, symmetry: nl.Symmetry, run: nl.Trajectory) -> tuple[Tensor, Tensor]:
    r"""The account of a charge under heavy ball, step by step, for a loss with the linear symmetry :math:`\xi = Aq`.

    .. math:: C_n - C_{n-1} = -(1-\beta)\,C_{n-1} + \beta\,\langle d_{n-1}, A d_{n-1}\rangle
              - \eta k\,\langle q_n, A q_n\rangle, \qquad C_n = \langle d_n, A q_n\rangle

    Made of the terms of :func:`nlcompanion.noether_learning_dynamics`, which are worth :math:`m/\eta` of these.

    Args:
        rule: ``nlcompanion.sgd(...)``.
        symmetry: a linear action or a translation.
        run: the steps, all of them, from :func:`nlcompanion.descend`; their velocity is :math:`d_n/\eta`.

    Returns:
        The charges :math:`C_n`, shape ``(T,)``, and the three entries of each change, shape ``(3, T - 1)``: damping,
        asymmetry, potential.
    """
    assert rule.steps is not None
    lr, beta = rule.steps.lr, rule.steps.memory_of(1)
    mass = lr * (1 + beta) / 2
    terms = nl.noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
    charge = lr * terms.charge / mass
    damping = (beta - 1) * charge[:-1]
    asymmetry = lr**2 * beta * terms.kinetic_asymmetry[:-1] / mass
    potential = lr * terms.potential[1:]
    return charge, torch.stack([damping, asymmetry, potential])


def heavy_ball_memory(
    run: nl.Trajectory, symmetries: Sequence[Callable], lr: float, momentum: float, weight_decay: float
) -> tuple[Tensor, Tensor]:
    r"""Both sides of the heavy-ball identity of a quadratic charge :math:`\mathcal C = q^T A q`, solved for its memory.

    .. math:: \mathcal C_{n+1} - \mathcal C_n - \beta\,(\mathcal C_n - \mathcal C_{n-1}) - Q(d_n)
              + 2\eta k\,\mathcal C_n = \beta\, Q(d_{n-1})

    The steps :math:`d_n` are differences of the recorded weights.

    Returns:
        Left and right side, shape ``(symmetries, T - 2)`` each.
    """
    steps = run.q.diff(dim=0)

    def quadratic_form(points):
        return torch.stack([(points * vmap(nl.generator(symmetry))(points)).sum(1) for symmetry in symmetries])

    charge, growth = quadratic_form(run.q), quadratic_form(steps)
    change = charge.diff(dim=1)
    rest = change[:, 1:] - momentum * change[:, :-1] - growth[:, 1:] + 2 * lr * weight_decay * charge[:, 1:-1]
    return rest, momentum * growth[:, :-1]
