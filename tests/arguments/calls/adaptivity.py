"""Valid calls of ``nlcompanion.adaptivity``."""

import torch
from wrong_values import POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, V
from calls.table import BELOW_ONE, COUNTS, FROM_ZERO, NONE, PAIRS, SGD, call

call(
    "angular_update",
    nl.angular_update,
    {**SGD, "weight_decay": POSITIVE, "decoupled": {"True"}},
    lr=0.1,
    weight_decay=0.01,
    momentum=0.5,
    decoupled=False,
)
call(
    "equilibrium",
    nl.equilibrium,
    {**SGD, "weight_decay": POSITIVE, "grad_norm": POSITIVE | NONE, "persistence": POSITIVE, "decoupled": {"True"}},
    lr=0.1,
    weight_decay=0.01,
    momentum=0.5,
    grad_norm=1.0,
    persistence=1.0,
    decoupled=False,
)
call(
    "rmsprop_twin",
    nl.rmsprop_twin,
    {
        **SGD,
        "lr": POSITIVE - {"a large integer"},  # beyond, the norm forgets within a step
        "weight_decay": {"a half", "one number in a tensor"},
        "persistence": POSITIVE,
    },
    lr=0.1,
    weight_decay=0.01,
    momentum=0.5,
    persistence=1.0,
)
LONG = torch.ones(40, 2, dtype=torch.float64)
call(
    "gradient_persistence",
    nl.gradient_persistence,
    {"momentum": BELOW_ONE, "window": NONE | COUNTS, "lags": NONE | COUNTS | {"zero"}},
    gradients=LONG,
    momentum=0.5,
    window=10,
    lags=8,
)
call(
    "momentum_average",
    nl.momentum_average,
    {"momentum": BELOW_ONE, "gradients": {"another shape", "integers", "half precision", "with gradient"}},
    gradients=LONG,
    momentum=0.5,
)
call("polar", nl.polar, q=Q, v=V)
ADAPTIVE = {**SGD, "r0_squared": POSITIVE}
call(
    "radius_squared",
    nl.radius_squared,
    {**ADAPTIVE, "persistence": FROM_ZERO},
    t=[0.0, 1.0, 2.0],
    grad_norm_squared=[1.0, 2.0, 1.0],
    r0_squared=1.0,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.01,
    persistence=1.0,
)
call(
    "radius_gain",
    nl.radius_gain,
    {"momentum": BELOW_ONE, "weight_decay": FROM_ZERO, "t": PAIRS, "r_squared": PAIRS | {"another shape"}},
    t=[0.0, 1.0],
    r_squared=[1.0, 2.0],
    momentum=0.5,
    weight_decay=0.01,
)
call(
    "radius_squared_of_steps",
    nl.radius_squared_of_steps,
    {**ADAPTIVE, "step_norm_squared": PAIRS | {"another shape", "with gradient"}},
    step_norm_squared=[1.0, 2.0],
    r0_squared=1.0,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.01,
)
call(
    "rmsprop_accumulator",
    nl.rmsprop_accumulator,
    {"g0": FROM_ZERO, "lr": POSITIVE, "rho": {"a half", "one number in a tensor"}, "t": PAIRS}
    | {"grad_norm_squared": PAIRS | {"another shape"}},
    t=[0.0, 1.0],
    grad_norm_squared=[1.0, 2.0],
    g0=0.0,
    lr=0.1,
    rho=0.9,
)
