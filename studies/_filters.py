"""Every filter of a convolutional network beside a running training (private to the studies)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nlcompanion.adaptivity import Persistence, radius_gain
from nlcompanion.monitoring import RadiusTracker
from nlcompanion.training import BeforeStep, TrainConfig

LAWS = ("persistent", "white", "averaged")  # of RadiusTracker
_NOTES = ("r_squared", *LAWS, "persistence", "reach")


class FilterWatch:
    r"""For ``train(watch=...)``: each filter's :math:`r^2` and what the laws predict, every few steps.

    A filter is a scale-invariant weight of its own, since BatchNorm measures each channel by itself. A
    :class:`~nlcompanion.monitoring.RadiusTracker` for each convolution follows all of its filters at once, on the
    device where they are.

    Args:
        config: the run's settings, with one step size from beginning to end.
        every: steps between two notes.
        window: steps over which the persistence is averaged.
    """

    def __init__(self, config: TrainConfig, every: int, window: int = 200):
        if config.lr_drops or config.constrain_norm:
            raise ValueError(
                "the laws run along a free filter at one step size; take lr_drops=() and constrain_norm=False"
            )
        self.config, self.every, self.window = config, every, window
        self.trackers: dict[str, RadiusTracker] = {}
        self.notes: dict[str, list[Tensor]] = defaultdict(list)
        self.steps: list[int] = []

    def __call__(self, moment: BeforeStep) -> None:
        filters = _filters(moment.model)
        if not self.trackers:
            config = self.config
            rule: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
            self.trackers = {name: RadiusTracker(q, keep=1, window=self.window, **rule) for name, q in filters.items()}
        if moment.step % self.every == 0:
            self._note(moment.step, filters)
        for name, q in filters.items():
            assert q.grad is not None  # a step is about to be taken
            self.trackers[name].update(q, q.grad)

    def _note(self, step: int, filters: Mapping[str, Tensor]) -> None:
        """Lengths now, and the laws' values for now, from the steps before."""
        self.steps.append(step)
        self.notes["r_squared"].append(torch.cat([_squared(q) for q in filters.values()]))
        for name in _NOTES[1:]:
            self.notes[name].append(torch.cat([getattr(tracker, name) for tracker in self.trackers.values()]))

    def course(self, model: nn.Module, steps: int) -> dict:
        """All notes after a run of so many steps: ``step`` (T,), ``layers`` with their numbers of filters, (T, F)."""
        filters = _filters(model)
        self._note(steps, filters)
        notes = {name: torch.stack(values).to("cpu", torch.float32) for name, values in self.notes.items()}
        layers = {name: len(q) for name, q in filters.items()}
        return {"step": torch.tensor(self.steps), "layers": layers, **notes}


def _filters(model: nn.Module) -> dict[str, Tensor]:
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def _squared(q: Tensor) -> Tensor:
    return q.detach().double().flatten(1).square().sum(1)


def judge(course: Mapping, config: TrainConfig) -> dict[str, dict]:
    r"""Per layer: what the laws make of the gain of :math:`r^4` in the whole run, over what it was.

    Four laws: TK's Eq. 17 as it is; with :math:`P` of independent gradients; with the layer's own measured :math:`P`,
    the median over its filters in the window at the end; and with :math:`|\\bar g|^2` in place of :math:`|\\hat g|^2`,
    no number at all. Of each, the quantiles 0.1, 0.5 and 0.9 over the filters of prediction / measurement.
    """
    t = config.lr * course["step"].double()
    free = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    gain = {name: radius_gain(t, course[name], **free)[-1] for name in ("r_squared", *LAWS)}
    verdicts, start = {}, 0
    for name, count in course["layers"].items():
        own = slice(start, start := start + count)
        measured, persistence = gain["r_squared"][own], course["persistence"][-1, own].double()
        p = persistence.median().item()
        laws = {
            "eq17": gain["persistent"][own],
            "white": gain["white"][own],
            "eq17_with_p": p * gain["persistent"][own],
            "averaged": gain["averaged"][own],
        }
        about = Persistence(torch.ones(1), p, config.momentum, len(t))
        verdicts[name] = {
            "filters": count,
            "persistence": _quantiles(persistence),
            "regime": about.regime,
            "reach": _quantiles(course["reach"][-1, own].double()),
            "growth": _quantiles((course["r_squared"][-1, own] / course["r_squared"][0, own]).double()),
            **{law: _quantiles(predicted / measured) for law, predicted in laws.items()},
        }
    return verdicts


def _quantiles(x: Tensor) -> list[float]:
    return torch.quantile(x, torch.tensor([0.1, 0.5, 0.9], dtype=x.dtype)).tolist()
