r"""Made-up scale-invariant weights: gradients whose persistence is known, and a real RMSProp beside one of them.

No network and no data: a slope is handed to heavy ball, of unit size at unit length and at right angles to the weight.
It keeps its direction round a circle (``rho=1``), or its direction is noise with autocorrelation :math:`\rho^l`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import nlcompanion as nl

LR = 0.05
TIME_CONSTANT = 1500  # steps, of r^4, at every momentum


def decay(beta: float) -> float:
    """The weight decay that gives the time constant at this momentum."""
    return (1 - beta) / (4 * LR * TIME_CONSTANT)


def persistence(beta: float, rho: float) -> float:
    r"""P for gradients with :math:`\rho_l = \rho^l`, in closed form.

    Example:
        >>> round(persistence(0.9, 1.0), 12), round(1 / persistence(0.9, 0.0), 12)
        (1.0, 19.0)
    """
    return (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)


def settled(beta: float, rho: float = 1.0) -> nl.Equilibrium:
    """The equilibrium at this momentum; of steady slopes, TK's, unless ``rho`` says otherwise."""
    return nl.equilibrium(LR, decay(beta), beta, grad_norm=1.0, persistence=persistence(beta, rho))


class Ride(NamedTuple):
    """Squared lengths (steps + 1, weights) and turns per step (steps, weights)."""

    r_squared: Tensor
    turn: Tensor


def ride(rhos: Sequence[float], betas: Sequence[float], radii: Sequence[float], *, steps=6000, seed=0) -> Ride:
    """Heavy ball on one weight of 64 dimensions for each entry of the three sequences."""
    rho, beta, radius = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (rhos, betas, radii))
    random = torch.Generator().manual_seed(seed)
    q = radius * torch.eye(1, 64, dtype=torch.float64)
    noise, buffer = torch.zeros(len(q), 64, dtype=torch.float64), torch.zeros(len(q), 64, dtype=torch.float64)
    weight_decay = (1 - beta) / (4 * LR * TIME_CONSTANT)
    lengths, directions = [], None
    turns = []
    for _ in range(steps + 1):
        r = q.norm(dim=1, keepdim=True)
        unit = q / r
        lengths.append(r[:, 0] ** 2)
        if directions is not None:
            turns.append((unit - directions).norm(dim=1))
        directions = unit
        fresh = torch.randn(unit.shape, generator=random, dtype=torch.float64)
        noise = rho * noise + (1 - rho**2).sqrt() * fresh
        along_circle = torch.stack([-unit[:, 1::2], unit[:, ::2]], dim=2).flatten(1)
        slope = torch.where(rho == 1, along_circle, noise)
        tangent = normalize(slope - unit * (unit * slope).sum(1, keepdim=True))
        buffer = beta * buffer + tangent / r + weight_decay * q
        q = q - LR * buffer
    return Ride(torch.stack(lengths), torch.stack(turns))


class Beside(NamedTuple):
    """SGD on a weight in a plane beside torch's RMSProp on its angle: angles travelled, and r^4 / A beside G."""

    sgd_angle: Tensor
    rmsprop_angle: Tensor
    fourth_power: Tensor
    accumulator: Tensor


