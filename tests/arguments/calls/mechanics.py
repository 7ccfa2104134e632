"""Valid calls of ``nlcompanion.mechanics``."""

from wrong_values import NUMBERS

import nlcompanion as nl
from calls.ingredients import NODES, STATE, T, bump, of_state, oscillator, path
from calls.table import ANY_TIME, COUNTS, NONE, PAIRS, call

for name in ("generalized_momentum", "energy", "acceleration"):
    call(name, of_state(getattr(nl, name)), ANY_TIME, L=oscillator, **STATE)
call("along", lambda path, t: nl.along(path)(t), {"t": NUMBERS}, path=path, t=0.5)
call("euler_lagrange", lambda L, path, t: nl.euler_lagrange(L, path)(t), {"t": NUMBERS}, L=oscillator, path=path, t=0.5)
call("lift", of_state(nl.lift), ANY_TIME, F=lambda t, q: q * (1 + t), **STATE)
call("action", nl.action, {"t_span": PAIRS}, L=oscillator, path=path, t_span=(0.0, 1.0))
call(
    "first_variation",
    nl.first_variation,
    {"t_span": PAIRS},
    L=oscillator,
    path=path,
    deformation=bump,
    t_span=(0.0, 1.0),
)
BROKEN_LINE = {"q": {"with gradient"}}  # seven dimensions, five nodes; differentiable by q
call(
    "discrete_action",
    nl.discrete_action,
    {**BROKEN_LINE, "midpoint": {"True"}},
    L=oscillator,
    t=T,
    q=NODES,
    midpoint=False,
)
call("variational_derivative", nl.variational_derivative, BROKEN_LINE, L=oscillator, t=T, q=NODES)
call(
    "stationary_path",
    nl.stationary_path,
    {"guess": NONE, "max_iter": COUNTS, "t_span": PAIRS},
    L=oscillator,
    q0=[0.0, 1.0],
    q1=[1.0, 0.0],
    t_span=(0.0, 1.0),
    segments=4,
    method="newton",
    guess=NODES,
    max_iter=10,
)
call(
    "stationary_path without a guess",
    lambda segments: nl.stationary_path(oscillator, [0.0, 1.0], [1.0, 0.0], t_span=(0.0, 1.0), segments=segments),
    {"segments": COUNTS},
    segments=4,
)
