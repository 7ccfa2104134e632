r"""The discrete algorithms, as the papers write them and as PyTorch runs them.

One step of ``sgd`` is ``torch.optim.SGD``'s, of ``nesterov(lr=...)`` GU Eq. 20, of ``newtonian(lr=...)`` GU Eq. 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nlcompanion._arguments import as_point, function, integer, ordered, real_array
from nlcompanion.dynamics.gradient import LossGradient
from nlcompanion.dynamics.learning_rules import LearningRule, Steps, as_rule
from nlcompanion.dynamics.trajectory import Recorder, Trajectory

__all__ = ["DescentError", "convergence_order", "descend"]

_MOST_STEPS = 10**9


class DescentError(RuntimeError):
    """A descent that met a non-finite loss; ``trajectory`` holds the steps before it."""

    def __init__(self, message: str, trajectory: Trajectory):
        super().__init__(message)
        self.trajectory = trajectory


def descend(
    rule: LearningRule,
    f: Callable[[Tensor], Tensor] | None,
    q0,
    *,
    steps: int,
    batches: Callable[[int], Callable[[Tensor], Tensor]] | None = None,
    record: Callable[[float, Tensor, Tensor], dict] | None = None,
    every: int = 1,
) -> Trajectory:
    r"""Run a rule's discrete algorithm.

    Heavy ball (TK's convention and PyTorch's): :math:`b_n = \beta b_{n-1} + \nabla f(q_n) + k q_n`,
    :math:`q_{n+1} = q_n - \eta b_n`, at times :math:`t_n = \eta n`; for NAGD and Newtonian steps
    :math:`t_n = \sqrt\eta\, n`.

    Args:
        rule: ``sgd(...)``, ``nesterov(lr=...)`` or ``newtonian(lr=...)``.
        f: loss ``f(q) -> scalar``; None when ``batches`` gives one per step.
        q0: start, array-like of shape ``(n,)``.
        steps: number of steps; the trajectory has ``steps // every + 1`` times.
        batches: ``batches(n)`` is step ``n``'s own loss (a mini-batch). Asked for 0 to ``steps``: the last one gives
            the final velocity.
        record: ``record(t, q, v) -> dict of scalars``, instead of storing states.
        every: keep (or record) each ``every``-th state.

    Returns:
        A :class:`Trajectory` with ``v = (q[n+1] - q[n]) / dt``, ``dt`` the rule's time step; a velocity at every kept
        time, the last one included, by one gradient more.

    Raises:
        ValueError, TypeError: arguments out of range, a rule without a discrete algorithm.
        DescentError: the loss or its gradient turned non-finite; the message names the step, ``.trajectory`` holds
            what was reached.

    Source: TK Section 1 (the update above Eq. 3); GU Eqs. 20 and 21.

    Example:
        >>> from nlcompanion import sgd
        >>> descend(sgd(lr=0.5), lambda q: 0.5 * q @ q, [1.0], steps=3).q[:, 0].tolist()
        [1.0, 0.5, 0.25, 0.125]
    """
    algorithm, batch = _check(rule, f, steps, batches, record, every)
    q = as_point("q0", q0).clone()
    dt, calls = algorithm.time_step, 0
    buffer: Tensor | None = None
    log = Recorder(record, len(q))
    for n in range(steps + 1):
        q_next, buffer = _step(algorithm, rule.weight_decay, n, q, buffer, batch(n))
        calls += 1
        if not torch.isfinite(q_next).all():
            raise DescentError(
                f"the loss or the parameters turned non-finite at step {n} (t = {n * dt:.6g}) of {steps}: the steps "
                f"diverge. Lower lr (now {algorithm.lr:g}); gradient descent with heavy ball needs "
                "lr < 2 (1 + momentum) / curvature",
                log.trajectory(calls, rule.name),
            )
        if n % every == 0:
            log.add(n * dt, q, (q_next - q) / dt)
        q = q_next
    return log.trajectory(calls, rule.name)


def _step(steps: Steps, k: float, n: int, q: Tensor, buffer: Tensor | None, gradient) -> tuple[Tensor, Tensor]:
    """Step ``n`` from ``q``; the buffer is minus the last step over the rate, as in ``torch.optim.SGD``."""
    kept = None if buffer is None else steps.memory_of(n) * buffer
    y = q - steps.lr * kept if steps.looks_ahead and kept is not None else q
    push = gradient(y)
    if k:
        push = push + k * y
    buffer = steps.first_share * push if kept is None else kept + push
    return q - steps.lr * buffer, buffer


def convergence_order(sizes: Sequence[float], errors: Sequence[float]) -> float:
    r"""The observed order of convergence: the slope :math:`p` of :math:`\log` error against :math:`\log` size.

    A least-squares fit through all points, so that one lucky error does not make the order.

    Args:
        sizes: step sizes, spacings or any small parameter, two or more different positive numbers.
        errors: the error at each, positive.

    Returns:
        The order, dimensionless: 1 when halving the size halves the error, 2 when it quarters it.

    Raises:
        ValueError: different lengths, fewer than two sizes, or values that are not positive and finite (an error of
            exactly 0 has no order: the sizes are below rounding).

    Example:
        >>> round(convergence_order([0.1, 0.05, 0.025], [4e-3, 1e-3, 2.5e-4]), 6)
        2.0
    """
    sizes, errors = (
        real_array(name, ordered(name, given, "numbers in a list")).reshape(-1).tolist()
        for name, given in (("sizes", sizes), ("errors", errors))
    )
    if len(sizes) != len(errors) or len(set(sizes)) < 2:
        raise ValueError(f"{len(sizes)} sizes and {len(errors)} errors; an order needs as many of each, 2 or more")
    if not all(math.isfinite(x) and x > 0 for x in (*sizes, *errors)):
        raise ValueError(f"sizes and errors must be positive and finite, got {sizes} and {errors}")
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    return float((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum())


def _check(rule, f, steps, batches, record, every) -> tuple[Steps, Callable[[int], LossGradient]]:
    """The rule's algorithm, and the gradient that step ``n`` asks."""
    if as_rule(rule).steps is None:
        raise ValueError(
            f"{rule.name} has no discrete algorithm; use sgd(lr=...), nesterov(lr=...) or newtonian(lr=...), or "
            "integrate() for its flow"
        )
    if (f is None) == (batches is None):
        raise ValueError("give either one loss f or batches(n) with a loss per step, and None for the other")
    integer("steps", steps, 0, _MOST_STEPS)
    integer("every", every, 1, _MOST_STEPS)
    if record is not None:
        function("record", record, "record(t, q, v) -> dict of scalars", 3)
    if batches is not None:
        function("batches", batches, "batches(n) -> loss of step n", 1)
        return rule.steps, lambda n: LossGradient(batches(n))
    single = LossGradient(f)
    return rule.steps, lambda n: single
