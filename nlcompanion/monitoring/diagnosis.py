"""Why a law broke at a step: the one cause that the step itself gives evidence of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.cause import Cause
from nlcompanion.monitoring.scaled_gradients import scaled_apart

_DATA = "the data are not the same after a rotation, as no finite set of samples is"
_LAYERS = (
    "the gradients themselves lack the symmetry: a hook or a layer that the law does not know of, or weights shared "
    "with another part of the network; Law.cosine(gradient, q) judges a single gradient"
)
_FEW = (
    "the gradients themselves lack the symmetry: one tensor's was scaled or clipped by itself, the loss holds a "
    "penalty, or the law does not know of a hook or a layer; a ledger of the laws of all neurons tells which"
)


@dataclass(frozen=True)
class Moved:
    """One parameter in the step that broke a law.

    Attributes:
        before: the weights that the step started from.
        step: what it added.
        gradient: None where there was none.
        expected: what the optimizer's formula makes of the step, all readings of it; empty where none is known.
        idle: why it took no part in the steps, and since which; None if it did.
    """

    before: Tensor
    step: Tensor
    gradient: Tensor | None
    expected: tuple[Tensor, ...]
    idle: tuple[str, int] | None


def diagnosis(
    law: Law,
    parameters: Mapping[str, Moved],
    *,
    optimizer: str,
    own_step: bool,
    half: torch.dtype | None,
    cleared: Collection[str] = (),
) -> Cause:
    """The cause, and what to do about it.

    Args:
        law: that was broken.
        parameters: all that are followed, by name.
        optimizer: its name.
        own_step: whether its ``step`` is a subclass's own.
        half: the half precision that the gradients have come to carry since the first step.
        cleared: parameters whose gradients keep another law, see :func:`cleared_by`.
    """
    own = {name: parameters[name] for name in law.parameters}
    text = (
        _not_finite(parameters)
        or _without_gradient(own)
        or _half_precision(half)
        or _other_steps(own, optimizer, own_step)
        or (_DATA if law.kind == "data" else None)
        or _clipped_by_value(parameters)
        or _clipped_by_tensor(own)
    )
    if text is not None:
        return Cause(text)
    factors = _factors(law, own)
    if factors is not None:
        return scaled_apart(factors, cleared)
    text = _penalty(law, own)
    if text is not None:
        return Cause(text)
    return Cause(_LAYERS if _has_enough_entries(law) else _FEW, is_evident=False)


def undiagnosed(law: Law, optimizer: str) -> str:
    """What may be the cause where no evidence was kept."""
    if law.kind == "data":
        return f"{_DATA}, or the steps are not {optimizer}'s"
    return (
        "a parameter of one side without a gradient, weights written to through .data, clipping by tensor or by value, "
        f"a penalty in the loss, a hook, or steps that are not {optimizer}'s"
    )


# --- the steps ----------------------------------------------------------------------------------------------------


def _not_finite(parameters: Mapping[str, Moved]) -> str | None:
    for what, values in (
        ("gradient", {name: x.gradient for name, x in parameters.items() if x.gradient is not None}),
        ("step", {name: x.step for name, x in parameters.items()}),
    ):
        bad = [name for name, value in values.items() if not value.isfinite().all()]
        if bad:
            return (
                f"the {what} of {_listed(bad)} is not finite there; look for what overflowed (a learning rate too "
                "large, the logarithm of 0), or let a GradScaler leave such steps out"
            )
    return None


def _without_gradient(own: Mapping[str, Moved]) -> str | None:
    idle = {name: x.idle for name, x in own.items() if x.idle is not None}
    if idle and len(idle) < len(own):
        why, since = min(idle.values(), key=lambda reason: reason[1])
        why = why if len(idle) == 1 else why.replace("was ", "were ", 1)
        return (
            f"{_listed(idle)} {why} from step {since} on, so one side of the balance moves alone; freeze both sides or "
            "leave these laws out of the ledger"
        )
    blank = [name for name, x in own.items() if x.gradient is not None and not x.gradient.any()]
    if blank and any(x.gradient is not None and x.gradient.any() for x in own.values()):
        return (
            f"every entry of the gradient of {_listed(blank)} is 0 there, so one side of the balance moves alone; look "
            "for a detach() or torch.no_grad() on its way to the loss"
        )
    return None


def _half_precision(half: torch.dtype | None) -> str | None:
    if half is None:
        return None
    short = str(half).removeprefix("torch.")
    return (
        f"the gradients carry no more than the digits of {short} (autocast), which they did not when the ledger began; "
        f"make a new ledger now, and its tolerance is that of {short}"
    )


def _other_steps(own: Mapping[str, Moved], optimizer: str, own_step: bool) -> str | None:
    odd = [name for name, x in own.items() if x.expected and not any(_same(x, y) for y in x.expected)]
    if not odd:
        return None
    if own_step:
        return (
            f"{optimizer} has a step of its own, which moved {_listed(odd)} otherwise than torch.optim.SGD does; give "
            "the ledger plain SGD, and do the rest between its steps under torch.no_grad(), to be booked as outside"
        )
    return (
        f"{_listed(odd)} moved by more than the step of {optimizer}: written to through .data or from NumPy, which "
        "leaves no trace; write p.mul_(...) or p.copy_(...) under torch.no_grad(), and it is booked as outside"
    )


def _same(x: Moved, expected: Tensor) -> bool:
    unit = torch.finfo(x.before.dtype).eps
    allowed = 4 * unit * torch.linalg.vector_norm(x.before) + 64 * unit * torch.linalg.vector_norm(x.step)
    return bool(torch.linalg.vector_norm(x.step - expected) <= allowed)


# --- the gradients ------------------------------------------------------------------------------------------------


def _clipped_by_value(parameters: Mapping[str, Moved]) -> str | None:
    """Clipped entries are all of one size, as nothing else makes them; a single one has the size that was asked for."""
    gradients = [x.gradient for x in parameters.values() if x.gradient is not None]
    largest = max(float(g.abs().max()) for g in gradients)
    alike = sum(int((g.abs() == largest).sum()) for g in gradients)
    if alike > 3 or (largest > 0 and _is_short(largest, gradients[0].dtype)):
        entries = "entry of the gradients is" if alike == 1 else "entries of the gradients are"
        return (
            f"{alike} {entries} {largest:.4g} in size and none is larger: clipped by value, which turns a gradient; "
            "clip_grad_norm_(model.parameters(), ...) keeps its direction and every law"
        )
    return None


def _clipped_by_tensor(own: Mapping[str, Moved]) -> str | None:
    """Gradients whose norms are numbers that people write."""
    norms = {name: float(torch.linalg.vector_norm(x.gradient)) for name, x in own.items() if x.gradient is not None}
    clipped = [name for name, norm in norms.items() if _is_short(norm, torch.float32, 1e-5)]
    if clipped:
        return (
            f"the gradient of {_listed(clipped)} has a norm of {norms[clipped[0]]:.4g}: clipped tensor by tensor, "
            "which scales the sides of a balance apart; clip_grad_norm_(model.parameters(), ...) scales all alike"
        )
    return None


def _factors(law: Law, own: Mapping[str, Moved]) -> dict[str, float] | None:
    """By what the gradient of each tensor was multiplied, up to a common factor, if that is all that happened.

    Undone, the shares of a law add up to 0 for every neuron: the shares' matrix has a kernel of one sign.
    """
    shares = _shares(law, own, lambda x: x.gradient)
    if shares is None or not _has_enough_entries(law):
        return None
    lengths = torch.linalg.vector_norm(shares, dim=0)
    if not (lengths > 0).all():
        return None
    _, sizes, kernel = torch.linalg.svd(shares / lengths, full_matrices=False)
    small = _rounding(own) * sizes[0]
    if not (sizes[-1] <= small and sizes[-2] > 30 * small and (kernel[-1] * kernel[-1, 0] > 0).all()):
        return None
    factors = lengths / kernel[-1].abs()
    return {term.name: float(factor) for term, factor in zip(law.terms, factors, strict=True)}


def _penalty(law: Law, own: Mapping[str, Moved]) -> str | None:
    """A gradient that holds, beside the loss's, the same share of each weight or of its sign for every neuron."""
    shares = _shares(law, own, lambda x: x.gradient)
    if shares is None or not _has_enough_entries(law):
        return None
    slopes = shares.sum(1)
    for what, pick in (("|w|²/2", lambda x: x.before), ("|w|", lambda x: x.before.sign())):
        columns = _shares(law, own, pick)
        assert columns is not None
        strength = torch.linalg.lstsq(columns, slopes[:, None]).solution[:, 0]
        misfit = torch.linalg.vector_norm(columns @ strength - slopes)
        if misfit <= _rounding(own) * torch.linalg.vector_norm(shares):
            strong = [k for k in range(len(strength)) if strength[k].abs() > 1e-3 * strength.abs().max()]
            terms = ", ".join(f"{float(strength[k]):.4g} on {law.terms[k].name}" for k in strong)
            return (
                f"the loss holds a penalty on {what}, of strength {terms}; make it the optimizer's weight_decay, which "
                "is booked as decay, or make the laws of a loss without it"
            )
    return None


def _has_enough_entries(law: Law) -> bool:
    """Whether a number for each tensor cannot but fail to explain all entries of a law."""
    return math.prod(law.shape) >= len(law.terms) + 2


def _shares(law: Law, own: Mapping[str, Moved], pick) -> Tensor | None:
    """What each tensor adds to ``form(x, q)``, entry by entry of the law: one column for each."""
    if any(pick(own[term.name]) is None for term in law.terms):
        return None
    columns = [
        term.coefficient * term.pair(pick(own[term.name]).double(), own[term.name].before.double()).reshape(-1)
        for term in law.terms
    ]
    return torch.stack(torch.broadcast_tensors(*columns), 1)


def _rounding(own: Mapping[str, Moved]) -> float:
    """Of shares of gradients, relative to the largest."""
    return 1e3 * reduce(max, (torch.finfo(x.before.dtype).eps for x in own.values()))


def _is_short(value: float, dtype: torch.dtype, within: float = 0.0) -> bool:
    """Whether a number is one that people write: two digits, such as 0.25."""
    if not value > 0:
        return False
    written = float(f"{value:.1e}")
    return abs(value - written) <= within * value if within else float(torch.tensor(written, dtype=dtype)) == value


def _listed(names) -> str:
    return " and ".join(names)
