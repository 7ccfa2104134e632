"""The width study behind the chapter on time symmetry (private): a result registered with ``results.result``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from tqdm import tqdm

from nlcompanion.datasets import digits
from nlcompanion.descent import descend
from nlcompanion.kernels import linearized_dynamics, ntk, output_motion
from nlcompanion.learning_rules import newtonian
from nlcompanion.networks import Ensemble, ensemble, flat_loss
from nlcompanion.results import describe, result

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
            terms missing from GU Eq. 52 have in the motion: ``bend`` and, with one hidden layer, ``kick``.
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
        for name in ("mean_speed", "max_speed", "mean_moved", "max_moved"):
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
