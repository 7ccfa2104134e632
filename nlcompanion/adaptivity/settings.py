"""The settings of ``torch.optim.SGD``, checked by the rule that they make."""

from __future__ import annotations

from nlcompanion.dynamics.learning_rules import sgd


def settings(lr: float, momentum: float, weight_decay: float = 0.0) -> tuple[float, float, float]:
    """Step size, momentum and decay as numbers in their ranges."""
    rule = sgd(lr, momentum, weight_decay)
    assert rule.steps is not None  # SGD has steps
    return rule.steps.lr, rule.steps.memory_of(1), rule.weight_decay
