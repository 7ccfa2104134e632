r"""The trials of an optimiser: pairs of runs that a law makes equal, step by step.

The floor of a pair after n steps is 60 n unit roundoffs of the weight: six times one rounding of the weight and some
ten of the update in each step, as if all had one sign. An ``eps`` in a denominator moves an update by ``eps / |g|``
where gradients are scaled.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nlcompanion.testing.optimizer_families import OptimizerLaws
from nlcompanion.testing.report import BROKEN, CANNOT_TELL, LAWFUL, LawCheck

ROUNDINGS = 60.0
WHITE_STEPS = 240


class Trial:
    """Runs of one optimiser from chosen weights on chosen gradients."""

    def __init__(self, factory: Callable, start: list[Tensor], steps: int, seed: int):
        self.factory, self.start, self.steps = factory, start, steps
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.gradients = [[self._bounded(p) for p in start] for _ in range(steps)]
        self.unit = max(torch.finfo(p.dtype).eps / 2 for p in start)

    def _bounded(self, like: Tensor) -> Tensor:
        """Sizes between 1 and 2, random signs: far from every eps."""
        size = 1 + torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        sign = torch.randint(0, 2, like.shape, generator=self.generator) * 2 - 1
        return (size * sign).to(like)

    def fresh(self, start: list[Tensor] | None = None, groups: Callable | None = None, **settings):
        """A new optimiser; ``settings`` overwrite those of its groups."""
        parameters = [nn.Parameter(p.detach().clone()) for p in (start or self.start)]
        optimizer = self.factory(groups(parameters) if groups else parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"the factory returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
        if isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):
            needs = "a closure" if isinstance(optimizer, torch.optim.LBFGS) else "sparse gradients"
            raise TypeError(f"{type(optimizer).__name__} needs {needs}, so fixed gradients do not make its steps")
        for group in optimizer.param_groups:
            group.update(settings)
        optimizer.held = parameters
        return optimizer

    def run(self, start=None, gradients=None, *, optimizer=None, around: Callable | None = None, **settings):
        """Weights after every step, the start first: ``path[n][parameter]`` in float64."""
        optimizer = optimizer or self.fresh(start, **settings)
        parameters = optimizer.held
        path = [[p.detach().double().clone() for p in parameters]]
        for n, row in enumerate(gradients or self.gradients):
            for p, g in zip(parameters, row, strict=True):
                p.grad = None if g is None else g.to(p.dtype).clone()
            try:
                optimizer.step()
            except TypeError as error:
                if "closure" in str(error):
                    raise TypeError(
                        f"{type(optimizer).__name__} needs a closure, so fixed gradients do not make its steps"
                    ) from error
                raise
            path.append([p.detach().double().clone() for p in parameters])
            if not all(torch.isfinite(p).all() for p in path[-1]):
                raise ValueError(f"step {n + 1} gave weights that are not finite; lower lr, no law is told from them")
            if around is not None:
                optimizer, parameters = around(n, optimizer, parameters)
        return path

    def compare(self, law: str, path, expected, *, extra: float = 0.0) -> LawCheck:
        """Two paths that a law makes equal; ``extra`` is a relative tolerance of the updates."""
        worst = (0.0, 0.0, 0.0, 0.0, "")
        for step in range(1, len(path)):
            for k, (a, b) in enumerate(zip(path[step], expected[step], strict=True)):
                moved = max(float((b - expected[0][k]).abs().max()), float((a - path[0][k]).abs().max()))
                size = max(float(a.abs().max()), float(b.abs().max()), moved)
                floor = ROUNDINGS * self.unit * step * size + extra * moved
                defect = float((a - b).abs().max())
                excess = defect / max(floor, 1e-300) if defect else 0.0
                if excess >= worst[0]:
                    worst = (excess, defect, floor, max(moved, 1e-300), f"parameter {k}, step {step}")
        excess, defect, floor, moved, where = worst
        hidden = defect > 0 and floor > 0.5 * moved  # runs that agree bit for bit hide nothing
        verdict = BROKEN if excess > 1 else CANNOT_TELL if hidden else LAWFUL
        return LawCheck(law, where or "all", "", defect / moved, floor / moved, floor / moved, verdict)


def _decay(optimizer) -> float:
    return float(optimizer.param_groups[0].get("weight_decay", 0.0))


def all_checks(trial: Trial, laws: OptimizerLaws, limits: list[str]) -> list[LawCheck]:
    """Every trial that the laws promise something for."""
    base = trial.run()
    checks = [*shift(trial, laws, base), *first_step(trial, laws), *scaling(trial, laws)]
    checks += [*equivariance(trial, laws, base), *white(trial, laws), *bookkeeping(trial, laws, base)]
    if laws.decay == "unknown":
        limits.append("how the weights enter the step is not promised, so weight decay is not checked")
    return checks


def shift(trial: Trial, laws: OptimizerLaws, base) -> list[LawCheck]:
    """Items 1 and 2."""
    group, decay = trial.fresh().param_groups[0], _decay(trial.fresh())
    checks = []
    if laws.decay == "unknown":
        return checks
    if laws.decay == "coupled" and decay:
        return [_coupled(trial, base, decay, laws), _first_from_zero(trial, laws)]
    lr = float(group["lr"])
    rate = 1 - lr * decay if laws.decay == "decoupled" else 1.0
    offset = [torch.ones_like(p) * 0.5 for p in trial.start]
    moved = trial.run([p + s for p, s in zip(trial.start, offset, strict=True)])
    law = "a shift shrinks by (1 - lr*decay)^n" if laws.decay == "decoupled" else "a shift of the weights stays"
    response = [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(base, moved, strict=True)]
    expected = [[s.double() * rate**n for s in offset] for n in range(len(base))]
    # the two runs round at the size of their weights, larger than the shift
    size = max(float(p.abs().max()) for row in base + moved for p in row)
    room = trial.unit * (1 + size / 0.5)
    checks.append(_response(law, response, expected, ROUNDINGS * room, trial.steps))
    if decay:
        checks.append(_first_from_zero(trial, laws))
    return checks


def _response(law, response, expected, unit, steps) -> LawCheck:
    """The shrinking itself is judged: a rate that is off shows in what the shift has lost."""
    worst = max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
        for row, other in zip(response, expected, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    lost = max(float((expected[0][k] - expected[-1][k]).abs().max()) * 2 for k in range(len(expected[0])))
    floor = unit * steps
    hidden = floor / lost if lost > 0 else floor
    verdict = BROKEN if worst > floor else CANNOT_TELL if hidden > 0.5 else LAWFUL
    return LawCheck(law, "all", "", worst, floor, hidden, verdict)


def _coupled(trial: Trial, base, decay: float, laws: OptimizerLaws) -> LawCheck:
    """The same path without decay, where every gradient has decay times the weight in it."""
    optimizer = trial.fresh(weight_decay=0.0)
    maximize = optimizer.param_groups[0].get("maximize", False)
    path = [[p.detach().double().clone() for p in optimizer.held]]
    for row in trial.gradients:
        for p, g in zip(optimizer.held, row, strict=True):
            p.grad = g + (-decay if maximize else decay) * p.detach()
        optimizer.step()
        path.append([p.detach().double().clone() for p in optimizer.held])
    return trial.compare("decay is a gradient decay*weight (L2)", path, base, extra=laws.tolerance + 60 * trial.unit)


def _first_from_zero(trial: Trial, laws: OptimizerLaws) -> LawCheck:
    zeros, first = [torch.zeros_like(p) for p in trial.start], trial.gradients[:1]
    with_decay, without = trial.run(zeros, first), trial.run(zeros, first, weight_decay=0.0)
    return trial.compare("from zero weights the first step knows no decay", with_decay, without)


def first_step(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 3."""
    zeros, first, checks = [torch.zeros_like(p) for p in trial.start], trial.gradients[:1], []
    group = trial.fresh().param_groups[0]
    sign = 1.0 if group.get("maximize") else -1.0
    path = trial.run(zeros, first)
    if laws.first_step is not None:
        steps = [sign * laws.first_step(group, g.double()) for g in first[0]]
        root = 60 * trial.unit**0.5 if trial.unit < 1e-10 else 1e-3  # an eps beside sqrt(v)
        extra = max(laws.tolerance, min(root, 1e-3), 60 * trial.unit)
        checks.append(trial.compare("the first step has the family's size", path, [path[0], steps], extra=extra))
    if laws.first_values is not None:  # of gradients whose own singular values are alike
        path = trial.run(zeros, [[_polar(g) for g in first[0]]])
        for k, step in enumerate(path[1]):
            values = torch.linalg.svdvals(step)
            low, high = laws.first_values(group, tuple(step.shape))
            out = max(float(values.max()) / high, low / max(float(values.min()), 1e-300))
            verdict = BROKEN if out > 1 else LAWFUL
            law = "the first step's singular values are the family's"
            checks.append(LawCheck(law, f"parameter {k}", "", out, 1.0, high / low - 1, verdict))
    return checks


