"""Hearing the steps of a run and measuring those that are to be watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch.optim import Optimizer

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.watch.layout import Layout
from nlcompanion.monitoring.watch.sample import Sample, Setting
from nlcompanion.monitoring.watch.tensors import Tensors, held_key, settings_of, tensors_of
from nlcompanion.monitoring.watch.transfers import Transfers

EARLY = 4  # the first steps, all of which are watched, for the search for laws
_LOOK_AT_MODEL = 50  # steps between two looks at whether the model still has the tensors that it had


@dataclass(frozen=True)
class _About:
    """What is known of a sample while its sums are on their way."""

    layout: Layout
    step: int
    settings: dict[str, Setting]
    stepped: set[str]
    rescaled: bool


class WatchedSteps:
    """Listens to optimizers, and measures every ``every``-th step and the first few.

    With several optimizers a step is one of each; one that steps a second time begins the next.

    Args:
        model, optimizers: of the run.
        every: the stride.
        receive: told of each sample as it arrives, with the layout and the raw sums.
        changed: told when the tensors have changed, with those before and those now.
        gather: called at the end of a watched step, while its gradients are there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        every: int,
        receive: Callable[[Sample, Layout, np.ndarray], None],
        changed: Callable[[Tensors, Tensors], None],
        gather: Callable[[], None],
    ):
        self.model, self.optimizers, self.every = model, list(optimizers), every
        self.steps = 0
        self.tensors = tensors_of(model, self.optimizers)
        self.layout = Layout(self.tensors.parameters)
        self._receive, self._changed, self._gather = receive, changed, gather
        self._transfers = Transfers()
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._watching = False
        self._settings: dict[str, Setting] = {}
        self._rescaled = False
        self.early = 0  # how many early steps were watched

    def use(self, laws: Collection[Law], *, every_axis: bool = False) -> None:
        """Measure these laws from the next step on."""
        self.layout = Layout(self.tensors.parameters, laws, every_axis=every_axis)

    # --- what the hooks tell ----------------------------------------------------------------------------------------

    def before(self, k: int) -> None:
        if k in self._begun:
            self._end_of_step()
        if not self._begun:
            self._begin_step()
        self._begun.add(k)
        if self._watching:
            scale = getattr(self.optimizers[k], "grad_scale", None)
            self._rescaled |= getattr(self.optimizers[k], "found_inf", None) is not None
            self.layout.begin(self.tensors.of(k), scale)

    def evaluated_again(self, k: int) -> None:
        """Further evaluations within one step (LBFGS): laws are those of the first."""

    def after(self, k: int) -> None:
        if k not in self._begun:
            return
        self._stepped.add(k)
        if self._watching:
            self.layout.measurement.end(self.tensors.of(k))
        if len(self._stepped) == len(self.optimizers):
            self._end_of_step()

    def _begin_step(self) -> None:
        number = self.steps + 1
        self._watching = number % self.every == 0 or self.early < EARLY
        if not self._watching:
            return
        self.early += 1
        self._look_at_tensors(number)
        self._settings = settings_of(self.tensors, self.optimizers)
        self._rescaled = False

    def _end_of_step(self) -> None:
        if self._stepped:
            self.steps += 1
        watched, any_stepped = self._watching, bool(self._stepped)
        self._begun, self._stepped, self._watching = set(), set(), False
        if not watched:
            return
        if any_stepped:
            self._gather()
        values, stepped = self.layout.vector()
        if any_stepped:  # else all of them failed
            about = _About(self.layout, self.steps, self._settings, stepped, self._rescaled)
            self._transfers.put(values, about)
            self.settle(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """Hand on the samples that have arrived, or all of them."""
        for values, about in self._transfers.arrived(wait=wait):
            sample = about.layout.sample(values, about.step, about.settings, about.stepped, about.rescaled)
            self._receive(sample, about.layout, values)

    def _look_at_tensors(self, number: int) -> None:
        """Groups come and go, and layers are replaced."""
        same = held_key(self.optimizers) == self.tensors.key
        if same and (number % _LOOK_AT_MODEL >= self.every or number <= EARLY):
            return
        now, before = tensors_of(self.model, self.optimizers), self.tensors
        if same and _ids(now) == _ids(before):
            return
        self.tensors = now
        self._changed(before, now)


def _ids(tensors: Tensors) -> dict[str, int]:
    return {name: id(p) for name, p in tensors.parameters.items()}
