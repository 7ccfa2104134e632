r"""What an optimiser makes of a law: conserved, drifting, decaying, at equilibrium, or no law any more.

With :math:`C` a charge, :math:`Q(d)` its quadratic part, :math:`g` the gradient of any mini-batch and :math:`d` a step.
A charge is quadratic, linear (of a shift) or affine, with both parts (of a shift with a stretch); with ``form(θ, θ)``
the quadratic part and half of the linear one, decay at a rate :math:`r` takes ``2 r form(θ, θ)`` from any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nlcompanion.laws.under_optimizers import is_decoupled

QUADRATIC, LINEAR, AFFINE, FIXED = "quadratic", "linear", "affine", "fixed"
MOMENTUM, SOURCED, SHEARED = "momentum", "sourced", "sheared"

_UNIVERSAL = {
    QUADRATIC: "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)",
    AFFINE: "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)",
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
    keys = ("lr", "weight_decay", "momentum", "dampening", "nesterov")
    agree = all(float(g.get(k) or 0.0) == number(k) for g in groups for k in keys)
    return Rates(
        name,
        number("lr"),
        number("weight_decay"),
        is_decoupled(optimizer, group),
        number("momentum"),
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
        AFFINE: ("conserved", "C = const"),
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
    if form == LINEAR:
        return _linear_of_sgd(r)
    if r.nesterov:
        return _verdict(form, r, "drifting, with momentum"), (
            "ΔC = 2 form(d, θ) + Q(d), form(g, θ) = 0 (Nesterov; the ledger splits it)"
        )
    if r.momentum:
        squares = f"Q(d(n)) + {r.momentum:g} Q(d(n-1))"
        pull = 2 * r.lr * r.decay * (1 - r.dampening)
        decay = f" - {pull:.3g} {'form(θ(n), θ(n))' if form == AFFINE else 'C(n)'}" if pull else ""
        return _verdict(form, r, "drifting by the finite step alone"), (
            f"ΔC(n) - {r.momentum:g} ΔC(n-1) = {squares}{decay}"
        )
    if not r.decay:
        return _verdict(form, r, "drifting by the finite step alone"), f"ΔC = {r.lr**2:.3g} Q(g)"
    if form == AFFINE:
        return _verdict(form, r), f"ΔC(n) = Q(d(n)) - {2 * r.lr * r.decay:.3g} form(θ(n), θ(n))"
    shrink = 1 - r.lr * r.decay
    equilibrium = f"C* = {r.lr / (r.decay * (1 + shrink)):.3g} E[Q(g)]"
    return _verdict(form, r), f"C(n+1) = {shrink**2:.6g} C(n) + {r.lr**2:.3g} Q(g); {equilibrium}"


def _verdict(form: str, r: Rates, without_decay: str = "") -> str:
    """What becomes of a charge with squares in it."""
    if not r.decay:
        return without_decay
    return "decaying, not by a factor of its own" if form == AFFINE else "decaying to an equilibrium"


def _linear_of_sgd(r: Rates) -> tuple[str, str]:
    """Of a shift: what a step adds to the charge, ``d(n)``, comes from the last step and from decay alone."""
    pull = r.lr * r.decay
    if not pull:
        return "conserved exactly", "ΔC(n) = 0"
    if not r.momentum:
        return "decaying", f"C(n+1) = {1 - pull:.6g} C(n)"
    kept = r.momentum * (1 - pull) if r.nesterov else r.momentum  # the look-ahead decays too
    pull *= 1 - r.dampening
    return "decaying", f"a damped average: ΔC(n) = {kept:.6g} ΔC(n-1) - {pull:.3g} C(n)"


def _of_others(form: str, r: Rates) -> tuple[str, str]:
    known = {"Adam", "AdamW", "RMSprop", "Lion", "Muon", "NAdam", "RAdam", "Adagrad", "Adamax", "Adafactor"}
    who = r.name if r.name in known else f"{r.name} (unknown here)"
    where = ", which is 0 where the slices' gradients are equal and opposite" if form == LINEAR else ""
    return f"not conserved by {who}", f"{_UNIVERSAL[form]}{where}{_decay_alone(form, r)}"


def _decay_alone(form: str, r: Rates) -> str:
    """What decoupled decay makes of the charge, were the gradient 0."""
    if not r.decay or not r.decoupled:
        return ""
    pull = r.lr * r.decay
    if form == AFFINE:
        return f"; decay alone: ΔC = {pull**2:.6g} Q(θ) - {2 * pull:.6g} form(θ, θ)"
    return f"; decay alone: times {(1 - pull) ** (1 if form == LINEAR else 2):.6g}"