def _polar(gradient: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    return (u @ v).to(gradient.dtype)


def scaling(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 4, from zero weights without decay, on gradients 8 times as large."""
    if laws.degree is None:
        return []
    zeros = [torch.zeros_like(p) for p in trial.start]
    settings = {"weight_decay": 0.0} if "weight_decay" in trial.fresh().param_groups[0] else {}
    plain = trial.run(zeros, **settings)
    scaled = trial.run(zeros, [[8 * g for g in row] for row in trial.gradients], **settings)
    eps = trial.fresh().param_groups[0].get("eps", 0.0)
    eps = eps if isinstance(eps, float) else 0.0
    expected = [plain[0]]
    for n in range(1, len(plain)):
        factor = 8.0 ** (laws.degree(n) if callable(laws.degree) else laws.degree)
        step = [factor * (b - a) for a, b in zip(plain[n - 1], plain[n], strict=True)]
        expected.append([a + d for a, d in zip(expected[-1], step, strict=True)])
    what = "nothing" if laws.degree == 0 else "the step by c" if laws.degree == 1 else "each step as promised"
    extra = max(laws.tolerance, 60 * trial.unit + 30 * eps)
    return [trial.compare(f"gradients times c change {what}", scaled, expected, extra=extra)]


def equivariance(trial: Trial, laws: OptimizerLaws, base) -> list[LawCheck]:
    """Item 5."""
    checks, gradients = [], trial.gradients
    if laws.tolerance and "orthogonal" in laws.equivariance:  # coarse arithmetic spoils small singular values
        gradients = [[(1 + n / 10) * _polar(g) for g in trial.gradients[0]] for n in range(trial.steps)]
        base = trial.run(gradients=gradients)
    for what in laws.equivariance:
        maps = [_map(what, p, trial.generator) for p in trial.start]
        turn = lambda row, maps=maps: [m(t) for m, t in zip(maps, row, strict=True)]  # noqa: E731
        path = trial.run(turn(trial.start), [turn(row) for row in gradients])
        expected = [turn(row) for row in base]
        law = f"{what} commute with the step"
        checks.append(trial.compare(law, path, expected, extra=max(laws.tolerance * 2.5, 120 * trial.unit)))
    return checks


def _orthogonal(n: int, generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]


def _map(what: str, like: Tensor, generator) -> Callable[[Tensor], Tensor]:
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


def white(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Item 6: the second half of a run on normal gradients, within what its samples allow."""
    if laws.white_rms is None:
        return []
    start = [torch.zeros(24, 24, dtype=trial.start[0].dtype, device=trial.start[0].device)]
    draw = lambda: torch.randn(24, 24, generator=trial.generator, dtype=torch.float64).to(start[0])  # noqa: E731
    group = trial.fresh().param_groups[0]
    settings = {"weight_decay": 0.0} if "weight_decay" in group else {}
    path = trial.run(start, [[draw()] for _ in range(WHITE_STEPS)], **settings)
    half = WHITE_STEPS // 2
    moves = torch.stack([path[n + 1][0] - path[n][0] for n in range(half, WHITE_STEPS)])
    measured, expected = float(moves.square().mean().sqrt()), laws.white_rms(group)
    # v is a mean over at least `half` gradients, each square with relative variance 2
    floor = 4 / half + 0.05
    defect = abs(measured / expected - 1)
    verdict = BROKEN if defect > floor else LAWFUL
    return [LawCheck("white gradients give the family's update RMS", "24 x 24", "", defect, floor, floor, verdict)]


def bookkeeping(trial: Trial, laws: OptimizerLaws, base) -> list[LawCheck]:
    """Item 7."""
    flip = lambda row: row[::-1]  # noqa: E731
    backwards = trial.run(flip(trial.start), [flip(row) for row in trial.gradients])
    checks = [trial.compare("the order of parameters changes nothing", [flip(r) for r in backwards], base)]
    if laws.elementwise:
        flat = lambda row: [t.reshape(-1) for t in row]  # noqa: E731
        path = trial.run(flat(trial.start), [flat(row) for row in trial.gradients])
        law = "the shape of a parameter changes nothing"
        checks.append(trial.compare(law, path, [flat(row) for row in base]))
    if len(trial.start) > 1:
        split = lambda held: [{"params": held[:1]}, {"params": held[1:]}]  # noqa: E731
        path = trial.run(optimizer=trial.fresh(groups=split))
        checks.append(trial.compare("another group of the same settings changes nothing", path, base))
    reloaded = trial.run(around=_reload(trial))
    checks.append(trial.compare("a state saved and loaded changes nothing", reloaded, base, extra=laws.tolerance))
    checks.append(_none(trial, base))
    if laws.stops:
        still = trial.run(lr=0.0)
        moved = max(float((a - b).abs().max()) for row in still for a, b in zip(row, still[0], strict=True))
        verdict = BROKEN if moved else LAWFUL
        checks.append(LawCheck("a learning rate of 0 moves nothing", "all", "", moved, 0.0, 0.0, verdict))
    return checks


def _reload(trial: Trial) -> Callable:
    def around(n: int, optimizer, parameters):
        if n != trial.steps // 2:
            return optimizer, parameters
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = trial.fresh([p.detach() for p in parameters])
        other.load_state_dict(torch.load(file, weights_only=False))
        return other, other.held

    return around


def _none(trial: Trial, base) -> LawCheck:
    """A step on which no parameter has a gradient, in the middle: the path goes on as if it had not been."""
    middle = trial.steps // 2
    gradients = [*trial.gradients[:middle], [None] * len(trial.start), *trial.gradients[middle:]]
    path = trial.run(gradients=gradients)
    expected = [*copy.copy(base[: middle + 1]), *base[middle:]]
    return trial.compare("a step without gradients changes nothing", path, expected)
