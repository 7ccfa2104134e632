r"""What each family of optimisers promises: a table of data, one row a family.

A rule of one's own is declared in the same words: ``check_optimizer(factory, laws=OptimizerLaws(...))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nlcompanion._arguments import choice, described, finite_number, flag, function, integer, names, number_from

Group = dict[str, Any]
_DECAYS = ("none", "coupled", "decoupled", "unknown")
_EQUIVARIANCES = ("signs", "permutations", "rotations", "orthogonal")


@dataclass(frozen=True)
class OptimizerLaws:
    r"""The laws of an update rule; None or an empty field says that the rule promises nothing there.

    Attributes:
        decay: ``"decoupled"``: weights shrink by :math:`1 - \eta\lambda` a step, whatever the gradient; ``"coupled"``:
            :math:`\lambda\theta` joins the gradient (L2); ``"none"``.
        degree: what gradients times c do to step n (counted from 1): 0 nothing, 1 everything times c.
        first_step: the first step from zero weights for a gradient of entries near ``g``, number by number, as
            ``first_step(group, g)``; in units of a parameter.
        eps_degree: gradients times c with an ``eps`` times c to this power obey ``degree`` exactly, and ``first_step``
            knows the ``eps``; None if that is not known: what leaving out the ``eps`` changes is allowed for then.
        first_values: the band of the singular values of the first step of a matrix, ``first_values(group, shape)``.
        equivariance: among ``"signs"``, ``"permutations"``, ``"rotations"`` (of all entries of a tensor) and
            ``"orthogonal"`` (from both sides of a matrix).
        white_rms: root mean square of step n (counted from 1) under white gradients of size 1, ``white_rms(group, n)``.
        elementwise: the same numbers in another shape take the same steps.
        ndim: which tensors the rule takes, None for any.
        stops: a learning rate of 0 moves nothing.
        tolerance: relative accuracy of the rule's own arithmetic, where coarser than the parameters'.
    """

    decay: str = "none"
    degree: float | Callable[[int], float] | None = None
    first_step: Callable[[Group, torch.Tensor], torch.Tensor] | None = None
    first_values: Callable[[Group, tuple[int, ...]], tuple[float, float]] | None = None
    equivariance: tuple[str, ...] = ()
    white_rms: Callable[[Group, int], float] | None = None
    elementwise: bool = True
    ndim: int | None = None
    tolerance: float = 0.0
    stops: bool = True
    eps_degree: float | None = None

    def __post_init__(self) -> None:
        choice("decay", self.decay, *_DECAYS)
        if self.degree is not None and not callable(self.degree):
            finite_number("degree", self.degree)
        if self.eps_degree is not None:
            finite_number("eps_degree", self.eps_degree)
        for name in ("degree", "first_step", "first_values", "white_rms"):
            if callable(given := getattr(self, name)):
                function(name, given, f"{name}(...)", 1 if name == "degree" else 2)
            elif given is not None and name != "degree":
                raise TypeError(f"{name} must be a function or None, got {described(given)}")
        object.__setattr__(self, "equivariance", names("equivariance", self.equivariance))
        for kind in self.equivariance:
            choice("equivariance", kind, *_EQUIVARIANCES)
        for name in ("elementwise", "stops"):
            flag(name, getattr(self, name))
        if self.ndim is not None:
            integer("ndim", self.ndim, 0, 64)
        number_from("tolerance", self.tolerance, 0, "it is a relative accuracy")


def _sign_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g.sign()


def _adam_white(group: Group) -> Callable[[Group, int], float] | None:
    """None where v is no mean of many squares, so that it is not near 1."""
    return None if group["amsgrad"] or group["betas"][1] < _LEAST_BETA2 else _adam_rms


def _adam_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g / (g.abs() + group["eps"])


def _plain_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g


def _sgd_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    ahead = 1 + group["momentum"] if group["nesterov"] else 1.0
    return group["lr"] * ahead * g


def _geometric(ratio: float, count: int) -> float:
    """``1 + ratio + ... + ratio**(count - 1)``."""
    return (1 - ratio**count) / (1 - ratio) if ratio != 1 else float(count)


def _sgd_rms(group: Group, n: int) -> float:
    """Of what the buffer has gathered in n steps; the first gradient enters it whole, whatever the dampening."""
    beta, share = group["momentum"], 1 - group["dampening"]
    if group["nesterov"]:
        return group["lr"] * math.sqrt((1 + beta) ** 2 + beta**4 * _geometric(beta**2, n - 1))
    if not beta:
        return group["lr"]
    first = beta ** (2 * (n - 1))
    return group["lr"] * math.sqrt(first + share**2 * _geometric(beta**2, n - 1))


def _adam_rms(group: Group, n: int) -> float:
    r"""Of :math:`(1 - \beta) \sum_k \beta^{n - k} g_k / (1 - \beta^n)`, where v is 1."""
    beta = group["betas"][0]
    return group["lr"] / (1 + group["eps"]) * math.sqrt((1 - beta) / (1 + beta) * (1 + beta**n) / (1 - beta**n))


def _nadam_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    beta, psi = group["betas"][0], group["momentum_decay"]
    now, then = (beta * (1 - 0.5 * 0.96 ** (n * psi)) for n in (1, 2))
    return group["lr"] * (1 + then * (1 - beta) / (1 - now * then)) * g / (g.abs() + group["eps"])


def _rms_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    raw = (1 - group["alpha"]) ** 0.5
    spread = raw * (group["alpha"] ** 0.5 if group["centered"] else 1.0)
    return group["lr"] * g / (spread * g.abs() + group["eps"])


def _adagrad_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g / ((group["initial_accumulator_value"] + g.square()).sqrt() + group["eps"])


def _adadelta_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    eps, kept = group["eps"], 1 - group["rho"]
    return group["lr"] * (eps / (kept * g.square() + eps)) ** 0.5 * g


def _muon_scale(group: Group, shape: tuple[int, ...]) -> float:
    rows, columns = shape
    if group["adjust_lr_fn"] == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def _muon_values(group: Group, shape: tuple[int, ...]) -> tuple[float, float]:
    scale = group["lr"] * _muon_scale(group, shape)
    return 0.3 * scale, 1.3 * scale  # the band of five Newton-Schulz steps, small singular values included


_ENTRYWISE = ("signs", "permutations")
_LEAST_BETA2 = 0.9  # v is then a mean of 19 squares, (1 + beta) / (1 - beta), and 1/v by a tenth above 1 at most
_FLOAT32 = torch.finfo(torch.float32).eps  # NAdam keeps a product in float32 until it is loaded, ASGD its rate
# Muon: six times the random walk of five Newton-Schulz steps, three rounded products each
_BFLOAT16 = 6 * math.sqrt(15) * torch.finfo(torch.bfloat16).eps / 2


def _decay_of(group: Group) -> str:
    return "decoupled" if group.get("decoupled_weight_decay") else "coupled"


def known_laws(optimizer: torch.optim.Optimizer) -> OptimizerLaws | None:
    """The row of this optimiser's own class, or None if the table has none."""
    name, group = type(optimizer).__name__, optimizer.param_groups[0]
    if type(optimizer).__module__.split(".")[0] != "torch":
        return None
    decay = _decay_of(group)
    if name == "SGD":
        return OptimizerLaws(decay, 1, _sgd_step, None, (*_ENTRYWISE, "rotations"), _sgd_rms)
    if name == "Adam":
        return OptimizerLaws(decay, 0, _adam_step, None, _ENTRYWISE, _adam_white(group), eps_degree=1)
    if name == "AdamW":
        return OptimizerLaws("decoupled", 0, _adam_step, None, _ENTRYWISE, _adam_white(group), eps_degree=1)
    if name == "RAdam":  # no variance yet in the first steps, where it is SGD with momentum
        beta = group["betas"][1]
        limit = 2 / (1 - beta) - 1
        rectified = [n for n in range(1, 50) if limit - 2 * n * beta**n / (1 - beta**n) > 5]
        start = min(rectified, default=50)
        return OptimizerLaws(decay, lambda n: 1.0 if n < start else 0.0, _plain_step, None, _ENTRYWISE, eps_degree=1)
    rows = {
        "NAdam": OptimizerLaws(decay, 0, _nadam_step, None, _ENTRYWISE, tolerance=_FLOAT32, eps_degree=1),
        "Adamax": OptimizerLaws("coupled", 0, _adam_step, None, _ENTRYWISE, eps_degree=1),
        "RMSprop": OptimizerLaws("coupled", 0, _rms_step, None, _ENTRYWISE, eps_degree=1),
        "Adagrad": OptimizerLaws(
            "coupled",
            None if group.get("initial_accumulator_value") else 0,
            _adagrad_step,
            None,
            _ENTRYWISE,
            eps_degree=1,
        ),
        "Adadelta": OptimizerLaws("coupled", None, _adadelta_step, None, _ENTRYWISE, eps_degree=2),
        "Rprop": OptimizerLaws("none", 0, _sign_step, None, _ENTRYWISE, stops=False),
        "ASGD": OptimizerLaws("unknown", 1, _plain_step, None, (*_ENTRYWISE, "rotations"), tolerance=_FLOAT32),
        "Adafactor": OptimizerLaws("unknown", 0, None, None, _ENTRYWISE[:1], None, elementwise=False),
        "Muon": OptimizerLaws(
            "decoupled", 0, None, _muon_values, ("orthogonal",), None, elementwise=False, ndim=2, tolerance=_BFLOAT16
        ),
    }
    return rows.get(name)
