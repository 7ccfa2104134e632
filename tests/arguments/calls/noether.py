"""Valid calls of ``nlcompanion.noether``."""

from functools import cache

import torch
from wrong_values import NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import MOTION, STATE, A, Q, bowl, oscillator
from calls.table import ANY_TIME, COUNTS, NONE, SEEDS, SHIFT, call

call("noether_charge", nl.noether_charge, ANY_TIME, **MOTION)
call(
    "noether_learning_dynamics", nl.noether_learning_dynamics, {**ANY_TIME, "a": NONE, "f": NONE}, **MOTION, a=A, f=bowl
)
call(
    "rund_trautmann",
    lambda t, q, v, **kw: [side(t, q, v) for side in nl.rund_trautmann(**kw)],
    {**ANY_TIME, "xi": NONE, "tau": NONE, "gauge": NONE},
    L=oscillator,
    xi=lambda t, q: q,
    tau=lambda t, q: 1.0,
    gauge=lambda t, q: q @ q,
    **STATE,
)


def dilation(t, q, s):
    return torch.exp(2 * s) * t, torch.exp(s) * q


call(
    "transformed",
    lambda L, transformation, t, q, v, s: nl.transformed(L, transformation)(t, q, v, s),
    {**ANY_TIME, **SHIFT},
    L=oscillator,
    transformation=dilation,
    s=0.3,
    **STATE,
)
call(
    "spacetime_generators",
    lambda transformation, t, q: [g(t, q) for g in nl.spacetime_generators(transformation)],
    ANY_TIME,
    transformation=dilation,
    t=0.5,
    q=Q,
)
call(
    "find_conserved_quantities",
    nl.find_conserved_quantities,
    {"t": NUMBERS, "points": COUNTS, "spread": set(), "tolerance": POSITIVE, "seed": SEEDS},
    rule=nl.newtonian(),
    f=bowl,
    group=[nl.rotation(plane=(0, 1))],
    q=Q,
    t=1.0,
    points=2,
    spread=0.3,
    tolerance=1e-9,
    seed=0,
)


@cache
def found():
    """Of a rotation, of a rule with mass."""
    return nl.find_conserved_quantities(nl.newtonian(), bowl, nl.so(2), Q)


@cache
def found_without_mass():
    return nl.find_conserved_quantities(nl.gradient_flow(), bowl, [nl.rotation(plane=(0, 1))], Q)


call("ConservedQuantities.charges", lambda t, q, v: found().charges(t, q, v), ANY_TIME, **STATE)
call("ConservedQuantities.matrix", lambda t, q, v: found().matrix(t, q, v), ANY_TIME, **STATE)
call("ConservedQuantity.charge", lambda t, q, v: found()[0].charge(t, q, v), ANY_TIME, **STATE)
call(
    "ConservedQuantity.charge without mass",
    lambda t, q, v: found_without_mass()[0].charge(t, q, v),
    {**ANY_TIME, "v": NONE},
    **STATE,
)
call("ConservedQuantity.log_weight", lambda t: found()[0].log_weight(t), {"t": NUMBERS}, t=0.5)
call(
    "ConservedQuantity.integrated",
    lambda t, q, v, t_ref: found()[0].integrated(t, q, v, t_ref=t_ref),
    {**ANY_TIME, "t_ref": NUMBERS | NONE},
    t_ref=1.0,
    **STATE,
)
call("ConservedQuantity.quantity", lambda t, q, v, a: found()[0].quantity(t, q, v, a), ANY_TIME, a=A, **STATE)
call(
    "ConservedQuantity.quantity without mass",
    lambda t, q, v, a: found_without_mass()[0].quantity(t, q, v, a),
    {**ANY_TIME, "a": NONE},
    a=None,
    **STATE,
)
