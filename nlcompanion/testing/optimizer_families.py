r"""What each family of optimisers promises: a table of data, one row a family.

A rule of one's own is declared in the same words: ``check_optimizer(factory, laws=OptimizerLaws(...))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from nlcompanion.testing import optimizer_white as white
from nlcompanion.testing.optimizer_laws import Group, OptimizerLaws
from nlcompanion.testing.optimizer_white import asgd_rate


def _sign_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g.sign()


def _adam_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g / (g.abs() + group["eps"])


def _plain_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g


def _sgd_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    ahead = 1 + group.get("momentum", 0.0) if group.get("nesterov") else 1.0
    return group["lr"] * ahead * g


def _nadam_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    beta, psi = group["betas"][0], group["momentum_decay"]
    now, then = (beta * (1 - 0.5 * 0.96 ** (n * psi)) for n in (1, 2))
    return group["lr"] * (1 + then * (1 - beta) / (1 - now * then)) * g / (g.abs() + group["eps"])


def _rms_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    raw = (1 - group["alpha"]) ** 0.5
    spread = raw * (group["alpha"] ** 0.5 if group.get("centered") else 1.0)
    return group["lr"] * g / (spread * g.abs() + group["eps"])


def _adagrad_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    return group["lr"] * g / ((group.get("initial_accumulator_value", 0.0) + g.square()).sqrt() + group["eps"])


def _adadelta_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    eps, kept = group["eps"], 1 - group["rho"]
    return group["lr"] * (eps / (kept * g.square() + eps)) ** 0.5 * g


def _muon_scale(group: Group, shape: tuple[int, ...]) -> float:
    rows, columns = shape
    if group.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def _muon_values(group: Group, shape: tuple[int, ...]) -> tuple[float, float]:
    scale = group["lr"] * _muon_scale(group, shape)
    return 0.3 * scale, 1.3 * scale  # the band of five Newton-Schulz steps, small singular values included


def _adafactor_step(group: Group, g: torch.Tensor) -> torch.Tensor:
    """From zero weights: a matrix's squares are estimated by their row and column means."""
    squares = g.square()
    if g.ndim > 1:
        rows, columns = squares.mean(-1, keepdim=True), squares.mean(-2, keepdim=True)
        squares = rows @ columns / rows.mean(-2, keepdim=True)
    update = g / squares.sqrt()
    clipped = max(1.0, float(update.square().mean().sqrt()) / group["d"])
    return group["eps"][1] * min(group["lr"], 1.0) * update / clipped


def _asgd_kept(group: Group, n: int) -> float:
    return 1 - group["lambd"] * asgd_rate(group, n)


_ENTRYWISE = ("signs", "permutations")
_FLOAT32 = torch.finfo(torch.float32).eps  # NAdam keeps a product in float32 until it is loaded, ASGD its rate
# Muon: six times the random walk of five Newton-Schulz steps, three rounded products each
_BFLOAT16 = 6 * math.sqrt(15) * torch.finfo(torch.bfloat16).eps / 2


def _decay_of(group: Group) -> str:
    return "decoupled" if group.get("decoupled_weight_decay") else "coupled"


def _sgd(group: Group) -> OptimizerLaws:
    return OptimizerLaws(_decay_of(group), 1, _sgd_step, None, (*_ENTRYWISE, "rotations"), white.sgd_rms)


def _adam(group: Group) -> OptimizerLaws:
    return OptimizerLaws(_decay_of(group), 0, _adam_step, None, _ENTRYWISE, white.adam_white(group), eps_degree=1)


def _adamw(group: Group) -> OptimizerLaws:
    return replace(_adam(group), decay="decoupled")


def _nadam(group: Group) -> OptimizerLaws:
    rms = white.many_squares(white.nadam_rms, group["betas"][1])
    return OptimizerLaws(_decay_of(group), 0, _nadam_step, None, _ENTRYWISE, rms, tolerance=_FLOAT32, eps_degree=1)


def _radam(group: Group) -> OptimizerLaws:
    """No variance yet in the first steps, where it is SGD with momentum."""
    beta = group["betas"][1]
    limit = 2 / (1 - beta) - 1
    rectified = [n for n in range(1, 50) if limit - 2 * n * beta**n / (1 - beta**n) > 5]
    start = min(rectified, default=50)
    degree = lambda n: 1.0 if n < start else 0.0  # noqa: E731
    rms = white.many_squares(white.radam_rms, beta)
    return OptimizerLaws(_decay_of(group), degree, _plain_step, None, _ENTRYWISE, rms, eps_degree=1)


