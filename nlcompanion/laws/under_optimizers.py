r"""What a step of an optimiser makes of a law: one table, read by statements and by the ledger.

A step :math:`d` changes the charge :math:`C = \mathrm{form}(q, q)` by :math:`2\,\mathrm{form}(d, q) + Q(d)`. The step
of ``torch.optim.SGD`` is :math:`d = -(r_g\, g + r_b\, b + r_k\, q)` of gradient, buffer and parameter; the symmetry
makes :math:`\mathrm{form}(g, q) = 0`, and what remains are the causes that a ledger books:

===============  ======================================================================================
``finite_step``  :math:`Q(d)`
``momentum``     :math:`-2\,\mathrm{form}(r_b\, b, q)`
``decay``        :math:`-2\,\mathrm{form}(r_k\, q, q)`, also of AdamW and others whose decay is decoupled
``rates``        :math:`-2\,\mathrm{form}(r_g\, g, q)`, not 0 where a law's parameters have different rates
``source``       :math:`-2\,r_g\,\mathrm{form}(g, q)` of a balance through activations without a symmetry
``outside``      what was written to the weights between two steps
``optimizer``    :math:`2\,\mathrm{form}(d, q)` of any other optimiser less its decay: no formula is known here
===============  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nlcompanion.laws.sources import refuse_sources
from nlcompanion.laws.terms import Shift, expression

if TYPE_CHECKING:
    from nlcompanion.laws.law import Law

CAUSES = ("finite_step", "momentum", "decay", "rates", "source", "outside", "optimizer")


class StepRates(NamedTuple):
    """How much of gradient, buffer and parameter a step takes away: ``d = -(gradient g + buffer b + parameter q)``."""

    gradient: float
    buffer: float
    parameter: float


def sgd_rates(group: Mapping[str, Any], buffered: bool) -> StepRates:
    """The rates of a step of ``torch.optim.SGD``.

    Args:
        group: the optimiser's settings for the parameter, an entry of ``param_groups``.
        buffered: whether the parameter has a momentum buffer already; the first step makes it.
    """
    lr, beta = float(group["lr"]), float(group["momentum"])
    if group["nesterov"]:
        of_gradient, of_buffer = 1 + beta, beta**2 * buffered
    elif beta and buffered:
        of_gradient, of_buffer = 1 - float(group["dampening"]), beta
    else:  # without momentum, or with a buffer that starts as the gradient itself, undampened
        of_gradient, of_buffer = 1.0, 0.0
    return StepRates(lr * of_gradient, lr * of_buffer, lr * of_gradient * float(group["weight_decay"]))


def step_rates(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], buffered: bool) -> StepRates:
    """The rates that are known of a step of any optimiser: of SGD all, of others their decoupled decay."""
    if isinstance(optimizer, torch.optim.SGD):
        return sgd_rates(group, buffered)
    return StepRates(0.0, 0.0, decoupled_decay(optimizer, group))


def decoupled_decay(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    """The share of a parameter that an optimiser takes away apart from its gradient; 0 where decay joins the gradient.

    Args:
        optimizer: any; where :func:`is_decoupled` does not know its class, the decay counts as 0.
        group: its settings for the parameter.
    """
    if not is_decoupled(optimizer, group):
        return 0.0
    return float(group["lr"]) * float(group.get("weight_decay") or 0.0)


def is_decoupled(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether an optimiser decays weights apart from the gradient, ``p *= 1 - lr * weight_decay`` with the group's lr.

    True of AdamW, Lion and Muon, PyTorch's own or another's, of PyTorch's Adafactor (others have a learning rate of
    their own), of subclasses, and where the group says so.
    """
    if isinstance(optimizer, torch.optim.Adafactor) or group.get("decoupled_weight_decay"):
        return True
    return any(kind.__name__ in {"AdamW", "Lion", "Muon"} for kind in type(optimizer).__mro__)


def fading(group: Mapping[str, Any]) -> float:
    """By how much weight decay shrinks the logarithm of a squared weight in a step, in the long run."""
    lr, decay, momentum = (float(group.get(name) or 0.0) for name in ("lr", "weight_decay", "momentum"))
    return 2 * lr * decay / max(1 - momentum, 1e-3)


# --- in words -----------------------------------------------------------------------------------------------------


