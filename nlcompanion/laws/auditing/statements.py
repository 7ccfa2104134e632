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
PAIRED = "paired"  # linear, of two single numbers, whose gradients are equal up to the sign
MOMENTUM, SOURCED, SHEARED = "momentum", "sourced", "sheared"

_UNIVERSAL = {
    QUADRATIC: "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)",
    AFFINE: "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)",
    PAIRED: "the gradient sums to 0 along it at every step; ΔC = that sum of the step",
    LINEAR: "the gradient sums to 0 along it at every step; ΔC = that sum of the step",
    FIXED: "no gradient",
    MOMENTUM: "⟨g, Aθ⟩ = 0 at every step, A antisymmetric: no charge",
    SHEARED: "⟨g, ξ⟩ = 0 at every step; no charge of its own",
    SOURCED: "form(g, θ) = source at every step; ΔC = 2 form(d, θ) + Q(d)",
}

_ELEMENTWISE = {  # steps of single numbers, that change sign as all gradients do
    *("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Lion"),
}
_KNOWN = _ELEMENTWISE | {"Muon", "Adafactor", "ASGD"}


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
        return _of_sgd(LINEAR if form == PAIRED else form, rates)
    if form == PAIRED and rates.name in _ELEMENTWISE and (rates.decoupled or not rates.decay):
        return _paired(rates)
    return _of_others(form, rates)


def _of_flow(form: str) -> tuple[str, str]:
    return {
        QUADRATIC: ("conserved", "C = const"),
        LINEAR: ("conserved", "C = const"),
        PAIRED: ("conserved", "C = const"),
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
            f"ΔC = 2 form(d, θ) + Q(d), form(g, θ) = 0 (Nesterov; the ledger splits it){_equilibrium_ahead(form, r)}"
        )
    if r.momentum:
        squares = f"Q(d(n)) + {r.momentum:g} Q(d(n-1))"
        pull = 2 * r.lr * r.decay * (1 - r.dampening)
        decay = f" - {pull:.3g} {'form(θ(n), θ(n))' if form == AFFINE else 'C(n)'}" if pull else ""
        return _verdict(form, r, "drifting by the finite step alone"), (
            f"ΔC(n) - {r.momentum:g} ΔC(n-1) = {squares}{decay}"
            + (f"; C* = {(1 + r.momentum) / pull:.3g} E[Q(d)]" if pull and form == QUADRATIC else "")
        )
    if not r.decay:
        return _verdict(form, r, "drifting by the finite step alone"), f"ΔC = {r.lr**2:.3g} Q(g)"
    if form == AFFINE:
        return _verdict(form, r), f"ΔC(n) = Q(d(n)) - {2 * r.lr * r.decay:.3g} form(θ(n), θ(n))"
    shrink = 1 - r.lr * r.decay
    equilibrium = f"C* = {r.lr / (r.decay * (1 + shrink)):.3g} E[Q(g)]"
    return _verdict(form, r), f"C(n+1) = {shrink**2:.6g} C(n) + {r.lr**2:.3g} Q(g); {equilibrium}"


def _equilibrium_ahead(form: str, r: Rates) -> str:
    """Where decay and Nesterov's steps balance in the mean, ``b`` the momentum buffer behind the step ``d``."""
    if not r.decay or form != QUADRATIC:
        return ""
    of_steps, of_buffer = (1 - r.momentum) / (2 * r.lr * r.decay), r.momentum**2 / r.decay
    return f"; C* = {of_steps:.3g} E[Q(d)] - {of_buffer:.3g} E[form(b, d)]"


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


def _paired(r: Rates) -> tuple[str, str]:
    """Of two numbers whose gradients are equal up to the sign, under a step of each number by itself."""
    if not r.decay:
        return "conserved exactly", "ΔC(n) = 0: both numbers get the same step, up to the sign"
    return "decaying", f"C(n+1) = {1 - r.lr * r.decay:.6g} C(n): both numbers get the same step, up to the sign"


def _of_others(form: str, r: Rates) -> tuple[str, str]:
    who = r.name if r.name in _KNOWN else f"{r.name} (unknown here)"
    return f"not conserved by {who}", f"{_UNIVERSAL[form]}{_decay_alone(form, r)}{_equilibrium(form, r)}"


def _equilibrium(form: str, r: Rates) -> str:
    """Where decoupled decay and steps balance in the mean: what the last steps leave, each shrunk since."""
    if not r.decay or not r.decoupled or form != QUADRATIC:
        return ""
    kept = 1 - r.lr * r.decay
    of_updates = r.lr**2 / (1 - kept**2)
    general = f"; C* = {of_updates:.3g} E[Q(u)] S, u = step / lr, S = 1 + 2 Σ {kept:.6g}^l ρ(l) of its memory"
    if r.name != "AdamW":
        return general
    return f"{general}; in noise {of_updates:.3g} N, N weights by their coefficients"


def _decay_alone(form: str, r: Rates) -> str:
    """What decoupled decay makes of the charge, were the gradient 0."""
    if not r.decay or not r.decoupled:
        return ""
    pull = r.lr * r.decay
    if form == AFFINE:
        return f"; decay alone: ΔC = {pull**2:.6g} Q(θ) - {2 * pull:.6g} form(θ, θ)"
    return f"; decay alone: times {(1 - pull) ** (1 if form == LINEAR else 2):.6g}"
