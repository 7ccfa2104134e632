"""States of motion, one or a whole trajectory, as the functions of symmetries and charges take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap

from nlcompanion._arguments import as_tensor, known, real_number
from nlcompanion.dynamics.learning_rules import LearningRule, at_time
from nlcompanion.symmetries.actions import Symmetry, as_symmetry


def state(rule: LearningRule | None, symmetry: Symmetry | None, t, q, v) -> tuple[Tensor, Tensor, Tensor]:
    """``(t, q, v)`` as float64 tensors of a point or of a trajectory, checked against rule and symmetry."""
    if isinstance(t, int | float):
        t = real_number("t", t)
        t = torch.tensor(t, dtype=torch.float64)
    t, q, v = (as_tensor(name, x).double() for name, x in (("t", t), ("q", q), ("v", v)))
    if t.ndim > 1 or (t.ndim == 1 and (q.ndim != 2 or len(q) != len(t) or not len(t))):
        raise ValueError(
            f"t has shape {tuple(t.shape)} and q {tuple(q.shape)}; a point needs a single t and q of shape (n,), a "
            "trajectory t of shape (T,) and q of shape (T, n)"
        )
    if v.shape != q.shape:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, q {tuple(q.shape)}; a velocity lives in the space of the point"
        )
    for name, x in (("t", t), ("q", q), ("v", v)):
        if known(~torch.isfinite(x).all()):
            raise ValueError(f"{name} holds NaN or infinity; a motion cannot pass there")
    if symmetry is not None:
        as_symmetry(symmetry).check(q if t.ndim == 0 else q[0])
    if rule is not None:
        _check_domain(rule, t, q, v)
    return t, q, v


def at_each(function: Callable, t: Tensor, *rest: Tensor):
    """``function`` at a point (0-d ``t``), or at every row of all arguments, in one batch where it allows that."""
    if t.ndim == 0:
        return function(t, *rest)
    try:
        return vmap(function)(t, *rest)
    except RuntimeError:  # a schedule, h or action that branches on values; a real error comes again from the loop
        rows = [function(*row) for row in zip(t, *rest, strict=True)]
        if isinstance(rows[0], Tensor):
            return torch.stack(rows)
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _check_domain(rule: LearningRule, t: Tensor, q: Tensor, v: Tensor) -> None:
    if rule.massless:
        return
    if rule.fixed_rates is None:
        schedules = at_each(lambda t: at_time(rule.alpha, "alpha", t) + at_time(rule.beta, "beta", t), t)
        bad = ~torch.isfinite(schedules)
        if known(bad.any()):
            raise ValueError(
                f"the schedules of {rule.name} are not finite at t = {float(t[bad].flatten()[0]):.6g}: it is singular "
                "there, or its mass is not positive; take a time at which it moves"
            )
    if rule.is_euclidean:
        return

    def slopes(t, q, v):
        return grad(rule.h)(q), grad(rule.h)(q + torch.exp(-at_time(rule.alpha, "alpha", t)) * v)

    places = ("q", "q + exp(-alpha) v")
    fixes = (
        "move q inside, or choose an h that lives there",
        "take a smaller v, or a rule with a smaller mass exp(-alpha)",
    )
    for slope, place, fix in zip(at_each(slopes, t, q, v), places, fixes, strict=True):
        bad = ~torch.isfinite(slope)
        if known(bad.any()):
            where = bad.nonzero()[0].tolist()
            when = f" at t = {float(t if t.ndim == 0 else t[where[0]]):.6g}"
            raise ValueError(
                f"grad h is not finite at {place}{when} (component {where[-1]}): the point lies outside the domain of "
                f"h, as for the entropy wherever a component is <= 0; {fix}"
            )
