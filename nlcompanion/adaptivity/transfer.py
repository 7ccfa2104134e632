r"""Settings of another optimiser under which weights move, forget and turn as they did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import brentq
from torch import nn

from nlcompanion._arguments import choice, instance, integer, positive_number
from nlcompanion.adaptivity.matched import Match, MatchedGroup, Motion, meaningless_rows, names_of
from nlcompanion.adaptivity.update_equilibrium import decay_alone, equilibrium_of_updates, updates_of
from nlcompanion.adaptivity.update_memory import UpdateMemory, made_by, optimizer_factory
from nlcompanion.laws.auditing import Audit
from nlcompanion.laws.under_optimizers import is_decoupled

__all__ = ["match"]


def match(
    source: torch.optim.Optimizer,
    target: Callable[..., torch.optim.Optimizer],
    model: nn.Module | None = None,
    *,
    audit: Audit | None = None,
    keep: str = "angle",
    batch_sizes: tuple[int, int] | None = None,
    grad_rms: float | None = None,
) -> Match:
    r"""Learning rates and decays with which another optimiser moves the weights as this one does.

    Three things describe the motion of a weight: the **early step** :math:`\eta U`, root mean square of an entry's
    change; the **time constant** :math:`-1/(2\log(1-\eta\lambda))` of its squared norm; and the **angle** per step at
    equilibrium, :math:`\sqrt{(1-(1-\eta\lambda)^2)/S - (\eta\lambda)^2}`. An optimiser has two knobs for them. The rate
    keeps the early step; the decay keeps the angle, and with both the norm at equilibrium, or the time constant. The
    third is missed unless both optimisers remember equally long, and the answer says by how much.

    It says where **norms and angles** go, under white gradients, and nothing of losses: two optimisers that turn
    weights equally fast need not learn equally well. For another batch size the motion in samples is kept where the
    noise of the batches makes it: :math:`\eta U` and the angle as the root of the samples in a step, the time constant
    as their number.

    Args:
        source: the optimiser with the settings that are right, with the parameters it moves.
        target: ``target(parameters) -> optimizer``, ``torch.optim.Muon`` for example, with any momentum; its rate and
            decay are what is asked for.
        model: to name the parameters.
        audit: of that model, to say for which parameters none of it means anything, since their length is part of
            the function.
        keep: ``"angle"`` or ``"time_constant"``.
        batch_sizes: of the source and of the target, where they differ.
        grad_rms: root mean square of an entry of the gradient at the source's batch size, where one of the two follows
            its size (SGD); taken from the parameters' ``.grad`` when None.

    Returns:
        A :class:`Match`; its ``groups`` can be handed to the target.

    Raises:
        TypeError: no optimizer, a target that makes none.
        ValueError: a decay that joins a normalised gradient (Adam's), gradients of unknown size, settings that no decay
            can meet.

    Source: the balance of Kosson et al. (arXiv 2305.17212); the roots of the batch size as in Malladi et al. (arXiv
    2205.10287).

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.randn(16, 16))
        >>> adam = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1)
        >>> sgd = match(adam, lambda p: torch.optim.SGD(p, momentum=0.9), grad_rms=0.01)
        >>> sgd.rows[0].missed["time_constant"]         # both remember alike: nothing is missed
        0.0
        >>> round(sgd.rows[0].lr, 4), round(sgd.rows[0].weight_decay, 6)
        (0.01, 0.001)
    """
    instance("source", source, torch.optim.Optimizer, "torch.optim.AdamW(model.parameters())")
    optimizer_factory("target", target)
    if model is not None:
        instance("model", model, nn.Module, "the model whose parameters the source moves")
    if audit is not None:
        instance("audit", audit, Audit, "audit(model, inputs, targets, loss)")
    kept = choice("keep", keep, "angle", "time_constant")
    samples = _ratio(batch_sizes)
    size = None if grad_rms is None else positive_number("grad_rms", grad_rms)
    names = names_of(source, model)
    matcher = _Matcher(target, kept, samples, size)
    rows, left = [], []
    for number, group in enumerate(source.param_groups):
        for parameters in _by_shape(group["params"]):
            labels = tuple(names[id(p)] for p in parameters)
            made = matcher.made_of(parameters)
            if isinstance(made, str):
                left.append((labels, made))
            else:
                rows.append(matcher.row(number, parameters, labels, source, group, made))
    return Match(tuple(rows), tuple(left), meaningless_rows(audit, names, source), kept, samples)


def _ratio(batch_sizes) -> float:
    if batch_sizes is None:
        return 1.0
    if not isinstance(batch_sizes, tuple | list) or len(batch_sizes) != 2:
        raise TypeError(f"batch_sizes are two numbers of samples, (old, new), got {batch_sizes!r}")
    old, new = (integer("batch_sizes", size, 1) for size in batch_sizes)
    return new / old


def _by_shape(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault(tuple(parameter.shape), []).append(parameter)
    return list(found.values())


class _Matcher:
    """The target's settings for one kind of parameters after another; each kind's updates are looked for once."""

    def __init__(self, target: Callable, keep: str, samples: float, grad_rms: float | None):
        self.target, self.keep, self.samples, self.grad_rms = target, keep, samples, grad_rms
        self._known: dict[tuple, UpdateMemory] = {}

    def made_of(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer | str:
        """The target on copies of some parameters, or why it does not take them."""
        try:
            made = made_by(self.target, [nn.Parameter(p.detach().clone()) for p in parameters])
        except ValueError as error:
            return str(error)
        return made

    def row(
        self,
        number: int,
        parameters: Sequence[nn.Parameter],
        labels: tuple[str, ...],
        source: torch.optim.Optimizer,
        group: dict[str, Any],
        made: torch.optim.Optimizer,
    ) -> MatchedGroup:
        gradient = self._gradient(parameters, labels, source, made)
        shape = tuple(parameters[0].shape)
        old = self._updates(source, group, shape, gradient)
        later = None if gradient is None else gradient / math.sqrt(self.samples)  # noise averages out in a batch
        new = self._updates(made, made.param_groups[0], shape, later)
        decay = 0.0 if not group.get("weight_decay") else decay_alone(source, group)
        wanted = motion(old, float(group["lr"]), decay).in_steps_of(self.samples)
        rate = wanted.early_step / new.rms
        fading = fading_for(new, wanted, self.keep)
        found = motion(new, rate, fading / rate)
        setting = fading / rate / coupling(made, made.param_groups[0])
        return MatchedGroup(number, labels, tuple(parameters), rate, setting, wanted, found)

    def _updates(self, optimizer, group, shape: tuple[int, ...], gradient: float | None) -> UpdateMemory:
        key = (type(optimizer), shape, gradient, str({k: v for k, v in group.items() if k != "params"}))
        if key not in self._known:
            self._known[key] = updates_of(optimizer, group, shape, gradient)
        return self._known[key]

    def _gradient(self, parameters, labels, source, made) -> float | None:
        """The gradients' root mean square, which matters as soon as one of the two follows their size."""
        if not any(isinstance(optimizer, torch.optim.SGD) for optimizer in (source, made)):
            return None
        if self.grad_rms is not None:
            return self.grad_rms
        gradients = [p.grad.detach().flatten() for p in parameters if p.grad is not None]
        if gradients:
            return float(torch.cat(gradients).double().square().mean().sqrt())
        if all(isinstance(optimizer, torch.optim.SGD) for optimizer in (source, made)):
            return 1.0  # it drops out
        raise ValueError(
            f"SGD's steps are as large as the gradients, and those of {labels[0]} are not known; give grad_rms=, or "
            "call backward() on a batch before"
        )


