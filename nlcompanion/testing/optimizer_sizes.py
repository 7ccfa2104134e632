"""Laws of an update's size: what weights, the first gradient and the scale of all gradients make of a step.

The numbers of the items are those of :func:`nlcompanion.testing.check_optimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlcompanion.testing.optimizer_laws import OptimizerLaws
from nlcompanion.testing.optimizer_trials import ROUNDINGS, Path, Trial, polar_factor
from nlcompanion.testing.optimizer_white import WHITE_SIDE
from nlcompanion.testing.report import BROKEN, CANNOT_TELL, LAWFUL, LawCheck

OFFSET = 0.5  # of every weight, for the shifted run
KEPT = "a shift shrinks by what each step keeps"
LARGER = 8.0  # by which gradients are scaled: a power of two, exact in every dtype
WHITE_STEPS = 240


def shift(trial: Trial, laws: OptimizerLaws, base: Path) -> list[LawCheck]:
    """Items 1 and 2: how the weights themselves enter a step."""
    group = trial.settings()
    decay = float(group.get("weight_decay", 0.0))
    if laws.decay == "unknown":
        return []
    from_zero = [_first_from_zero(trial)] if decay else []
    if laws.sized:
        return [_decay_alone(trial, decay, laws), *from_zero] if decay and laws.decay == "decoupled" else from_zero
    if laws.decay == "coupled" and decay:
        return [_decay_is_a_gradient(trial, base, decay, laws), *from_zero, *_kept_without_decay(trial, laws)]
    if laws.decay == "decoupled":
        law, rate = "a shift shrinks by (1 - lr*decay)^n", 1 - float(group["lr"]) * decay
    else:
        law, rate = "a shift of the weights stays", 1.0
    if laws.kept is not None:
        law = KEPT
    return [_shifted(law, trial, base, _kept_after(trial, laws, rate), laws.tolerance), *from_zero]


def _kept_without_decay(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """What a rule keeps of the weights beside an L2 decay, which is switched off for it."""
    if laws.kept is None:
        return []
    left, base = _kept_after(trial, laws, 1.0), trial.run(weight_decay=0.0)
    return [_shifted(KEPT, trial, base, left, laws.tolerance, weight_decay=0.0)]


def _kept_after(trial: Trial, laws: OptimizerLaws, rate: float) -> list[float]:
    """What is left of a shift of 1 after n steps, from n = 0."""
    group, left = trial.settings(), [1.0]
    for n in range(1, trial.steps + 1):
        own = float(laws.kept(group, n)) if laws.kept is not None else 1.0
        left.append(left[-1] * rate * own)
    return left


def _shifted(law: str, trial: Trial, base: Path, left: Sequence[float], tolerance: float, **settings: Any) -> LawCheck:
    """The shrinking itself is judged: a rate that is off shows in what the shift has lost."""
    moved = trial.run([p + OFFSET for p in trial.start], **settings)
    worst = 0.0
    for n, (row, other) in enumerate(zip(base, moved, strict=True)):
        expected = OFFSET * left[n]
        for a, b in zip(row, other, strict=True):
            worst = max(worst, float((b - a - expected).abs().max()) / OFFSET)
    # the two runs round at the size of their weights, larger than the shift
    size = max(float(p.abs().max()) for row in base + moved for p in row)
    floor = ROUNDINGS * trial.unit * (1 + size / OFFSET) * trial.steps
    lost = 1 - left[-1]
    floor += tolerance * abs(lost)
    hidden = floor / lost if lost > 0 else floor
    verdict = BROKEN if worst > floor else CANNOT_TELL if hidden > 0.5 else LAWFUL
    return LawCheck(law, "all", "", worst, floor, hidden, verdict)


def _decay_alone(trial: Trial, decay: float, laws: OptimizerLaws) -> LawCheck:
    """Steps that know the weights' size: each is made with decay and without, from the same place."""
    optimizer, held = trial.fresh()
    without = trial.run(weight_decay=0.0)
    rate = float(optimizer.param_groups[0]["lr"]) * decay
    path, expected = [without[0]], [without[0]]

    def put_back(n: int, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]):
        with torch.no_grad():
            for p, at in zip(parameters, without[n + 1], strict=True):
                p.copy_(at)
        return optimizer, parameters

    moved = trial.run(fresh=(optimizer, held), around=put_back)
    for n in range(trial.steps):
        path.append([a - b + w for a, b, w in zip(moved[n + 1], without[n + 1], without[0], strict=True)])
        expected.append([w - rate * b for b, w in zip(without[n], without[0], strict=True)])
    law = "a step shrinks the weights by lr*decay, beside what it does without"
    return trial.compare(law, path, expected, extra=laws.tolerance)


def _decay_is_a_gradient(trial: Trial, base: Path, decay: float, laws: OptimizerLaws) -> LawCheck:
    """The same path without decay, where every gradient has decay times the weight in it."""
    optimizer, held = trial.fresh(weight_decay=0.0)
    pull = -decay if optimizer.param_groups[0].get("maximize", False) else decay
    path = [[p.detach().double().clone() for p in held]]
    for row in trial.gradients:
        for p, g in zip(held, row, strict=True):
            p.grad = g + pull * p.detach()
        optimizer.step()
        path.append([p.detach().double().clone() for p in held])
    return trial.compare("decay is a gradient decay*weight (L2)", path, base, extra=laws.tolerance + 60 * trial.unit)


