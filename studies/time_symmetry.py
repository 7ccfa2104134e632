"""The studies behind the chapter on time symmetry (private): results registered with ``results.result``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from nlcompanion.datasets.dataset import describe
from nlcompanion.datasets.digits import digits
from nlcompanion.dynamics.descent import descend
from nlcompanion.dynamics.learning_rules import LearningRule, newtonian, sgd
from nlcompanion.dynamics.linearized import linearized_dynamics
from nlcompanion.networks.ensembles import Ensemble, ensemble
from nlcompanion.networks.flat_loss import flat_loss
from nlcompanion.networks.tangent_kernel import ntk, output_motion
from studies.recipes import result

SIZES = {  # widths and the number of seeds of each family of networks
    "gaussian": ((64, 128, 256, 512, 1024, 2048), 64),
    "bounded": ((256, 512, 1024, 2048), 48),
    "deep": ((32, 64, 128, 256), 32),
}
FIT_FROM = {"gaussian": 256, "bounded": 256, "deep": 64}  # below, weights move so far that no power law is in sight


def zeros_and_ones(samples: int = 16) -> tuple[Tensor, Tensor]:
    """The first digits 0 and 1 of the training split at 4 x 4 pixels, of length 4, with targets -1 and 1."""
    images, labels = digits("train").first(20 * samples).tensors()
    chosen = (labels < 2).nonzero()[:samples, 0]
    x = avg_pool2d(images[chosen].double(), 2).flatten(1)
    return 4 * x / x.norm(dim=1, keepdim=True), 2.0 * labels[chosen, None].double() - 1


def half_sum(u: Tensor, y: Tensor) -> Tensor:
    """GU's loss in Section 7: half the sum over samples (and over members, for an ensemble)."""
    return 0.5 * (u - y).square().sum()


@result("GU Section 7: speeds, displacements and the kernel's errors against the width of ReLU networks under ND")
def gu_time_width() -> dict:
    return width_study(SIZES)


def width_study(sizes: dict[str, tuple[tuple[int, ...], int]], *, time: float = 2.0, step: float = 0.05) -> dict:
    """Newtonian training from rest for each family, width and seed: geometric means over the seeds and exponents."""
    curves, numbers = {}, {}
    for family, (widths, seeds) in sizes.items():
        rides = [Ride(family, width, seeds, step).go(time) for width in tqdm(widths, desc=family, disable=None)]
        curves[family] = {"width": list(widths), "parameters": [ride.parameters for ride in rides]}
        steep = torch.tensor([width >= FIT_FROM[family] for width in widths])
        for name in rides[0].measures:
            logs = torch.stack([ride.measures[name] for ride in rides]).log()  # (widths, seeds)
            mean, error = logs.mean(1), logs.std(1) / math.sqrt(seeds)
            curves[family] |= {name: mean.exp().tolist(), f"{name}_error": error.tolist()}
            slopes = _slopes(torch.tensor(widths)[steep].log(), logs[steep])
            numbers[f"{family}_{name}_exponent"] = slopes.mean()
            numbers[f"{family}_{name}_exponent_error"] = slopes.std() / math.sqrt(seeds)
        numbers[f"{family}_bound"] = max(ride.measures["bound"].max() for ride in rides)
        if rides[0].shallow:
            ahead = [ride.measures["max_outgoing_speed"] > ride.measures["max_incoming_speed"] for ride in rides]
            numbers[f"{family}_outgoing_is_fastest"] = torch.cat(ahead).double().mean()
    settings = {
        "rule": "Newtonian steps (leapfrog) from rest",
        "time": time,
        "time_step": step,
        "loss": "half the sum of squares",
        "inputs": "the first 16 digits 0 and 1 of the training split, pooled to 4 x 4 pixels, of length 4",
        "init": "ntk; bounded: uniform of the same variance",
        "activation": "relu",
        "hidden_layers": {"gaussian": 1, "bounded": 1, "deep": 2},
        "seeds": {family: f"0 to {seeds - 1}" for family, (_, seeds) in sizes.items()},
        "fitted_from_width": FIT_FROM,
        "averages": "geometric means over the seeds; errors are standard errors of the logarithm",
        "units": "speeds and displacements are divided by the root of twice the initial loss",
        "dtype": "float64",
    }
    return {"settings": settings, "data": describe(digits("train")), "curves": curves, "numbers": numbers}