def _adamax(group: Group) -> OptimizerLaws:
    rms = white.many_squares(white.adamax_rms, group["betas"][1])
    return OptimizerLaws("coupled", 0, _adam_step, None, _ENTRYWISE, rms, eps_degree=1)


def _rmsprop(group: Group) -> OptimizerLaws:
    rms = white.many_squares(white.rmsprop_rms, group["alpha"])
    return OptimizerLaws("coupled", 0, _rms_step, None, _ENTRYWISE, rms, eps_degree=1)


def _adagrad(group: Group) -> OptimizerLaws:
    degree = None if group.get("initial_accumulator_value") else 0
    return OptimizerLaws("coupled", degree, _adagrad_step, None, _ENTRYWISE, white.adagrad_rms, eps_degree=1)


def _adadelta(group: Group) -> OptimizerLaws:
    rms = white.many_squares(white.adadelta_rms, group["rho"])
    return OptimizerLaws("coupled", None, _adadelta_step, None, _ENTRYWISE, rms, eps_degree=2)


def _rprop(group: Group) -> OptimizerLaws:
    return OptimizerLaws("none", 0, _sign_step, None, _ENTRYWISE, stops=False)


def _asgd(group: Group) -> OptimizerLaws:
    """It shrinks the weights by its ``lambd`` beside the decay, which is L2; its rates are kept in float32."""
    laws = OptimizerLaws("coupled", 1, _plain_step, None, (*_ENTRYWISE, "rotations"), white.asgd_rms)
    return replace(laws, tolerance=_FLOAT32, kept=_asgd_kept)


def _adafactor(group: Group) -> OptimizerLaws:
    """Its steps are in proportion to the weights."""
    laws = OptimizerLaws("decoupled", 0, _adafactor_step, None, ("signs",), white.adafactor_rms)
    return replace(laws, elementwise=False, sized=True)


def _muon(group: Group) -> OptimizerLaws:
    laws = OptimizerLaws("decoupled", 0, None, _muon_values, ("orthogonal",), white.muon_rms)
    return replace(laws, elementwise=False, ndim=2, tolerance=_BFLOAT16)


def _lion(group: Group) -> OptimizerLaws:
    """Chen et al. (arXiv:2302.06675): the sign of a mean."""
    return OptimizerLaws("decoupled", 0, _sign_step, None, _ENTRYWISE, white.lr_rms)


def _shampoo(group: Group) -> OptimizerLaws:
    """Gupta et al. (arXiv:1802.09568), and SOAP, Adam in its eigenbasis (arXiv:2409.11321): of matrices."""
    return OptimizerLaws("decoupled", 0, equivariance=("orthogonal",), elementwise=False, ndim=2)


FAMILIES: dict[str, Callable[[Group], OptimizerLaws]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adamw,
    "NAdam": _nadam,
    "RAdam": _radam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
    "Rprop": _rprop,
    "ASGD": _asgd,
    "Adafactor": _adafactor,
    "Muon": _muon,
    "Lion": _lion,
    "Shampoo": _shampoo,
    "SOAP": _shampoo,
}


def laws_of_family(name: str, group: Group) -> OptimizerLaws:
    """A row of the table, for the settings of a group."""
    try:
        laws = FAMILIES[name](group)
        if laws.first_step is not None:
            laws.first_step(group, torch.ones(1, 1))
        if laws.white_rms is not None:
            laws.white_rms(group, 1)
    except KeyError as missing:
        raise ValueError(
            f"the row {name} reads {missing} of the optimiser's group, which has {', '.join(group)}; "
            "declare laws=OptimizerLaws(...) in its place"
        ) from missing
    return laws


def known_laws(optimizer: torch.optim.Optimizer) -> OptimizerLaws | None:
    """The row of this optimiser's own class, or None if the table has none."""
    name = type(optimizer).__name__
    if type(optimizer).__module__.split(".")[0] != "torch" or name not in FAMILIES:
        return None
    return laws_of_family(name, optimizer.param_groups[0])
