"""What the optimizers are set to at a step, and which parameters take part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nlcompanion.laws.under_optimizers import StepRates, fading, step_rates

_EMPTY: dict[str, Any] = {}
_READ = ("momentum", "dampening", "nesterov", "weight_decay", "decoupled_weight_decay", "maximize")


@dataclass(frozen=True)
class Settings:
    """What the optimizers are set to.

    Attributes:
        key: what they were read from; the same key has the same settings.
        groups: of each parameter.
        rates: of each parameter.
        rate: of all parameters, if these are the same.
        remembers: whether a buffer of earlier gradients takes part.
        keeps_buffer: whether each parameter's step is its buffer times the rate.
        lr, inverse_lr: of each parameter; the inverse of 0 counts as 0.
        fading: by how much decay shrinks the logarithm of the squares in a step, at most.
        is_idle: whether some parameter takes no part.
    """

    key: tuple
    groups: dict[str, Mapping[str, Any]]
    rates: dict[str, StepRates]
    rate: StepRates | None
    remembers: bool
    keeps_buffer: bool
    lr: dict[str, float]
    inverse_lr: dict[str, float]
    fading: float
    is_idle: bool


class StepSettings:
    """Reads the settings of each step from the optimizers themselves.

    Attributes:
        idle: parameters at rest: why, and since which step.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter], owners: Mapping[str, int]
    ):
        self._optimizers, self._parameters, self._owners = optimizers, parameters, owners
        is_sgd = [isinstance(one, torch.optim.SGD) for one in optimizers]
        self._kept = [(p, owners[name], is_sgd[owners[name]]) for name, p in parameters.items()]
        self._known_groups: dict[str, Mapping[str, Any]] = {}
        self._last: Settings | None = None
        self.idle: dict[str, tuple[str, int]] = {}

    def _owner(self, name: str) -> Optimizer:
        return self._optimizers[self._owners[name]]

    def buffers(self) -> list[Tensor | None]:
        """The momentum buffers of SGD; what other optimizers call so is something else."""
        states = [one.state for one in self._optimizers]  # loading a checkpoint makes new ones
        return [  # a state's [] would add entries to it
            states[k].get(p, _EMPTY).get("momentum_buffer") if is_sgd else None for p, k, is_sgd in self._kept
        ]

    def read(self, buffers: list[Tensor | None], step: int) -> Settings:
        """The settings now; where nothing has changed since the last step, those of the last step.

        Args:
            buffers: of all parameters, from :meth:`buffers`.
            step: the number of the step that is about to be taken.
        """
        groups = [group for one in self._optimizers for group in one.param_groups]
        key = (
            [(float(group["lr"]), *[group.get(name) for name in _READ]) for group in groups],
            [list(map(id, group["params"])) for group in groups],
            [p.grad is not None and p.requires_grad for p in self._parameters.values()],
            [b is None for b in buffers],
        )
        if self._last is None or self._last.key != key:
            self._last = self._made_of(key, buffers, step)
        return self._last

    def _made_of(self, key: tuple, of_all: list[Tensor | None], step: int) -> Settings:
        now = self._groups()
        self._known_groups |= now
        groups = dict(self._known_groups)  # those of parameters that were taken out of their optimizer as they were
        rates, buffers = {}, dict(zip(self._parameters, of_all, strict=True))
        for name, p in self._parameters.items():
            rates[name] = step_rates(self._owner(name), groups[name], buffers[name] is not None)
            if p.grad is None or name not in now:
                rates[name] = rates[name]._replace(buffer=0.0, parameter=0.0)
            reason = _why_idle(p, name in now)
            if reason:
                self.idle[name] = reason, self.idle.get(name, (reason, step))[1]
            else:
                self.idle.pop(name, None)
        lr = {name: float(group["lr"]) for name, group in groups.items()}
        return Settings(
            key=key,
            groups=groups,
            rates=rates,
            rate=next(iter(rates.values())) if len(set(rates.values())) == 1 else None,
            remembers=any(rate.buffer for rate in rates.values()),
            keeps_buffer=not any(
                group.get("nesterov") or (buffers[name] is not None and not group.get("momentum"))  # laid aside
                for name, group in groups.items()
            ),
            lr=lr,
            inverse_lr={name: 1 / x if x else 0.0 for name, x in lr.items()},
            fading=max((fading(group) for group in groups.values()), default=0.0),
            is_idle=bool(self.idle),
        )

    def _groups(self) -> dict[str, Mapping[str, Any]]:
        of_ids = {id(p): group for one in self._optimizers for group in one.param_groups for p in group["params"]}
        return {name: of_ids[id(p)] for name, p in self._parameters.items() if id(p) in of_ids}


def _why_idle(p: nn.Parameter, is_held: bool) -> str | None:
    if not is_held:
        return "left the optimizer"
    if not p.requires_grad:
        return "was frozen (requires_grad is off)"
    return "was without a gradient" if p.grad is None else None
