r"""A small convolutional network on handwritten digits, followed step by step: lengths, gradients, turns.

The experiment of the chapter on implicit adaptivity. Every convolution stands before a BatchNorm without
:math:`\epsilon`, so the loss does not see its length :math:`r`. A :class:`Course` keeps all that the laws of
:mod:`nlcompanion.adaptivity` ask for; the functions compare the laws with it. Training with mini-batches is chaotic:
judge by the mean over several seeds, :func:`mean_and_error`, not by one course.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import nlcompanion as nl
from nlcompanion.datasets import Dataset
from nlcompanion.training import Run, TrainConfig, train

NOISY = {"lr": 0.03, "batch_size": 64, "weight_decay": 5e-3, "label_noise": 0.3}
CLEAN = {"lr": 0.03, "batch_size": 64, "weight_decay": 5e-3}
FULL = {"lr": 0.003, "batch_size": "full", "subset": 200, "weight_decay": 5e-3, "precision": "float32"}
BURSTS = {"lr": 0.1, "batch_size": "full", "subset": 100, "weight_decay": 0.02}
PLAIN = {"lr": 0.1, "momentum": 0, "batch_size": 64, "weight_decay": 5e-3, "label_noise": 0.3}


@dataclass(frozen=True)
class Course:
    r"""A training run and every gradient that it used.

    Attributes:
        run: what ``train`` returned, with a record of every step.
        gradients: :math:`\hat g_n = r_n\nabla f(q_n)`, one tensor of shape (steps, weights) for each convolution.
    """

    run: Run
    gradients: tuple[Tensor, ...]

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def r_squared(self) -> Tensor:
        """The squared length of every convolution before each step, shape (steps, convolutions)."""
        return self.run.records["filter_norm"] ** 2

    @cached_property
    def squared_gradients(self) -> Tensor:
        r""":math:`|\hat g_n|^2`, shape (steps, convolutions)."""
        return torch.stack([g.square().sum(1) for g in self.gradients], dim=1)

    @cached_property
    def squared_averages(self) -> Tensor:
        r""":math:`|\bar g_n|^2`, of the gradients as the momentum averages them."""
        momentum = self.run.config.momentum
        return torch.stack([nl.momentum_average(g, momentum).square().sum(1) for g in self.gradients], dim=1)

    @property
    def settings(self) -> dict[str, float]:
        """Momentum and weight decay, as the functions of ``nlcompanion.adaptivity`` name them."""
        return {"momentum": self.run.config.momentum, "weight_decay": self.run.config.weight_decay}


def follow(*, nudge: float = 0.0, data: tuple[Dataset, Dataset] | None = None, **settings) -> Course:
    """Train the network of ``conv_bn`` on digits, in float64 and without BatchNorm's eps, and keep every gradient.

    Args:
        nudge: relative size of a random change of all filters at the first step, to see what chaos makes of it.
        data: other images than the digits; give ``dataset="custom"`` with it.
        settings: of :class:`~nlcompanion.training.TrainConfig`; the rate is constant unless ``lr_drops`` is given.

    Raises:
        ValueError: settings that are impossible.

    Example:
        >>> course = follow(subset=40, batch_size="full", epochs=3)
        >>> [tuple(g.shape) for g in course.gradients]
        [(3, 72), (3, 1152), (3, 2304)]
    """
    seen: list[list[Tensor]] = []

    def keep(moment) -> None:
        filters = [q for q in moment.model.parameters() if q.ndim == 4]
        seen.append([(q.detach().norm() * q.grad).flatten() for q in filters])
        if moment.step == 0 and nudge:
            _shake(filters, nudge)

    common: dict[str, Any] = {"eps": 0, "lr_drops": (), "precision": "float64"}
    config = TrainConfig(**common | settings)
    run = train(config, data=data, stride=1, evaluate_every=config.epochs, watch=keep, progress=False)
    return Course(run, tuple(torch.stack(layer) for layer in zip(*seen, strict=True)))


@torch.no_grad()
def _shake(filters: Sequence[Tensor], size: float) -> None:
    random = torch.Generator().manual_seed(0)
    for q in filters:
        q *= 1 + size * torch.randn(q.shape, generator=random, dtype=q.dtype)


def follow_seeds(seeds: Iterable[int], **settings) -> list[Course]:
    """One course for each seed, all else alike."""
    return [follow(seed=seed, **settings) for seed in seeds]


def drawn_with_replacement(samples: int, seed: int) -> tuple[Dataset, Dataset]:
    """The digits, each sample drawn anew from all of them: batches that are independent, as shuffled epochs are not.

    Example:
        >>> train_set, test_set = drawn_with_replacement(100, seed=0)
        >>> len(train_set)
        100
    """
    train_set = nl.digits("train")
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(train_set), (samples,), generator=random)
    again = copy.copy(train_set)
    object.__setattr__(again, "images", train_set.images[drawn])
    object.__setattr__(again, "labels", train_set.labels[drawn])
    return again, nl.digits("test")


# --- statistics over courses ------------------------------------------------------------------------------------------


class Statistic(NamedTuple):
    """What several runs say of one number: their mean, its standard error, and how many they are."""

    mean: Tensor
    error: Tensor
    runs: int

    def in_per_cent(self) -> str:
        """One line: every mean with its standard error, in per cent, and of how many runs.

        Example:
            >>> Statistic(torch.tensor([0.012, -0.5]), torch.tensor([0.003, 0.04]), 4).in_per_cent()
            '1.2 ± 0.3, -50.0 ± 4.0 per cent, mean of 4 runs'
        """
        both = zip(self.mean.flatten().tolist(), self.error.flatten().tolist(), strict=True)
        rounded = [(round(100 * mean, 1) + 0.0, round(100 * error, 1)) for mean, error in both]  # no minus zero
        numbers = ", ".join(f"{mean:.1f} ± {error:.1f}" for mean, error in rounded)
        return f"{numbers} per cent, mean of {self.runs} runs"


def mean_and_error(courses: Sequence[Course], measure: Callable[[Course], Tensor]) -> Statistic:
    """Mean and standard error over courses of what ``measure`` finds in each.

    Raises:
        ValueError: fewer than two courses, which have no scatter.
    """
    if len(courses) < 2:
        raise ValueError(f"{len(courses)} courses have no standard error; follow two seeds or more")
    found = torch.stack([measure(course) for course in courses])
    return Statistic(found.mean(0), found.std(0) / len(courses) ** 0.5, len(courses))


# --- the law of the length --------------------------------------------------------------------------------------------


def predicted(course: Course, first: int = 0, last: int | None = None, *, persistence=1.0, averaged=False) -> Tensor:
    """The squared lengths that TK Eq. 17 says from the step ``first`` to ``last``, from the length at ``first`` on."""
    source = (course.squared_averages if averaged else course.squared_gradients)[first:last]
    times = course.run.config.lr * torch.arange(len(source))
    start = course.r_squared[first]
    return nl.radius_squared(times, source, start, lr=course.run.config.lr, persistence=persistence, **course.settings)


def deviation(course: Course, first: int = 0, last: int | None = None, **law) -> Tensor:
    """Relative error of the predicted squared length, shape (steps, convolutions)."""
    return predicted(course, first, last, **law) / course.r_squared[first:last] - 1


def gain_error(course: Course, first: int, last: int | None = None, **law) -> Tensor:
    """Relative error of what gradients added to r^4 between two steps, for each convolution."""
    forecast, true = predicted(course, first, last, **law), course.r_squared[first:last]
    times = course.run.config.lr * torch.arange(len(true))
    gained = nl.radius_gain(times, true, **course.settings)[-1]
    return nl.radius_gain(times, forecast, **course.settings)[-1] / gained - 1


def persistence_between(course: Course, first: int, last: int) -> Tensor:
    """The factor P of every convolution, measured over the steps from ``first`` to ``last``."""
    momentum = course.run.config.momentum
    found = [nl.gradient_persistence(g[:last], momentum, window=last - first) for g in course.gradients]
    return torch.tensor([each.factor for each in found])


class Turn(NamedTuple):
    """Root mean square turn per step of every convolution, measured, by TK Eq. 29, and by the law with the drift."""

    measured: Tensor
    settled: Tensor
    drifting: Tensor


def turn(course: Course, first: int, last: int) -> Turn:
    r"""How far the convolutions turn per step, between two steps of the run, and what two laws say.

    .. math:: \langle|\Delta\hat q|^2\rangle
              = \frac{1}{1+\beta}\Big[2\eta k + (1-\beta)\,\frac{\Delta r^2}{N\langle r^2\rangle}\Big]

    is the sum of the identity of the steps over N of them; TK Eq. 29 leaves out the drift of the length.
    """
    config, r_squared = course.run.config, course.r_squared[first:last]
    squared = course.run.records["angular_update"][first:last].square().mean(0)
    drift = (r_squared[-1] - r_squared[0]) / (len(r_squared) - 1) / r_squared.mean(0)
    balance = torch.full_like(drift, 2 * config.lr * config.weight_decay)
    whole = balance + (1 - config.momentum) * drift
    return Turn(squared.sqrt(), (balance / (1 + config.momentum)).sqrt(), (whole / (1 + config.momentum)).sqrt())


class Windows(NamedTuple):
    """Windows of a course: the reach of the gradients and the error of the law in each, for every convolution."""

    reach: Tensor
    error: Tensor


def windows(courses: Sequence[Course], *, width: int = 100, skip: int = 100) -> Windows:
    r"""The law with the P measured in each window, against the root mean square of :math:`\eta|\hat g|/((1-\beta)r^2)`.

    Args:
        courses: any number.
        width: steps of a window, at whose end the squared length is compared.
        skip: steps at the start that are left out.
    """
    reaches, errors = [], []
    for course in courses:
        plain, averaged, config = course.squared_gradients, course.squared_averages, course.run.config
        for first in range(skip, course.steps - width, width):
            here = slice(first, first + width)
            angle = config.lr * plain[here].sqrt() / ((1 - config.momentum) * course.r_squared[here])
            persistence = averaged[here].sum(0) / plain[here].sum(0)
            reaches.append(angle.square().mean(0).sqrt())
            errors.append(deviation(course, first, first + width + 1, persistence=persistence)[-1].abs())
    return Windows(torch.cat(reaches), torch.cat(errors))


# --- other experiments with the same network --------------------------------------------------------------------------


def learn(**settings) -> dict[str, Tensor]:
    """Records of 6 epochs of clean mini-batches at a rate of 0.02, in float32, with settings of one's own."""
    common: dict[str, Any] = CLEAN | {"lr": 0.02, "epochs": 6, "eps": 0, "lr_drops": ()}
    config = TrainConfig(**common | settings)
    return train(config, stride=1, evaluate_every=config.epochs, progress=False).records


