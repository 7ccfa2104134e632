"""Laws of what an update does not see: axes, signs and order of its weights, their shapes and groups, an interruption.

The numbers of the items are those of :func:`nlcompanion.testing.check_optimizer`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nlcompanion.testing.optimizer_laws import OptimizerLaws
from nlcompanion.testing.optimizer_trials import Path, Trial, polar_factor
from nlcompanion.testing.report import BROKEN, LAWFUL, LawCheck

Map = Callable[[Tensor], Tensor]


def equivariance(trial: Trial, laws: OptimizerLaws, base: Path) -> list[LawCheck]:
    """Item 5."""
    gradients = trial.gradients
    if laws.tolerance and "orthogonal" in laws.equivariance:  # coarse arithmetic spoils small singular values
        gradients = [[(1 + n / 10) * polar_factor(g) for g in trial.gradients[0]] for n in range(trial.steps)]
        base = trial.run(gradients=gradients)
    checks = []
    for what in laws.equivariance:
        maps = [_map(what, p, trial.generator) for p in trial.start]
        path = trial.run(_mapped(maps, trial.start), [_mapped(maps, row) for row in gradients])
        expected = [_mapped(maps, row) for row in base]
        extra = max(laws.tolerance * 2.5, 120 * trial.unit)
        checks.append(trial.compare(f"{what} commute with the step", path, expected, extra=extra))
    return checks


def _mapped(maps: Sequence[Map], row: Sequence[Tensor]) -> list[Tensor]:
    return [each(t) for each, t in zip(maps, row, strict=True)]


def _map(what: str, like: Tensor, generator: torch.Generator) -> Map:
    """A random one, the same for the weight and for all of its gradients."""
    count = like.numel()
    if what == "signs":
        signs = (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.device)
        return lambda t: t * signs
    if what == "permutations":
        order = torch.randperm(count, generator=generator).to(like.device)
        return lambda t: t.reshape(-1)[order].reshape(t.shape)
    if what == "rotations":
        turn = _orthogonal(count, generator).to(like.device)
        return lambda t: (turn @ t.double().reshape(-1)).reshape(t.shape).to(t.dtype)
    if what == "orthogonal":
        if like.ndim != 2:
            return lambda t: t
        left, right = (_orthogonal(n, generator).to(like.device) for n in like.shape)
        return lambda t: (left @ t.double() @ right).to(t.dtype)
    raise ValueError(f"no equivariance {what!r}; there are signs, permutations, rotations and orthogonal")


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def bookkeeping(trial: Trial, laws: OptimizerLaws, base: Path) -> list[LawCheck]:
    """Item 7."""
    checks = [_reversed(trial, base)]
    if laws.elementwise:
        checks.append(_flattened(trial, base))
    if len(trial.start) > 1:
        path = trial.run(fresh=trial.fresh(groups=_two_groups))
        checks.append(trial.compare("another group of the same settings changes nothing", path, base))
    checks += [_reloaded(trial, base, laws.tolerance), _without_gradients(trial, base)]
    if laws.stops:
        checks.append(_stopped(trial))
    return checks


def _reversed(trial: Trial, base: Path) -> LawCheck:
    backwards = trial.run(trial.start[::-1], [row[::-1] for row in trial.gradients])
    return trial.compare("the order of parameters changes nothing", [row[::-1] for row in backwards], base)


def _flattened(trial: Trial, base: Path) -> LawCheck:
    path = trial.run(_flat(trial.start), [_flat(row) for row in trial.gradients])
    return trial.compare("the shape of a parameter changes nothing", path, [_flat(row) for row in base])


def _flat(row: Sequence[Tensor]) -> list[Tensor]:
    return [t.reshape(-1) for t in row]


def _two_groups(held: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": held[:1]}, {"params": held[1:]}]


def _reloaded(trial: Trial, base: Path, tolerance: float) -> LawCheck:
    """In the middle the state goes through a file into another optimiser."""

    def reload(n: int, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]):
        if n != trial.steps // 2:
            return optimizer, parameters
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other, held = trial.fresh([p.detach() for p in parameters])
        other.load_state_dict(torch.load(file, weights_only=False))
        return other, held

    return trial.compare("a state saved and loaded changes nothing", trial.run(around=reload), base, extra=tolerance)


def _without_gradients(trial: Trial, base: Path) -> LawCheck:
    """A step on which no parameter has a gradient, in the middle: the path goes on as if it had not been."""
    middle = trial.steps // 2
    path = trial.run(gradients=[*trial.gradients[:middle], [None] * len(trial.start), *trial.gradients[middle:]])
    return trial.compare("a step without gradients changes nothing", path, [*base[: middle + 1], *base[middle:]])


def _stopped(trial: Trial) -> LawCheck:
    still = trial.run(lr=0.0)
    moved = max(float((a - b).abs().max()) for row in still for a, b in zip(row, still[0], strict=True))
    return LawCheck("a learning rate of 0 moves nothing", "all", "", moved, 0.0, 0.0, BROKEN if moved else LAWFUL)