def _first_from_zero(trial: Trial) -> LawCheck:
    zeros, first = trial.zeros(), trial.gradients[:1]
    with_decay, without = trial.run(zeros, first), trial.run(zeros, first, weight_decay=0.0)
    return trial.compare("from zero weights the first step knows no decay", with_decay, without)


def first_step(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 3."""
    checks = []
    if laws.first_step is not None:
        checks.append(_first_size(trial, laws))
    if laws.first_values is not None:
        checks += _first_values(trial, laws)
    return checks


def _first_size(trial: Trial, laws: OptimizerLaws) -> LawCheck:
    assert laws.first_step is not None
    group, first = trial.settings(), trial.gradients[:1]
    sign = 1.0 if group.get("maximize") else -1.0
    path = trial.run(trial.zeros(), first)
    steps = [sign * laws.first_step(group, g.double()) for g in first[0]]
    extra = max(laws.tolerance, _share_of_eps(trial, laws, first))
    return trial.compare("the first step has the family's size", path, [path[0], steps], extra=extra)


def _share_of_eps(trial: Trial, laws: OptimizerLaws, gradients: Sequence[Sequence[Tensor]], **settings: Any) -> float:
    """How much of the updates an eps makes, where the laws do not say: found by leaving it out."""
    if laws.eps_degree is not None or not trial.eps:
        return 0.0
    path = trial.run(trial.zeros(), gradients, **settings)
    bare = trial.run(trial.zeros(), gradients, **settings, eps=0.0)
    pairs = [pair for row, other in zip(path[1:], bare[1:], strict=True) for pair in zip(row, other, strict=True)]
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300) for a, b in pairs)


def _first_values(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Of gradients whose own singular values are alike."""
    assert laws.first_values is not None
    group = trial.settings()
    path = trial.run(trial.zeros(), [[polar_factor(g) for g in trial.gradients[0]]])
    checks = []
    for k, step in enumerate(path[1]):
        values = torch.linalg.svdvals(step)
        low, high = laws.first_values(group, tuple(step.shape))
        out = max(float(values.max()) / high, low / max(float(values.min()), 1e-300))
        verdict = BROKEN if out > 1 else LAWFUL
        law = "the first step's singular values are the family's"
        checks.append(LawCheck(law, f"parameter {k}", "", out, 1.0, high / low - 1, verdict))
    return checks


def scaling(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 4, from zero weights without decay."""
    if laws.degree is None:
        return []
    without = _without_decay(trial)
    plain = trial.run(trial.zeros(), **without)
    larger = {"eps": LARGER**laws.eps_degree * trial.eps} if laws.eps_degree is not None and trial.eps else {}
    scaled = trial.run(trial.zeros(), [[LARGER * g for g in row] for row in trial.gradients], **without, **larger)
    expected = [plain[0]]
    for n in range(1, len(plain)):
        factor = LARGER ** (laws.degree(n) if callable(laws.degree) else laws.degree)
        step = [factor * (b - a) for a, b in zip(plain[n - 1], plain[n], strict=True)]
        expected.append([a + d for a, d in zip(expected[-1], step, strict=True)])
    what = "nothing" if laws.degree == 0 else "the step by c" if laws.degree == 1 else "each step as promised"
    extra = max(laws.tolerance, 60 * trial.unit + _share_of_eps(trial, laws, trial.gradients, **without))
    return [trial.compare(f"gradients times c change {what}", scaled, expected, extra=extra)]


def white(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 6: the second half of a run on normal gradients, within what its samples allow."""
    if laws.white_rms is None:
        return []
    start = torch.zeros(WHITE_SIDE, WHITE_SIDE, dtype=trial.start[0].dtype, device=trial.start[0].device)
    gradients = [[_normal(start, trial.generator)] for _ in range(WHITE_STEPS)]
    path = trial.run([start], gradients, **_without_decay(trial))
    half = WHITE_STEPS // 2
    moves = torch.stack([path[n + 1][0] - path[n][0] for n in range(half, WHITE_STEPS)])
    group = trial.settings()
    squares = [float(laws.white_rms(group, n + 1)) ** 2 for n in range(half, WHITE_STEPS)]
    measured, expected = float(moves.square().mean().sqrt()), (sum(squares) / len(squares)) ** 0.5
    # v is a mean over at least `half` gradients, each square with relative variance 2
    floor = 4 / half + 0.05
    defect = abs(measured / expected - 1)
    verdict = BROKEN if defect > floor else LAWFUL
    law, tensor = "white gradients give the family's update RMS", f"{WHITE_SIDE} x {WHITE_SIDE}"
    return [LawCheck(law, tensor, "", defect, floor, floor, verdict)]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _without_decay(trial: Trial) -> dict[str, Any]:
    return {"weight_decay": 0.0} if "weight_decay" in trial.settings() else {}