class Twins(NamedTuple):
    """Losses, step by step, of a network, of its unit-norm twin, and of the same twin with the scale held fixed."""

    free: Tensor
    scaled: Tensor
    fixed: Tensor


def unit_norm_twins(*, lr: float, momentum: float, weight_decay: float, steps: int = 60) -> Twins:
    r"""A network, and an identical one of unit norm whose gradients are divided by the first one's :math:`r^2(t)`.

    The text below TK Eq. 15 says that their losses are the same. Full batch of 100 digits, float64. The third network
    is the careful reader's control: unit norm, and the scale that the first one began with.
    """
    images, labels = nl.digits("train").first(100).tensors()
    free = nl.conv_bn(eps=0, dtype=torch.float64)
    scaled, fixed = copy.deepcopy(free), copy.deepcopy(free)
    start = [q.detach().norm() ** 2 for q in _filters(free)]
    for twin in (scaled, fixed):
        _to_unit_norm(twin)
    optimizers = [_heavy_ball(free, lr, momentum, weight_decay, weight_decay)]
    optimizers += [_heavy_ball(twin, lr, momentum, weight_decay, 0.0) for twin in (scaled, fixed)]
    losses: list[list[float]] = []
    for _ in range(steps):
        scale = [q.detach().norm() ** 2 for q in _filters(free)]
        now = []
        for model, optimizer in zip((free, scaled, fixed), optimizers, strict=True):
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            now.append(loss.item())
        for twin, divisor in ((scaled, scale), (fixed, start)):
            for q, r_squared in zip(_filters(twin), divisor, strict=True):
                q.grad /= r_squared
        for optimizer in optimizers:
            optimizer.step()
        for twin in (scaled, fixed):
            _to_unit_norm(twin)
        losses.append(now)
    return Twins(*torch.tensor(losses, dtype=torch.float64).T)


