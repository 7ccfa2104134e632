"""What the law of the radius needs to know of an optimiser, read from the optimiser itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlcompanion.dynamics.learning_rules import sgd
from nlcompanion.monitoring.step_hooks import innermost, steps_as_torch_does

_PASS_ON = {"accelerate", "lightning", "pytorch_lightning"}  # whose wrappers leave the weights to the optimizer inside


@dataclass(frozen=True)
class RadiusSettings:
    """The settings of a step of SGD, by the names of ``torch.optim.SGD``.

    Attributes:
        decoupled: whether decay acts on the weight alone, past the momentum.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.lr != 0:  # a schedule may rest at 0, where the momentum goes on averaging
            sgd(self.lr, self.momentum, self.weight_decay)
        if not self.dampening < 1:
            raise ValueError(f"dampening = {self.dampening:g} lets no gradient into the buffer; it must be below 1")

    def at(self, lr: float) -> RadiusSettings:
        """The same at another step size."""
        return replace(self, lr=lr)

    @property
    def step(self) -> float:
        """The step size of a gradient that enters the buffer."""
        return self.lr * (1 - self.dampening)

    @property
    def fading(self) -> float:
        """What decay takes from the logarithm of the fourth power of the length in a step."""
        decay = self.weight_decay * self.lr
        return 4 * decay if self.decoupled else 4 * decay * (1 - self.dampening) / (1 - self.momentum)

    def source(self, plain: Tensor, averaged: Tensor | None) -> Tensor:
        r"""What drives the length: :math:`R_0 + 2c\sum\beta^l R_l`.

        Args:
            plain: the unit gradient's squared length, :math:`R_0`.
            averaged: that of its momentum's average, which is
                :math:`\frac{1-\beta}{1+\beta}(R_0 + 2\sum\beta^l R_l)` in the mean; None for independent gradients.
        """
        if averaged is None:
            return plain
        beta = self.momentum
        heavy_ball = averaged * (1 + beta) / (1 - beta)
        return (1 - beta) * plain + beta * heavy_ball if self.nesterov else heavy_ball


def sgd_that_holds(weight: Tensor, optimizer: object) -> torch.optim.SGD:
    """The SGD behind an optimizer or its wrapper, if it moves the weight.

    Raises:
        TypeError: its steps are not those of ``torch.optim.SGD``.
        ValueError: it does not hold the weight.
    """
    inner, wrapped = innermost(optimizer)
    name = type(inner).__name__
    if wrapped and type(optimizer).__module__.partition(".")[0] not in _PASS_ON:
        raise TypeError(
            f"{type(optimizer).__name__} is wrapped around {name} and may write to the weights itself, as Lookahead "
            f"and averaging do, for which no law of the radius is known; if it does not, pass the {name} inside"
        )
    if not isinstance(inner, torch.optim.SGD):
        raise TypeError(
            f"the law of the radius is known for torch.optim.SGD, got {name}, whose steps are not linear in the "
            "gradients; watch it without a law (Monitor), or compare with what equilibrium() says of its angle"
        )
    if not steps_as_torch_does(inner):
        raise TypeError(
            f"{name} has a step of its own, for which no law of the radius is known; give the tracker plain "
            "torch.optim.SGD, and clip or change gradients before the update"
        )
    _group(inner, weight)
    return inner


def settings_of(optimizer: torch.optim.SGD, weight: Tensor) -> RadiusSettings:
    """The settings with which an optimizer moves a weight now."""
    group = _group(optimizer, weight)
    return RadiusSettings(
        float(group["lr"]),
        float(group["momentum"]),
        float(group["weight_decay"]),
        float(group["dampening"]) if group["momentum"] else 0.0,
        bool(group["nesterov"]),
        bool(group.get("decoupled_weight_decay", False)),
    )


def _group(optimizer: torch.optim.SGD, weight: Tensor) -> dict:
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            return group
    raise ValueError(
        f"the optimizer does not hold this weight of shape {tuple(weight.shape)}; give the parameter itself and not "
        "a copy, and the optimizer that moves it"
    )
