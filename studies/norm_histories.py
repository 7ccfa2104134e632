"""The norms of some weights during a training, and all that their laws ask for, step by step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from studies.small_trainings import Batches

LAGS = 60  # of the updates' own autocorrelation: six memories of a momentum of 0.9


@dataclass(frozen=True)
class History:
    r"""What was measured before, or in, each step; shape ``(T, N)`` for ``N`` weights unless it says otherwise.

    Attributes:
        names: of the weights.
        norms: :math:`|W|` before the step.
        grad_norms: :math:`|g|`.
        averages: :math:`|\bar g|^2/|\hat g|^2` of the momentum's average of unit gradients; its windowed ratio is P.
        update_norms: :math:`|u|`, where :math:`W' = (1 - \eta\lambda) W - \eta u`.
        alignments: cosine of weight and update.
        memory: :math:`S` of single steps; mean weighted with :math:`|u|^2` is the S of a window.
        angles: turn of the weight in the step, in radians.
        rates: of the first weight, shape ``(T,)``.
        losses: shape ``(T,)``.
        settings: of the first weight: ``rule``, ``weight_decay``, ``momentum``, ``decoupled``.
    """

    names: tuple[str, ...]
    norms: Tensor
    grad_norms: Tensor
    averages: Tensor
    update_norms: Tensor
    alignments: Tensor
    memory: Tensor
    angles: Tensor
    rates: Tensor
    losses: Tensor
    settings: dict = field(default_factory=dict)


class _Follower:
    """One weight's measurements."""

    def __init__(self, weight: Tensor, group: dict):
        self.weight, self.group = weight, group
        self.momentum, self.keep = group.get("momentum", 0.0), 1 - group["lr"] * group["weight_decay"]
        self.average = torch.zeros_like(weight, dtype=torch.float64)
        self.past = torch.zeros_like(weight, dtype=torch.float64)  # sum of keep^l u_(n-l)
        self.updates: deque[Tensor] = deque(maxlen=LAGS)

    def before(self) -> None:
        self.old = self.weight.detach().double().clone()
        assert self.weight.grad is not None
        self.gradient = self.weight.grad.double()

    def after(self, *, decoupled: bool) -> list[float]:
        rate = self.group["lr"]
        decay = self.group["weight_decay"] if decoupled else 0.0
        old, new, r = self.old, self.weight.detach().double(), self.old.norm()
        unit = self.gradient * r
        self.average.mul_(self.momentum).add_(unit, alpha=1 - self.momentum)
        update = ((1 - rate * decay) * old - new) / rate if rate else torch.zeros_like(old)
        squared = update.square().sum().clamp(min=1e-300)
        memory = 1 + 2 * (update * self.past).sum() / squared
        if len(self.updates) == LAGS:
            self.past.sub_(self.updates[0], alpha=self.keep**LAGS)
        self.past.add_(update).mul_(self.keep)
        self.updates.append(update)
        cosine = (old * update).sum() / (r * squared.sqrt())
        turn = 2 * torch.asin((old / r - new / new.norm()).norm().clamp(max=2) / 2)
        share = self.average.square().sum() / unit.square().sum().clamp(min=1e-300)
        values = [r, self.gradient.norm(), share, squared.sqrt(), cosine, memory, turn]
        return [float(value) for value in values]


def _group_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict:
    return next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))


def follow(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    weights: Sequence[str],
    steps: int,
    *,
    schedule: Callable[[int], float] | None = None,
    beside: torch.optim.Optimizer | None = None,
) -> History:
    """Train for some steps and keep what the laws of the named weights ask for.

    Args:
        optimizer: the one that moves the named weights.
        schedule: the factor of its rate at each step.
        beside: an optimizer of the other parameters, on the same schedule.
    """
    parameters = dict(model.named_parameters())
    sgd = isinstance(optimizer, torch.optim.SGD)
    optimizers = [each for each in (optimizer, beside) if each is not None]
    groups = [(group, group["lr"]) for each in optimizers for group in each.param_groups]
    own = [_group_of(parameters[name], optimizer) for name in weights]
    followers = [_Follower(parameters[name], group) for name, group in zip(weights, own, strict=True)]
    rows, rates, losses = [], [], []
    for step in range(steps):
        for group, first in groups:
            group["lr"] = first * (schedule(step) if schedule else 1.0)
        inputs, targets = next(batches)
        model.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        for follower in followers:
            follower.before()
        for each in optimizers:
            each.step()
        rows.append([follower.after(decoupled=not sgd) for follower in followers])
        rates.append(own[0]["lr"])
        losses.append(float(loss.detach()))
    table = torch.tensor(rows, dtype=torch.float64)
    settings = {
        "rule": "sgd" if sgd else "normalized",
        "weight_decay": own[0]["weight_decay"],
        "momentum": own[0].get("momentum", 0.0) if sgd else 0.0,
        "decoupled": not sgd,
    }
    norms, grad_norms, averages, update_norms, alignments, memory, angles = table.unbind(dim=2)
    return History(
        names=tuple(weights),
        norms=norms,
        grad_norms=grad_norms,
        averages=averages,
        update_norms=update_norms,
        alignments=alignments,
        memory=memory,
        angles=angles,
        rates=torch.tensor(rates, dtype=torch.float64),
        losses=torch.tensor(losses),
        settings=settings,
    )