class Ride:
    """Newtonian training of an ensemble from rest, and what is measured of every member on the way.

    Attributes:
        measures: name to values of shape (members,): ``mean_speed``, ``max_speed``, ``mean_moved``, ``max_moved`` (the
            largest on the way, over the root of twice the initial loss), ``bound`` (mean speed over GU Eq. 49's
            bound), ``prediction`` (the kernel's error over the distance that it predicts), and the shares that the
            terms missing from GU Eq. 52 have in the motion: ``bend`` and, with one hidden layer, ``kick``. There also
            the largest speed on either side of the hidden layer, ``max_incoming_speed`` and ``max_outgoing_speed``.
    """

    def __init__(self, family: str, width: int, seeds: int, step: float):
        self.x, self.y = zeros_and_ones()
        hidden = (width, width) if family == "deep" else (width,)
        self.team = ensemble((self.x.shape[1], *hidden, 1), "relu", seeds=seeds, init="ntk")
        if family == "bounded":
            bound_weights(self.team)
        self.f = flat_loss(self.team, self.x, self.y, half_sum)
        self.step, self.shallow = step, len(hidden) == 1
        self.start = self.team.split(self.f.q0)
        self.parameters = self.start.shape[1]
        self.measures: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._before: dict[str, Tensor] = {}

    def go(self, time: float) -> Ride:
        steps = round(time / self.step)
        rule = newtonian(lr=self.step**2)
        descend(rule, self.f, self.f.q0, steps=steps, record=self._look)
        rows = {name: torch.stack(values) for name, values in self._rows.items()}
        u0 = rows["u"][0]
        scale = (u0 - self.y[:, 0]).norm(dim=1)  # the root of twice the initial loss
        for name in ("mean_speed", "max_speed", "mean_moved", "max_moved", "max_incoming_speed", "max_outgoing_speed"):
            if name in rows:
                self.measures[name] = rows[name].amax(0) / scale
        self.measures["bound"] = self.measures["mean_speed"] * math.sqrt(self.parameters)
        times = self.step * torch.arange(steps + 1)
        foreseen = torch.stack([self._foreseen(e, u0[e], times) for e in range(len(u0))], dim=1)
        size = lambda a: a.square().mean((0, 2)).sqrt()  # noqa: E731
        self.measures["prediction"] = size(rows["u"] - foreseen) / size(foreseen - u0)
        for name in ("bend", "kick") if self.shallow else ("bend",):
            self.measures[name] = size(rows[name].cumsum(0)) / size(rows["rate"])
        if self.shallow:
            total = (rows["push"] + rows["bend"] + rows["kick"]).cumsum(0)
            self.measures["unexplained"] = size(rows["rate"] - total) / size(rows["rate"])
        return self

    def _foreseen(self, e: int, u0: Tensor, times: Tensor) -> Tensor:
        kernel = ntk(self.team.member(e), self.x, output=0)
        return linearized_dynamics(kernel, u0, self.y[:, 0], times, newtonian())

    def _look(self, t: float, q: Tensor, ahead: Tensor) -> dict:
        """``ahead`` is the velocity in the middle of the coming step."""
        past = self._before.get("ahead", -ahead)  # it starts from rest, where the two cancel
        v, a = (past + ahead) / 2, (ahead - past) / self.step
        rate, push, bend = output_motion(self.f, q, v, a)
        speeds, moved = self.team.split(ahead).abs(), (self.team.split(q) - self.start).abs()
        now = {"bend": bend[..., 0], "push": push[..., 0]}
        row = {name: self.step * (value + self._before.get(name, value)) / 2 for name, value in now.items()}
        row = {name: value * (t > 0) for name, value in row.items()}  # nothing has passed at the start
        row |= {"u": self.f.outputs(q)[..., 0].detach(), "rate": rate[..., 0], "mean_speed": speeds.mean(1)}
        row |= {"max_speed": speeds.amax(1), "mean_moved": moved.mean(1), "max_moved": moved.amax(1)}
        if self.shallow:
            first, second = self.f.unflatten(ahead).values()
            row |= {"max_incoming_speed": first.abs().amax((1, 2)), "max_outgoing_speed": second.abs().amax((1, 2))}
            first, second = self.f.unflatten(q).values()
            now["z"] = self.x @ first.transpose(1, 2) / math.sqrt(self.x.shape[1])  # (members, samples, width)
            row["kick"] = kicks(self._before.get("z", now["z"]), now["z"], second) / self.step
        for name, value in row.items():
            self._rows.setdefault(name, []).append(value)
        self._before = now | {"ahead": ahead}
        return {"kinetic": 0.5 * v @ v}


