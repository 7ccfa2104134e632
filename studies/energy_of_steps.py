"""The books of energy, step by step, for heavy ball, Newtonian and Nesterov's steps (chapter on time symmetry)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

import nlcompanion as nl

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EnergyBooks:
    r"""What changed the energy :math:`E_n = T_n + \frac12(f(q_n) + f(q_{n+1}))` in every step of a run.

    Attributes:
        q: the points, (steps + 1, n).
        energy: (steps,).
        friction: its work, (steps - 1,).
        finite_step: the loss gained beyond what the slope says, (steps - 1,).
        rest: the work of whatever else the gradient holds, (steps - 1,): the noise of a batch, or what Nesterov's
            gradient differs by because it is taken ahead.
    """

    q: Tensor
    energy: Tensor
    friction: Tensor
    finite_step: Tensor
    rest: Tensor

    @property
    def left_over(self) -> Tensor:
        """What the energy has changed by beyond all three, in each step."""
        return self.energy.diff() - self.friction - self.finite_step - self.rest

    @property
    def unexplained_by_friction(self) -> float:
        """The distance between the energy lost in the run and the work of friction."""
        return float(abs(self.energy[-1] - self.energy[0] - self.friction.sum()))

    @property
    def unexplained_by_friction_and_rest(self) -> float:
        """The same, once the rest is booked too."""
        return float(abs(self.energy[-1] - self.energy[0] - self.friction.sum() - self.rest.sum()))


def heavy_ball_books(rule, momentum: float, f: Loss, q0: Tensor, time: float, batches=None) -> EnergyBooks:
    r"""The books of heavy ball with mass :math:`\frac\eta2(1+\beta)` and friction :math:`1-\beta`.

    Args:
        rule: ``sgd`` (momentum 0 is plain descent), or ``newtonian`` with momentum 1.
        momentum: :math:`\beta` of the books.
        f: the full loss.
        q0: start.
        time: how long, in units of the rule's own time.
        batches: ``n -> loss`` of each step's mini-batch; the full loss when None.
    """
    q = _points(rule, f, q0, time, batches)
    d = q.diff(dim=0)
    both = d[1:] + d[:-1]
    slope = vmap(grad(f))(q[1:-1])
    used = slope if batches is None else torch.stack([grad(batches(n))(p) for n, p in enumerate(q[1:-1], 1)])
    drag = (1 - momentum) / 2 * both
    return _books(f, q, (1 + momentum) / (4 * rule.lr), drag / rule.lr, slope, used)


def nesterov_books(rule, f: Loss, q0: Tensor, time: float) -> EnergyBooks:
    r"""The books of Nesterov's steps: the mass of :math:`\beta = 1`, friction :math:`3/(n+2)` on the step before.

    Args:
        rule: ``nesterov(lr=...)``.
        f: the loss.
        q0: start.
        time: how long.
    """
    q = _points(rule, f, q0, time, None)
    past = q.diff(dim=0)[:-1]
    n = torch.arange(1, len(q) - 1, dtype=q.dtype)[:, None]
    ahead = q[1:-1] + (n - 1) / (n + 2) * past
    slope, used = vmap(grad(f))(q[1:-1]), vmap(grad(f))(ahead)
    return _books(f, q, 1 / (2 * rule.lr), 3 / (n + 2) * past / rule.lr, slope, used)


def _points(rule, f: Loss, q0: Tensor, time: float, batches) -> Tensor:
    steps = round(time / rule.time_step)
    return nl.descend(rule, f if batches is None else None, q0, steps=steps, batches=batches).q


def _books(f: Loss, q: Tensor, half_mass: float, drag: Tensor, slope: Tensor, used: Tensor) -> EnergyBooks:
    losses, d = vmap(f)(q), q.diff(dim=0)
    both = d[1:] + d[:-1]

    def work(force: Tensor) -> Tensor:
        return -(force * both).sum(1) / 2

    return EnergyBooks(
        q=q,
        energy=half_mass * d.square().sum(1) + (losses[1:] + losses[:-1]) / 2,
        friction=work(drag),
        finite_step=(losses[2:] - losses[:-2]) / 2 + work(slope),
        rest=work(used - slope),
    )


def shadow_of(books: EnergyBooks, f: Loss, lr: float) -> Tensor:
    r"""The energy that Newtonian steps keep up to order :math:`\eta^2`.

    .. math:: \tilde E = E - \tfrac16\langle d_n, g_{n+1} - g_n\rangle + \tfrac{\eta}{24}(|g_n|^2 + |g_{n+1}|^2)
    """
    d, g = books.q.diff(dim=0), vmap(grad(f))(books.q)
    kinetic = (d * g.diff(dim=0)).sum(1) / 6
    potential = lr / 24 * (g[1:].square() + g[:-1].square()).sum(1)
    return books.energy - kinetic + potential


def largest_change(x: Tensor) -> float:
    """From the first value."""
    return float((x - x[0]).abs().max())
