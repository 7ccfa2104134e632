r"""What an optimiser makes of a law: conserved, drifting, decaying, at equilibrium, or no law any more.

With :math:`C` a charge, :math:`Q(d)` its quadratic part, :math:`g` the gradient of any mini-batch and :math:`d` a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

QUADRATIC, LINEAR, FIXED, MOMENTUM, SOURCED, SHEARED = "quadratic", "linear", "fixed", "momentum", "sourced", "sheared"

_UNIVERSAL = {
    QUADRATIC: "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)",
    LINEAR: "the gradient sums to 0 along it at every step; ΔC = that sum of the step",
    FIXED: "no gradient",
    MOMENTUM: "⟨g, Aθ⟩ = 0 at every step, A antisymmetric: no charge",
    SHEARED: "⟨g, ξ⟩ = 0 at every step; no charge of its own",
    SOURCED: "form(g, θ) = source at every step; ΔC = 2 form(d, θ) + Q(d)",
}


@dataclass(frozen=True)
class Rates:
    """The numbers of one parameter group, whatever the optimiser calls them; those of a law must agree."""

    name: str
    lr: float
    decay: float = 0.0
    decoupled: bool = False
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    agree: bool = True


def rates_of(optimizer: torch.optim.Optimizer | None, groups: list[dict[str, Any]]) -> Rates | None:
    """What moves the parameters of one law; None for gradient flow. ``groups`` are their parameter groups."""
    if optimizer is None:
        return None
    name, group = type(optimizer).__name__, groups[0]
    number = lambda key: float(group.get(key) or 0.0)  # noqa: E731
    decoupled = name in {"AdamW", "Lion", "Muon"} or bool(group.get("decoupled_weight_decay"))
    keys = ("lr", "weight_decay", "momentum", "dampening", "nesterov")
    agree = all(float(g.get(k) or 0.0) == number(k) for g in groups for k in keys)
    beta = number("momentum") if name in {"SGD", "Muon", "RMSprop"} else 0.0
    return Rates(
        name,
        number("lr"),
        number("weight_decay"),
        decoupled,
        beta,
        number("dampening"),
        bool(group.get("nesterov")),
        agree,
    )


def statement(form: str, rates: Rates | None) -> tuple[str, str]:
    """``(verdict, formula)`` of a law of this form under these rates."""
    if rates is None:
        return _of_flow(form)
    if not rates.agree:
        return "not conserved: its parameters have different rates", _UNIVERSAL[form]
    if form == FIXED:
        return _of_fixed(rates)
    if form in (MOMENTUM, SHEARED):
        return "a symmetry without a charge", _UNIVERSAL[form]
    if form == SOURCED:
        return "balance with a source", _UNIVERSAL[form]
    if rates.name == "SGD":
        return _of_sgd(form, rates)
    return _of_others(form, rates)


def _of_flow(form: str) -> tuple[str, str]:
    return {
        QUADRATIC: ("conserved", "C = const"),
        LINEAR: ("conserved", "C = const"),
        FIXED: ("fixed", "θ = const"),
        MOMENTUM: ("a symmetry without a charge", "⟨Aθ, θ'⟩ = 0, A antisymmetric"),
        SHEARED: ("a symmetry without a charge", "⟨g, ξ⟩ = 0"),
        SOURCED: ("balance with a source", "C' = -2 source"),
    }[form]


def _of_fixed(rates: Rates) -> tuple[str, str]:
    if not rates.decay:
        kept = "" if rates.name in {"SGD"} else "; in float32 a normalised step amplifies the rounding of its gradient"
        return f"fixed{kept}", "θ = const"
    if rates.decoupled or (rates.name == "SGD" and not rates.momentum):
        return "decaying", f"θ(n+1) = {1 - rates.lr * rates.decay:.6g} θ(n)"
    return "decaying", "moved by weight decay alone"


def _of_sgd(form: str, r: Rates) -> tuple[str, str]:
    shrink = 1 - r.lr * r.decay
    if form == LINEAR:
        if not r.decay:
            return "conserved exactly", "ΔC(n) = 0"
        if not r.momentum:
            return "decaying", f"C(n+1) = {shrink:.6g} C(n)"
        return "decaying", f"a damped average: the step obeys d(n) = {r.momentum:g} d(n-1) - {r.lr * r.decay:.3g} C(n)"
    if not r.momentum:
        if not r.decay:
            return "drifting by the finite step alone", f"ΔC = {r.lr**2:.3g} Q(g)"
        return (
            "decaying to an equilibrium",
            f"C(n+1) = {shrink**2:.6g} C(n) + {r.lr**2:.3g} Q(g); C* = {r.lr / (r.decay * (1 + shrink)):.3g} E[Q(g)]",
        )
    decay = f" - {2 * r.lr * r.decay:.3g} C(n)" if r.decay else ""
    if r.nesterov or r.dampening:
        how = "Nesterov" if r.nesterov else "dampening"
        return (
            "drifting, with momentum" if not r.decay else "decaying to an equilibrium",
            f"ΔC = 2 form(d, θ) + Q(d), form(g, θ) = 0 ({how}; the ledger splits it)",
        )
    verdict = "decaying to an equilibrium" if r.decay else "drifting by the finite step alone"
    return verdict, f"ΔC(n) - {r.momentum:g} ΔC(n-1) = Q(d(n)) + {r.momentum:g} Q(d(n-1)){decay}"


def _of_others(form: str, r: Rates) -> tuple[str, str]:
    known = {"Adam", "AdamW", "RMSprop", "Lion", "Muon", "NAdam", "RAdam", "Adagrad", "Adamax"}
    who = r.name if r.name in known else f"{r.name} (unknown here)"
    if r.decay and r.decoupled:
        power = 2 if form == QUADRATIC else 1
        extra = f"; decay alone: times {(1 - r.lr * r.decay) ** power:.6g}"
    else:
        extra = ""
    if form == LINEAR:
        return f"not conserved by {who}", (
            f"{_UNIVERSAL[LINEAR]}, which is 0 where the slices' gradients are equal and opposite{extra}"
        )
    return f"not conserved by {who}", _UNIVERSAL[QUADRATIC] + extra