def rmsprop_beside(*, beta: float = 0.9, forgets: float | None = None, steps: int = 6000) -> Beside:
    r"""``torch.optim.SGD`` on a scale-invariant weight, and ``torch.optim.RMSprop`` with the twin's settings.

    The slope at unit length, :math:`1 + \cos(\theta)/2`, changes along the way round, so both have something to follow.

    Args:
        beta: SGD's momentum.
        forgets: RMSProp's :math:`1-\rho`; the twin's when None.
        steps: how many.
    """
    twin = nl.rmsprop_twin(LR, decay(beta), beta)
    alpha = twin.rho if forgets is None else 1 - forgets
    q = torch.tensor([(0.5 * twin.amplitude) ** 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    angle = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    heavy_ball = torch.optim.SGD([q], lr=LR, momentum=beta, weight_decay=decay(beta))
    rmsprop = torch.optim.RMSprop([angle], lr=twin.lr, alpha=alpha, eps=1e-300)
    rmsprop.state[angle] = {
        "step": torch.tensor(0.0),
        "square_avg": torch.tensor([0.5], dtype=torch.float64),
    }
    seen, travelled = [], 0.0
    for _ in range(steps):
        at = q.detach().clone()
        r = at.norm()
        unit = at / r
        tangent = torch.stack([-unit[1], unit[0]])
        q.grad = -(1 + 0.5 * unit[0]) * tangent / r
        angle.grad = -(1 + 0.5 * angle.detach().cos())
        seen.append(
            [travelled, angle.item(), (r**4 / twin.amplitude).item(), rmsprop.state[angle]["square_avg"].item()]
        )
        heavy_ball.step()
        rmsprop.step()
        after = q.detach()
        travelled += torch.atan2(at[0] * after[1] - at[1] * after[0], at @ after).item()
    return Beside(*torch.tensor(seen, dtype=torch.float64).T)


class Balance(NamedTuple):
    """The two sides of TK Eq. 31 at every step, tangent to the sphere, shape (steps, n)."""

    motion: Tensor
    normalised: Tensor
    plain: Tensor


def balance_at_rest(beta: float, size: float, *, steps: int = 200) -> Balance:
    r"""TK Eq. 31 as an equation between vectors, on a weight of six dimensions at equilibrium.

    The slope turns with the weight, in three planes at three frequencies, and has the length ``size`` at unit length.
    The motion's side is :math:`m\ddot{\hat q} + \mu\dot{\hat q}` from differences of successive directions.
    """
    frequencies = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.4, 0.4], dtype=torch.float64)
    q = torch.tensor([1.0, 0.2, 0.5, -0.3, 0.4, 0.6], dtype=torch.float64)
    rest = nl.equilibrium(LR, decay(beta), beta, grad_norm=size)
    q = q / q.norm() * rest.radius
    buffer, path, slopes = torch.zeros(6, dtype=torch.float64), [], []
    for _ in range(4 * TIME_CONSTANT + steps):
        r = q.norm()
        unit = q / r
        around = frequencies * torch.stack([-unit[1], unit[0], -unit[3], unit[2], -unit[5], unit[4]])
        slope = size * normalize(around, dim=0)
        path.append(unit)
        slopes.append(slope)
        buffer = beta * buffer + slope / r + decay(beta) * q
        q = q - LR * buffer
    late, slope = torch.stack(path)[-steps:], torch.stack(slopes)[-steps:][1:-1]
    speed = (late[2:] - late[:-2]) / (2 * LR)
    acceleration = (late[2:] - 2 * late[1:-1] + late[:-2]) / LR**2
    motion = LR * (1 + beta) / 2 * acceleration + (1 - beta) * speed
    across = motion - late[1:-1] * (late[1:-1] * motion).sum(1, keepdim=True)
    return Balance(across, -rest.drive * slope / size, -rest.drive * slope)


def relaxation_steps(beta: float, weight_decay: float) -> float:
    """In how many steps the distance of r^4 from its equilibrium falls by e, measured on a steady slope."""
    rest = nl.equilibrium(LR, weight_decay, beta, grad_norm=1.0)
    assert rest.radius is not None
    radius = rest.radius

    def fourth_powers(stretch: float, steps: int) -> list[float]:
        z, buffer, found = complex(stretch * radius), 0j, []
        turned = complex(1, rest.angular_update)
        buffer = -(turned / abs(turned) - 1) * z / LR  # as if it had been turning so for ever
        for _ in range(steps):
            found.append(abs(z) ** 4)
            buffer = beta * buffer + 1j * z / abs(z) ** 2 + weight_decay * z
            z -= LR * buffer
        return found

    length = int(6 * rest.time_constant_steps + 20 / (1 - beta))
    still, moved = (torch.tensor(fourth_powers(s, length), dtype=torch.float64) for s in (1.0, 1.02))
    distance = (moved - still) / (moved - still)[0]
    return float((distance < torch.e**-1).nonzero()[0])


def gain_of_descents(rates: Sequence[float], *, beta: float, weight_decay: float, time: float = 2.0) -> Tensor:
    """What gradients add to r^4 within a given time, descending a loss of six directions, for each step size."""
    start = torch.tensor([1.0, 0.2, 0.5, -0.3, 0.4, 0.6], dtype=torch.float64)
    gains = []
    for rate in rates:
        q, buffer, lengths = start.clone(), torch.zeros(6, dtype=torch.float64), []
        for _ in range(round(time / rate) + 1):
            lengths.append(q @ q)
            at = q.clone().requires_grad_()
            loss = torch.sin(2 * at / at.norm()).sum()
            (slope,) = torch.autograd.grad(loss, at)
            buffer = beta * buffer + slope + weight_decay * q
            q = q - rate * buffer
        times = rate * torch.arange(len(lengths), dtype=torch.float64)
        gains.append(nl.radius_gain(times, torch.stack(lengths), momentum=beta, weight_decay=weight_decay)[-1])
    return torch.stack(gains)
