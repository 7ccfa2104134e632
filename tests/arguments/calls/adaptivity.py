"""Valid calls of ``nlcompanion.adaptivity``."""

import torch
from torch import nn
from wrong_values import POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, V, double
from calls.table import BELOW_ONE, COUNTS, FROM_ZERO, NONE, PAIRS, SEEDS, SGD, call

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
OPTIMIZER = torch.optim.AdamW([nn.Parameter(torch.ones(4, 4))], lr=0.01, weight_decay=0.1)
UPDATES_SEEN = nl.UpdateMemory(1.0, double(1.0, 0.5), "recorded")

call("update_memory", nl.update_memory, {"lags": NONE | COUNTS | {"zero"}}, updates=LONG, lags=3)
call("UpdateMemory.memory", lambda fading: UPDATES_SEEN.memory(fading), {"fading": BELOW_ONE}, fading=0.1)
call(
    "white_updates",
    nl.white_updates,
    {"grad_rms": POSITIVE, "lags": NONE | COUNTS, "seed": SEEDS},
    factory=torch.optim.AdamW,
    shape=(4, 4),
    grad_rms=1.0,
    steps=60,
    lags=3,
    seed=0,
)
call(
    "equilibrium_of_updates",
    nl.equilibrium_of_updates,
    {
        "lr": {"a half", "three", "one number in a tensor"},
        "weight_decay": {"a half", "three", "one number in a tensor"},
    },
    updates=UPDATES_SEEN,
    lr=0.1,
    weight_decay=0.1,
)
call(
    "equilibrium_of",
    nl.equilibrium_of,
    {"parameter": NONE, "grad_rms": NONE | POSITIVE},
    optimizer=OPTIMIZER,
    parameter=None,
    grad_rms=1.0,
)
call(
    "match",
    nl.match,
    {"model": NONE, "audit": NONE, "batch_sizes": NONE, "grad_rms": NONE | POSITIVE},
    source=OPTIMIZER,
    target=torch.optim.AdamW,
    model=None,
    audit=None,
    keep="angle",
    batch_sizes=None,
    grad_rms=1.0,
)
GROWING = [1 + 0.01 * n for n in range(60)]
PER_RECORD = {"zero", "a half", "three", "a large integer", "one number in a tensor"}
call(
    "forecast",
    nl.forecast,
    {**SGD, "schedule": NONE, "decoupled": {"True"}, "coverage": {"a half", "one number in a tensor"}}
    | {"lrs": NONE, "grad_norms": NONE | PER_RECORD, "persistence": NONE | PER_RECORD}
    | {"update_norms": NONE | PER_RECORD, "memory": NONE | PER_RECORD, "horizons": PAIRS},
    steps=range(60),
    norms=GROWING,
    rule="sgd",
    lr=0.1,
    weight_decay=0.01,
    momentum=0.5,
    decoupled=False,
    lrs=None,
    schedule=None,
    grad_norms=1.0,
    persistence=1.0,
    update_norms=1.0,
    memory=1.0,
    horizons=[100],
    coverage=0.9,
)
call(
    "Motion.in_steps_of",
    lambda samples: nl.adaptivity.Motion(0.1, 100.0, 0.01, 1.0).in_steps_of(samples),
    {"samples": POSITIVE},
    samples=2.0,
)