def kicks(before: Tensor, after: Tensor, outgoing: Tensor) -> Tensor:
    r"""What ReLU kinks give to the rates of the outputs, times the time that has passed.

    Where a preactivation :math:`z_k` crosses zero the slope of its neuron jumps, and :math:`\dot u` by
    :math:`a_k |\dot z_k| / \sqrt n`, in either direction.
    """
    crossed = (before > 0) != (after > 0)
    jump = torch.where(crossed, (after - before).abs(), 0.0)
    return (jump @ outgoing.transpose(1, 2))[..., 0] / math.sqrt(before.shape[-1])


@torch.no_grad()
def bound_weights(team: Ensemble) -> None:
    """Replace Gaussian weights by uniform ones of the same variance, monotonically: no weight is beyond sqrt(3)."""
    for weight in team.parameters():
        weight.copy_(math.sqrt(3) * torch.erf(weight / math.sqrt(2)))


def _slopes(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slopes of the columns of ``y`` over ``x``."""
    x = x - x.mean()
    return (x[:, None] * y).sum(0) / x.square().sum()


# --- mini-batches heat --------------------------------------------------------------------------------------------

IMAGES, BATCH = 16, 4
LOTS = IMAGES // BATCH  # batches in an epoch


@result("The work of gradient noise on mini-batches of 4 of 16 images, drawn afresh or dealt out in shuffled epochs")
def gu_time_heat() -> dict:
    lengths = {f"newtonian {length:g}": newtonian(lr=length**2) for length in (0.2, 0.1, 0.05, 0.025)}
    afresh = {name: lengths[name] for name in ("newtonian 0.2", "newtonian 0.1", "newtonian 0.05")}
    afresh |= {"descent 0.02": sgd(lr=0.02), "momentum 0.5": sgd(lr=0.01, momentum=0.5)}
    dealt = {name: lengths[name] for name in ("newtonian 0.05", "newtonian 0.025")}
    dealt |= {"descent 0.0025": sgd(lr=0.0025), "momentum 0.5": sgd(lr=0.0025, momentum=0.5)}
    study = heat_study(afresh, groups=256)
    epochs = heat_study(dealt, groups=64, time=1.5, draws="epochs")
    settings = {"fresh": study["settings"], "epochs": epochs["settings"]}
    parts = {name: study[name] | epochs[name] for name in ("curves", "numbers")}
    return {"settings": settings, "data": study["data"], **parts}


def heat_study(rules: dict[str, LearningRule], *, groups: int, time: float = 3.0, draws: str = "fresh") -> dict:
    """The noise's work along each rule's run, as a mean over copies of one network, and its prediction."""
    curves, numbers = {}, {}
    for seed, (name, rule) in enumerate(tqdm(rules.items(), disable=None)):
        work, foreseen, independent = noise_work(rule, groups, time, seed, draws)
        key = name if draws == "fresh" else f"{name}, {draws}"
        curves[key] = {
            "time": (rule.time_step * torch.arange(1, len(work) + 1)).tolist(),
            "work": work.mean(1).tolist(),
            "work_error": (work.std(1) / math.sqrt(groups)).tolist(),
            "foreseen": foreseen.mean(1).tolist(),
        }
        scale = independent[-1].mean()
        numbers[f"{key} ratio"] = work[-1].mean() / scale
        numbers[f"{key} ratio_error"] = work[-1].std() / scale / math.sqrt(groups)
        numbers[f"{key} foreseen"] = foreseen[-1].mean() / scale
    settings = {
        "network": "(16, 64, 1), tanh, init ntk, seed 1; all copies start alike",
        "copies": LOTS * groups,
        "batches": "4 of 16 images; copies in groups of four share out the images, errors are those of group means",
        "draws": {"fresh": "a shuffle a step", "epochs": "a shuffle every four steps, dealt out"}[draws],
        "ratio": "the work over half the step times the sum of the trace of the noise's covariance along the run",
        "seeds": "shuffle n of the run number r draws with 10000 r + n",
        "time": time,
        "rules": {name: rule.name for name, rule in rules.items()},
        "dtype": "float64",
    }
    return {"settings": settings, "data": describe(digits("train")), "curves": curves, "numbers": numbers}


def noise_work(
    rule: LearningRule, groups: int, time: float, seed: int = 0, draws: str = "fresh"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""What noise has given to the energy after each step but the first, and what it should give.

    Sums of :math:`-\tfrac12\langle\xi_n, q_{n+1} - q_{n-1}\rangle`, of :math:`\tfrac\eta2\operatorname{tr}\Sigma(q_n)`
    times :func:`heat_of_step`, and of the same without that factor. Shape ``(steps - 1, groups)`` each, means over the
    four copies of a group.
    """
    x, y = zeros_and_ones()
    team = ensemble((16, 64, 1), "tanh", seeds=[1] * (LOTS * groups), init="ntk")
    f = flat_loss(team, x, y, half_sum)
    lots_of = {"fresh": fresh_lots, "epochs": epoch_lots}[draws]

    def batch(n: int):
        lots = lots_of(n, groups, 10000 * seed)
        return lambda q: LOTS / 2 * (lots * (f.outputs(q)[..., 0] - y[:, 0]).square()).sum()

    assert rule.steps is not None
    q = descend(rule, None, f.q0, steps=round(time / rule.steps.time_step), batches=batch).q
    memory = 1.0 if rule.equation(1.0)[0] == 0 else rule.steps.memory_of(1)  # of the steps; without friction all of it
    work, foreseen, independent = [], [], []
    for n in range(1, len(q) - 1):
        full = grad(f)(q[n])
        noise, both = team.split(grad(batch(n))(q[n]) - full), team.split(q[n + 1] - q[n - 1])
        heat = rule.steps.lr / 2 * noise_trace(f.unflatten(q[n]), x, y, team.split(full))
        share = heat_of_step(n, memory) if draws == "epochs" else 1.0
        work.append(-(noise * both).sum(1) / 2)
        independent.append(heat)
        foreseen.append(share * heat)
    rows = (work, foreseen, independent)
    return tuple(torch.stack(row).cumsum(0).unflatten(1, (groups, LOTS)).mean(2) for row in rows)


def fresh_lots(n: int, groups: int, seed: int) -> Tensor:
    """Which images each copy sees in step ``n``, (copies, images): a new shuffle in every step."""
    return _shared_out(groups, seed + n, turn=0)


def epoch_lots(n: int, groups: int, seed: int) -> Tensor:
    """The same for batches dealt out from one shuffle an epoch, as data loaders do."""
    return _shared_out(groups, seed + n // LOTS, turn=n % LOTS)


def _shared_out(groups: int, seed: int, turn: int) -> Tensor:
    """The four copies of a group take the four lots of a shuffle, each in its turn."""
    order = torch.rand(groups, 1, IMAGES, generator=torch.Generator().manual_seed(seed)).argsort(2)
    taken = (torch.arange(LOTS) + turn) % LOTS
    return (order // BATCH == taken[:, None]).reshape(LOTS * groups, IMAGES)


def heat_of_step(n: int, momentum: float, lots: int = LOTS) -> float:
    r"""The share of :math:`\tfrac\eta2\operatorname{tr}\Sigma` that noise gives in step ``n`` of shuffled epochs.

    .. math:: 1 - \frac{1+\beta}{B-1}\sum_{l=1}^{j}\beta^{l-1}, \qquad j = n \bmod B

    The noises of an epoch of B batches add up to zero, so that any two of them have the mean product
    :math:`-\operatorname{tr}\Sigma/(B-1)`, and the step carries the j earlier ones of its epoch along.
    """
    j = n % lots
    return 1 - (1 + momentum) / (lots - 1) * sum(momentum ** (past - 1) for past in range(1, j + 1))


def heat_of_epochs(momentum: float, lots: int = LOTS) -> float:
    """The mean of :func:`heat_of_step` over an epoch: 1 - 1/B for plain descent, 0 for Newtonian steps."""
    return sum(heat_of_step(n, momentum, lots) for n in range(lots)) / lots


def noise_trace(weights: dict[str, Tensor], x: Tensor, y: Tensor, full: Tensor) -> Tensor:
    """Trace of the covariance of the gradient of 4 images out of 16, drawn without replacement; one per member."""
    first, second = weights.values()
    h = torch.tanh(x @ first.mT / 4)  # inputs have the length 4, so that a row of weights has the slope of h's square
    single = ((h * second).sum(2) / math.sqrt(h.shape[2]) - y[:, 0]).square()
    single = single * (h.square() + (second * (1 - h.square())).square()).mean(2)  # squared gradients of each image
    return (16 * single.sum(1) - full.square().sum(1)) / 5
