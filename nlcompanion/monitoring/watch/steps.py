"""Hearing the steps of a run and measuring those that are to be watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from torch import nn
from torch.optim import Optimizer

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.watch.layout import Layout, Taken
from nlcompanion.monitoring.watch.settings import Settings, SettingsReader
from nlcompanion.monitoring.watch.tensors import Tensors, held_key, held_sizes, tensors_of
from nlcompanion.monitoring.watch.transfers import Transfers

EARLY = 4  # the first steps, all of which are judged, for the search for laws
JUDGE = 20  # steps between two that are held against laws, at least
_LOOK_AT_MODEL = 50  # steps between two looks at whether the model still has the tensors that it had

Batch = list[tuple[np.ndarray, Taken]]


class WatchedSteps:
    """Listens to optimizers, and measures every ``every``-th step and the first few.

    With several optimizers a step is one of each; one that steps a second time begins the next.

    Args:
        model, optimizers: of the run.
        every: the stride.
        receive: told of the measured steps up to a judged one, as they arrive; all of one layout.
        changed: told when the tensors have changed, with those before and those now.
        gather: called at the end of a judged step, while its gradients are there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        every: int,
        receive: Callable[[Batch], None],
        changed: Callable[[Tensors, Tensors], None],
        gather: Callable[[], None],
    ):
        self.model, self.optimizers, self.every = model, list(optimizers), every
        self.judge_every = every * -(-JUDGE // every)
        self.steps = 0
        self.early = 0  # how many early steps were judged
        self.tensors = tensors_of(model, self.optimizers)
        self._receive, self._changed, self._gather = receive, changed, gather
        self._transfers, self._batch = Transfers(), Batch()
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._watching = self._judging = self._rescaled = False
        self._settings = Settings()
        self.layout: Layout | None = None

    def use(self, laws: Collection[Law], *, every_axis: bool = False) -> None:
        """Measure these laws from the next step on."""
        self.layout = Layout(self.tensors, self.optimizers, laws, every_axis=every_axis)
        self._reader = SettingsReader(self.tensors, self.optimizers)

    # --- what the hooks tell ----------------------------------------------------------------------------------------

    def before(self, k: int) -> None:
        if k in self._begun:
            self._end_of_step()
        if not self._begun:
            self._begin_step()
        self._begun.add(k)
        if self._watching:
            assert self.layout is not None
            self._rescaled |= getattr(self.optimizers[k], "found_inf", None) is not None
            self.layout.begin(k, getattr(self.optimizers[k], "grad_scale", None), judged=self._judging)

    def after(self, k: int) -> None:
        if k not in self._begun:
            return
        self._stepped.add(k)
        if self._watching:
            assert self.layout is not None
            self.layout.end(k)
        if len(self._stepped) == len(self.optimizers):
            self._end_of_step()

    def _begin_step(self) -> None:
        number = self.steps + 1
        is_early = self.early < EARLY
        self._watching = is_early or number % self.every == 0
        self._judging = is_early or number % self.judge_every == 0
        if not self._watching:
            return
        self.early += is_early
        if self._judging or held_sizes(self.optimizers) != self.tensors.sizes:
            self._look_at_tensors(number)
        self._settings, self._rescaled = self._reader.read(rates_only=not self._judging), False

    def _end_of_step(self) -> None:
        stepped, watched = frozenset(self._stepped), self._watching
        self._begun, self._stepped, self._watching = set(), set(), False
        if stepped:  # else all of them failed
            self.steps += 1
        if not watched:
            return
        assert self.layout is not None
        if stepped and self._judging:
            self._gather()
        values = self.layout.take(judged=self._judging)
        if stepped:
            taken = Taken(self.layout, self.steps, self._settings, stepped, self._rescaled, self._judging)
            self._transfers.put(values, taken)
            self.settle(wait=False)

    def settle(self, *, wait: bool = True) -> None:
        """Hand on the measured steps that have arrived, or all of them."""
        for values, taken in self._transfers.arrived(wait=wait):
            if self._batch and self._batch[0][1].layout is not taken.layout:
                self._hand_on()
            self._batch.append((values, taken))
            if taken.judged:
                self._hand_on()
        if wait:
            self._hand_on()

    def _hand_on(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._receive(batch)

    def _look_at_tensors(self, number: int) -> None:
        """Groups come and go, and layers are replaced."""
        same = held_key(self.optimizers) == self.tensors.key
        if same and (number % _LOOK_AT_MODEL >= self.judge_every or number <= EARLY):
            return
        now, before = tensors_of(self.model, self.optimizers), self.tensors
        if same and _ids(now) == _ids(before):
            return
        self.tensors = now
        self._changed(before, now)


def _ids(tensors: Tensors) -> dict[str, int]:
    return {name: id(p) for name, p in tensors.parameters.items()}
