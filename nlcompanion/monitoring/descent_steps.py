"""The steps of :func:`descend`, as the ledger follows them."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.monitoring.stacked_forms import Step, Tensors

if TYPE_CHECKING:
    from nlcompanion.monitoring.ledger import Ledger


class DescentSteps:
    """The steps of :func:`descend`, as its ``record`` shows them: the buffer is the last step over the rate."""

    judged = "relative"  # heads the column of what is judged

    def __init__(self, ledger: Ledger, rule: LearningRule):
        if not isinstance(rule, LearningRule):
            raise TypeError(f"rule must be a LearningRule such as sgd(lr=0.1), got {type(rule).__name__}")
        if rule.steps is None:
            raise ValueError(f"{rule.name} has no discrete steps to book; Law.under(rule).residual measures its flow")
        self.ledger, self.rule, self.steps = ledger, rule, rule.steps
        self.forms, self.name = ledger._forms, rule.name
        self.last: tuple[float, Tensors] | None = None
        self.step: Tensors | None = None

    def judges_gradients(self, entry: int) -> bool:
        """Whether an entry's figure is its gradient's and not its step's; every step has a formula here."""
        return False

    def record(self, t: float, q: Tensor, v: Tensor) -> dict[str, float]:
        law = self.forms.laws[0]
        point = {name: law.tensor_of(q, term).clone() for name, term in self.forms.terms.items()}
        if self.last is None:
            self.last = (t, point)
            return {"residual": 0.0}
        before, old = self.last
        if abs(t - before - self.steps.time_step) > 1e-6 * self.steps.time_step:
            raise ValueError(
                f"the ledger books every step, got t = {t:g} after {before:g} at a time step of "
                f"{self.steps.time_step:g}; leave descend's every at 1 (the ledger has its own) and start a new Ledger "
                "for a new run"
            )
        self._book(old, point)
        self.last = (t, point)
        return {"residual": float(self.ledger._need_steps().latest.max())}

    def _book(self, old: Tensors, new: Tensors) -> None:
        forms, steps, k = self.forms, self.steps, self.rule.weight_decay
        step = Step({name: new[name] - old[name] for name in new})
        position, squares, product = forms.pairs((old, old), (step, step), (step, new))
        charges, square, product = forms.form(torch.stack([position, squares, product]))
        entry: dict[str, Tensor] = {}
        finite, pulled = square, forms.form(forms.as_steps(position))  # of what decay takes its share
        if self.step is not None:
            last = self.step
            memory, before = forms.form(forms.pairs((last, old), (last, last)))
            beta = steps.memory_of(self.ledger.steps)
            if steps.looks_ahead:  # the gradient acts at y = w + beta d, which memory alone has reached
                entry["momentum"] = 2 * beta * memory + beta**2 * before
                if k:  # decay pulls there too
                    ahead = {name: old[name] + beta * last[name] for name in old}
                    (pulled,) = forms.form(forms.as_steps(forms.pairs((ahead, ahead))))
                free = Step({name: step[name] - beta * last[name] for name in step})
                (finite,) = forms.form(forms.pairs((free, free)))
                if forms.has_matrices:  # whose forms do not commute
                    one, other = forms.form(forms.pairs((last, step), (step, last)))
                    entry["momentum"] = entry["momentum"] + beta * (one - other)
            else:
                entry["momentum"] = 2 * beta * memory
        if k:
            share = steps.first_share if self.step is None else 1.0
            entry["decay"] = -2 * share * steps.lr * k * pulled
        causes = {"finite_step": finite, **entry}
        scale = torch.maximum(forms.scale(position, old), forms.scale(squares, step))
        change = 2 * product - square
        excess = (change - reduce(torch.add, causes.values())).abs()
        self.ledger._enter(change, causes, charges, excess / (scale + 1e-300))
        self.step = step