def decay_text(law: Law, rate: float, at: str = "") -> str:
    """What decay at a rate takes from the charge, ``2 rate form(q, q)``, in writing; empty for no decay.

    ``form(q, q)`` is the charge ``C`` of squares, half of a linear one, and ``F`` where both kinds add up.
    """
    if not rate:
        return ""
    if law.is_linear:
        return f" - {rate:g} C{at}"
    return f" - {2 * rate:g} {'F' if law.is_mixed else 'C'}{at}"


def form_text(law: Law) -> str:
    """``form(q, q)`` in writing: the charge with half of its linear part."""
    weights = [term.coefficient / 2 if isinstance(term, Shift) else term.coefficient for term in law.terms]
    return expression(tuple(replace(term, coefficient=c) for term, c in zip(law.terms, weights, strict=True)))


def sum_text(terms: str) -> str:
    """A sum of signed terms as one writes it: ``a - b`` of `` + a - b``, ``-b`` of `` - b``, 0 of nothing."""
    if terms.startswith(" - "):
        return f"-{terms[3:]}"
    return terms.removeprefix(" + ") or "0"


def heavy_ball_statement(law: Law, lr: float, memory: float | Callable[[int], float], of_parameter: float) -> str:
    """A law under steps ``d(n) = memory d(n-1) - lr g - of_parameter q``, exact on every mini-batch; one line."""
    times = "m(n) " if callable(memory) else "" if memory == 1 else f"{memory:g} "
    if law.kind == "data":
        return (f"M(n) = {times}M(n-1)" if memory else "M(n) = 0") + " with M(n) = form(d(n), q(n))"
    decay = decay_text(law, of_parameter, "(n)")
    change = f"ΔC(n) - {times}ΔC(n-1)" if memory else "ΔC(n)"
    if law.is_linear:
        return f"{change} = {sum_text(decay)}"
    if memory:
        return f"{change} = Q(d(n)) + {times}Q(d(n-1)){decay}"
    return f"{change} = Q(d(n)){decay}" if decay else f"{change} = {lr**2:g} Q(g)"


def statement_under(law: Law, optimizer: torch.optim.Optimizer) -> str:
    """A law in the steps of an optimiser, in the letters of :class:`LawUnderRule`; one line.

    ``d(n)`` is step ``n``, ``g`` its gradient, ``b`` the momentum buffer, ``M(x) = form(x, q)``. Settings are those of
    the optimiser's first group.

    Args:
        law: any law.
        optimizer: any ``torch.optim.Optimizer``; of others than SGD only the gradient's part is known.

    Raises:
        ValueError: for a law with a source.

    Source: this book's.

    Example:
        >>> import torch
        >>> from nlcompanion import flat_loss, homogeneous_law, mlp
        >>> model, x, y = mlp((4, 3, 2)), torch.eye(4).double(), torch.arange(4) % 2
        >>> law = homogeneous_law(flat_loss(model, x, y, torch.nn.functional.cross_entropy), layer=1)
        >>> statement_under(law, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        'ΔC(n) - 0.9 ΔC(n-1) = Q(d(n)) + 0.9 Q(d(n-1))'
        >>> statement_under(law, torch.optim.Adam(model.parameters()))
        'M(g) = 0 in every step, with M(g) = form(g, q); ΔC(n) = 2 M(d(n)) + Q(d(n))'
    """
    refuse_sources(law, f"the law under {type(optimizer).__name__}")
    group = optimizer.param_groups[0]
    if not isinstance(optimizer, torch.optim.SGD):
        return "M(g) = 0 in every step, with M(g) = form(g, q); ΔC(n) = 2 M(d(n)) + Q(d(n))"
    rates = sgd_rates(group, buffered=True)
    of_both = "F(n) = form(q(n), q(n))" if law.is_mixed and rates.parameter else ""
    if not group["nesterov"]:
        steps = heavy_ball_statement(law, float(group["lr"]), float(group["momentum"]), rates.parameter)
        return f"{steps} with {of_both}" if of_both else steps
    if law.kind == "data":
        return f"M(d(n)) = -{rates.buffer:g} M(b(n-1)) with M(x) = form(x, q(n))"
    squares = "" if law.is_linear else " + Q(d(n))"
    moves = f"{squares} - {2 * rates.buffer:g} M(b(n-1)){decay_text(law, rates.parameter, '(n)')}"
    return f"ΔC(n) = {sum_text(moves)} with M(b) = form(b, q(n)){of_both and f', {of_both}'}"