def largest_cosine(eps: float) -> list[float]:
    """Largest cosine between the gradient and a filter of norm 0.1, layer by layer, with BatchNorm's eps."""
    images, labels = nl.digits("train").first(200).tensors()
    model = nl.conv_bn(eps=eps, dtype=torch.float64)
    for q in _filters(model):
        q.data = 0.1 * normalize(q.data.flatten(1)).view_as(q)
    cross_entropy(model(images), labels).backward()
    pairs = [(q.detach().flatten(1), q.grad.flatten(1)) for q in _filters(model) if q.grad is not None]
    cosines = [normalize(q) * normalize(gradient) for q, gradient in pairs]
    return [each.sum(1).abs().max().item() for each in cosines]


def steps_of_filters(**settings) -> tuple[Tensor, Tensor]:
    """Squared steps (N - 1, filters) and squared lengths (N, filters) of the second convolution, in float64."""
    path: list[Tensor] = []
    common: dict[str, Any] = {"eps": 0, "lr_drops": (), "precision": "float64", "epochs": 2}
    config = TrainConfig(**common | settings)

    def keep(moment) -> None:
        path.append(moment.model.get_parameter("conv2.weight").detach().flatten(1).clone())

    train(config, watch=keep, progress=False)
    weights = torch.stack(path)
    return weights.diff(dim=0).square().sum(2), weights.square().sum(2)


def _filters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [q for q in model.parameters() if q.ndim == 4]


@torch.no_grad()
def _to_unit_norm(model: torch.nn.Module) -> None:
    for q in _filters(model):
        q.div_(q.norm())


def _heavy_ball(model, lr: float, momentum: float, decay: float, filter_decay: float) -> torch.optim.SGD:
    others = [p for p in model.parameters() if p.ndim != 4]
    groups = [{"params": _filters(model), "weight_decay": filter_decay}, {"params": others, "weight_decay": decay}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)