def motion(updates: UpdateMemory, lr: float, decay: float) -> Motion:
    """What the updates make of a weight at these settings."""
    if not decay > 0:
        return Motion(lr * updates.rms, math.inf, 0.0, math.inf)
    settled = equilibrium_of_updates(updates, lr=lr, weight_decay=decay)
    return Motion(lr * updates.rms, settled.time_constant_steps, settled.angular_update, settled.rms)


def fading_for(updates: UpdateMemory, wanted: Motion, keep: str) -> float:
    r"""The :math:`\eta\lambda` that gives the wanted angle, or the wanted time constant."""
    if math.isinf(wanted.time_constant):
        return 0.0
    if keep == "time_constant":
        return -math.expm1(-1 / (2 * wanted.time_constant))

    def missing(logarithm: float) -> float:
        fading = math.exp(logarithm)
        left = 1 - (1 - fading) ** 2
        return left / updates.memory(fading) - fading**2 - wanted.angle**2

    least, most = math.log(1e-14), math.log(0.5)
    if missing(most) < 0:
        raise ValueError(
            f"no decay makes this optimiser turn weights by {wanted.angle:.2g} rad in a step, its updates remember one "
            "another for too long; take less momentum, or keep='time_constant'"
        )
    return math.exp(brentq(missing, least, most, xtol=1e-13))


def coupling(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float:
    """The decay that acts on the weight for a ``weight_decay`` of 1."""
    if is_decoupled(optimizer, group):
        return 1.0
    return decay_alone(optimizer, {**group, "weight_decay": 1.0})
