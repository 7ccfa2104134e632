"""Wide networks under Newtonian dynamics: speeds, the kernel's prediction, and what it leaves out (time symmetry)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

import nlcompanion as nl
from nlcompanion.book.plotting import COLORS


def half_sum(u: Tensor, y: Tensor) -> Tensor:
    """GU's loss in Section 7: half the sum of squares."""
    return 0.5 * (u - y).square().sum()


class Forecast(NamedTuple):
    """A trained network beside the kernel's prediction.

    Attributes:
        outputs: (T, samples).
        foreseen: by :math:`\\ddot u = +H(y - u)`, (T, samples).
        printed: by the sign as printed.
        error, printed_error: distance to the outputs, relative to the distance that the kernel foresees.
    """

    outputs: Tensor
    foreseen: Tensor
    printed: Tensor
    error: float
    printed_error: float


def forecast(width: int, x: Tensor, y: Tensor, *, seed: int = 0, dt: float = 0.025, steps: int = 80) -> Forecast:
    """Newtonian training of a ReLU network from rest, and what its kernel says beforehand.

    Args:
        width: of the hidden layer.
        x: inputs, (N, d).
        y: targets, (N, 1).
        seed: of the network.
        dt: time step.
        steps: how many.
    """
    model = nl.mlp((x.shape[1], width, 1), "relu", init="ntk", seed=seed)
    net = nl.flat_loss(model, x, y, half_sum)
    run = nl.descend(nl.newtonian(lr=dt**2), net, net.q0, steps=steps)
    outputs = torch.stack([net.outputs(q)[:, 0] for q in run.q])
    times = dt * torch.arange(steps + 1, dtype=torch.float64)
    kernel, targets = nl.ntk(net, x, output=0), y[:, 0]
    foreseen = nl.linearized_dynamics(kernel, outputs[0], targets, times, nl.newtonian())
    rates, modes = torch.linalg.eigh(kernel)
    growth = torch.cosh(rates.clamp(min=0).sqrt() * times[:, None])
    printed = targets + (growth * (modes.T @ (outputs[0] - targets))) @ modes.T
    distance = (foreseen - outputs[0]).norm()
    errors = [float((outputs - guess).norm() / distance) for guess in (foreseen, printed)]
    return Forecast(outputs, foreseen, printed, *errors)


class RateOfOutputs(NamedTuple):
    r"""What changes the rates :math:`\dot u` of a ReLU network's outputs, in every step of a run.

    Attributes:
        times: (T,).
        rate: (T, samples).
        push, bend: :math:`J\ddot q` and :math:`\langle\dot q, \nabla^2 u\,\dot q\rangle`, (T, samples).
        kick: what a crossing of kinks between two times has given, (T - 1, samples).
        crossed: whether any preactivation changed its sign, (T - 1,).
    """

    times: Tensor
    rate: Tensor
    push: Tensor
    bend: Tensor
    kick: Tensor
    crossed: Tensor

    @property
    def gained(self) -> dict[str, Tensor]:
        """The integrals of the three terms up to every time."""
        dt = self.times[1] - self.times[0]
        kicks = torch.cat([torch.zeros_like(self.kick[:1]), self.kick.cumsum(0)])
        return {"push": dt * self.push.cumsum(0), "bend": dt * self.bend.cumsum(0), "kicks": kicks}

    @property
    def unexplained(self) -> float:
        """The share of the rate gained in the run that the three terms do not explain."""
        dt = self.times[1] - self.times[0]
        gained = self.rate[-1] - self.rate[0]
        explained = dt * torch.trapezoid(self.push + self.bend, dim=0) + self.kick.sum(0)
        return float((gained - explained).norm() / gained.norm())


def rate_of_outputs(net: nl.FlatLoss, x: Tensor, *, dt: float = 0.005, steps: int = 300) -> RateOfOutputs:
    r"""Follow a ReLU network with one hidden layer in small Newtonian steps and count the kicks of its kinks.

    Where a preactivation :math:`z_{ik}` passes zero, :math:`\dot u_i` jumps by :math:`a_k|\dot z_{ik}|/\sqrt n`.

    Args:
        net: loss of a network ``mlp((d, n, 1), "relu", init="ntk")``.
        x: its inputs, (N, d).
        dt: time step.
        steps: how many.
    """
    run = nl.descend(nl.newtonian(lr=dt**2), net, net.q0, steps=steps)
    q, v, a = run.q[1:], (run.v[1:] + run.v[:-1]) / 2, run.v.diff(dim=0) / dt
    terms = vmap(lambda *state: tuple(nl.output_motion(net, *state)))(q, v, a)
    rate, push, bend = (term[..., 0] for term in terms)
    incoming, outgoing = (torch.stack(rows) for rows in zip(*map(_layers(net), q), strict=True))
    z = x @ incoming.mT / x.shape[1] ** 0.5  # (T, samples, width)
    crossing = (z[1:] > 0) != (z[:-1] > 0)
    jumps = crossing * z.diff(dim=0).abs() * outgoing[1:]
    kick = jumps.sum(2) / dt / z.shape[2] ** 0.5
    times = dt * torch.arange(1, steps + 1, dtype=torch.float64)
    return RateOfOutputs(times, rate, push, bend, kick, crossing.any(2).any(1))


def _layers(net: nl.FlatLoss):
    return lambda point: tuple(net.unflatten(point).values())


def rate_left_over(net: nl.FlatLoss, time: float) -> tuple[float, float]:
    """The share of the rate gained that the push alone, and push and bend together, leave unexplained.

    Newtonian dynamics from rest; both terms are integrated beside the state.
    """

    def push_and_bend(t, q, v):
        return torch.stack(nl.output_motion(net, q, v, -grad(net)(q))[1:])

    span: dict[str, Any] = {"t_span": (0, time), "t_eval": [0, time], "rtol": 1e-10}
    run = nl.integrate(nl.newtonian(), net, net.q0, integrand=push_and_bend, **span)
    gained = nl.output_motion(net, run.q[1], run.v[1], run.v[1]).rate
    assert run.integral is not None
    push, bend = run.integral[-1]
    by_push, by_both = (float((gained - part).norm() / gained.norm()) for part in (push, push + bend))
    return by_push, by_both


def exponent_of_extremes(widths: Sequence[float]) -> float:
    r"""The exponent of :math:`x_n/\sqrt n`, :math:`x_n` what one of n Gaussian numbers exceeds on either side."""
    n = torch.as_tensor(widths, dtype=torch.float64)
    extreme = torch.special.ndtri(1 - 0.5 / n) / n.sqrt()
    return -nl.convergence_order((1 / n).tolist(), extreme.tolist())


def band(axis, sizes, curve: dict, name: str, color: str, label: str) -> None:
    """A stored geometric mean over seeds with its standard error, on a log-log panel."""
    level, error = (torch.tensor(curve[key]) for key in (name, f"{name}_error"))
    shade = {"color": COLORS[color], "alpha": 0.3, "linewidth": 0}
    axis.fill_between(sizes, level * torch.exp(-error), level * torch.exp(error), **shade)
    axis.loglog(sizes, curve[name], color=COLORS[color], label=label)
