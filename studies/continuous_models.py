r"""How far the steps of an algorithm stray from the flow that is meant to describe them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import nlcompanion as nl

__all__ = ["distance_from_flow", "energy", "highest_energy", "order_of_distance"]


def distance_from_flow(
    algorithm: Callable[[float], nl.LearningRule],
    loss: Callable[[Tensor], Tensor],
    q0,
    *,
    time: float,
    steps: int,
    after: float = 0.6,
    flow: nl.LearningRule | None = None,
    flow_loss: Callable[[Tensor], Tensor] | None = None,
    v0: Tensor | None = None,
    start_time: float | None = None,
    clock: float = 1.0,
) -> float:
    r"""The largest distance between steps and flow late in a run, as a share of the whole way of the steps.

    Args:
        algorithm: ``time per step -> LearningRule``, such as :func:`nlcompanion.sgd`.
        loss: what the steps descend on.
        q0: where both start.
        time, steps: the length of the run, and in how many steps it is walked.
        after: distances count from this share of ``time`` on.
        flow: the continuous model; the algorithm's own equation by default.
        flow_loss: what the flow follows; ``loss`` by default.
        v0: the flow's initial velocity; the rule's own by default.
        start_time: where the flow starts; 0, or 1e-4 for a flow that is singular at 0.
        clock: the flow is read at ``clock`` times the time of the steps.

    Returns:
        The distance over the way, dimensionless.

    Example:
        >>> bowl = lambda q: 0.5 * q @ q
        >>> errors = [distance_from_flow(nl.sgd, bowl, [1.0], time=1.0, steps=n) for n in (10, 20)]
        >>> round(nl.convergence_order([2, 1], errors))
        2
    """
    rule = algorithm(time / steps)
    walk = nl.descend(rule, loss, q0, steps=steps, every=max(1, steps // 40))
    late = walk.t >= after * time * (1 - 1e-9)
    flow = flow or rule
    if start_time is None:
        start_time = 1e-4 if flow.singular_at == 0 else 0.0
    smooth = nl.integrate(
        flow,
        flow_loss or loss,
        q0,
        v0,
        t_span=(start_time, time),
        t_eval=clock * walk.t[late].clamp(max=time),
        rtol=1e-6,
        atol=1e-9,
    )
    apart = (walk.q[late] - smooth.q).norm(dim=1).max()
    return (apart / (walk.q[-1] - walk.q[0]).norm()).item()


def order_of_distance(counts: Sequence[int], algorithm, loss, q0, **settings) -> float:
    """The order in the step at which :func:`distance_from_flow` falls, over several numbers of steps."""
    errors = [distance_from_flow(algorithm, loss, q0, steps=n, **settings) for n in counts]
    return nl.convergence_order([1 / n for n in counts], errors)


def energy(run: nl.Trajectory, loss: Callable[[Tensor], Tensor], mass: float) -> Tensor:
    r""":math:`\tfrac m2|\dot q|^2 + f(q)` along a trajectory, shape ``(T,)``."""
    height = torch.stack([loss(q) for q in run.q]).detach()
    return height + mass / 2 * run.v.square().sum(1)


def highest_energy(run: nl.Trajectory, loss: Callable[[Tensor], Tensor], mass: float) -> float:
    """The largest energy along a trajectory over the energy at its start; 1 if it never rises above it."""
    values = energy(run, loss, mass)
    return (values.max() / values[0]).item()
