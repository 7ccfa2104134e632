"""A valid call of every public function, and which of the wrong values each of its arguments may take."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from wrong_values import FUNCTIONS, NUMBERS, POSITIVE

import nlcompanion as nl
from nlcompanion import book, datasets, dynamics


@dataclass(frozen=True)
class Call:
    """A function with valid arguments by name; ``right`` names the wrong values that an argument may take."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    right: dict[str, set[str]] = field(default_factory=dict)
    untried: dict[str, set[str]] = field(default_factory=dict)  # right too, and slow or on the network

    def __call__(self, **replaced: Any) -> Any:
        return self.function(**{**self.arguments, **replaced})


NONE = {"None"}
COUNTS = {"three"}
ANY_COUNT = {"three", "a large integer", "a huge integer"}
SEEDS = {"three", "zero", "a large integer"}
FROM_ZERO = POSITIVE | {"zero"}
LAYER_INPUTS = {"empty tensor", "no rows", "another shape", "one number in a tensor", "nan inside", "half precision"}
LAYER_INPUTS |= {"with gradient"}  # a layer takes what its neighbours make
PAIRS = {"integers", "half precision"}  # two numbers, exact in any precision
BELOW_ONE = {"zero", "a half", "one number in a tensor"}
CALLS: dict[str, Call] = {}
UNTRIED = {"train": {"compiled": {"True"}}, "kmnist": {"download": {"True"}}, "tiny_imagenet": {"download": {"True"}}}
# the data sets that are not there: the calls are valid all the same
WITHOUT_DATA = {"kmnist", "tiny_imagenet"}


def call(
    name: str, function: Callable[..., Any], right: dict[str, set[str]] | None = None, /, **arguments: Any
) -> None:
    assert name not in CALLS, name
    CALLS[name] = Call(function, arguments, {"t_span": PAIRS, **(right or {})}, UNTRIED.get(name, {}))


# --- what the calls are made with ---------------------------------------------------------------------------------


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def bowl(q):
    return 0.5 * q @ q


def entropy(q):
    return (q * q.log() - q).sum()


def oscillator(t, q, v):
    return 0.5 * v @ v - 0.5 * q @ q


def path(t):
    return torch.stack([torch.cos(t), torch.sin(t)])


def bump(t):
    return torch.stack([t * (1 - t), t])


Q, V, A = double(1.0, 2.0), double(0.5, -0.5), double(0.1, 0.2)
T = torch.linspace(0, 1, 5, dtype=torch.float64)
NODES = torch.stack([T, T.square()], dim=1)


@cache
def network():
    return nl.mlp((4, 3, 2))


@cache
def linear_network():
    return nl.mlp((4, 3, 2), "linear")


def samples():
    random = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=random, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])


@cache
def loss():
    return nl.flat_loss(network(), *samples(), nn.functional.cross_entropy)


@cache
def linear_loss():
    return nl.flat_loss(linear_network(), *samples(), nn.functional.cross_entropy)


@cache
def law():
    return nl.homogeneous_law(loss(), 1)


def of_state(make):
    """A function that makes a function of (t, q, v), called at once: the second step has arguments too."""

    def called(t, q, v, **arguments):
        return make(**arguments)(t, q, v)

    return called


# --- mechanics ----------------------------------------------------------------------------------------------------

STATE = {"t": 0.5, "q": Q, "v": V}
ANY_TIME = {"t": NUMBERS}
for name in ("generalized_momentum", "energy", "acceleration"):
    call(name, of_state(getattr(nl, name)), ANY_TIME, L=oscillator, **STATE)
call("along", lambda path, t: nl.along(path)(t), {"t": NUMBERS}, path=path, t=0.5)
call("euler_lagrange", lambda L, path, t: nl.euler_lagrange(L, path)(t), {"t": NUMBERS}, L=oscillator, path=path, t=0.5)
call("lift", of_state(nl.lift), ANY_TIME, F=lambda t, q: q * (1 + t), **STATE)
call("action", nl.action, L=oscillator, path=path, t_span=(0.0, 1.0))
call("first_variation", nl.first_variation, L=oscillator, path=path, deformation=bump, t_span=(0.0, 1.0))
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
    {"segments": COUNTS, "guess": NONE, "max_iter": COUNTS | {"a large integer"}},
    L=oscillator,
    q0=[0.0, 1.0],
    q1=[1.0, 0.0],
    t_span=(0.0, 1.0),
    segments=4,
    method="newton",
    guess=NODES,
    max_iter=10,
)

# --- dynamics -----------------------------------------------------------------------------------------------------

SGD = {"lr": POSITIVE, "momentum": BELOW_ONE, "weight_decay": FROM_ZERO}
call("sgd", nl.sgd, SGD, lr=0.1, momentum=0.5, weight_decay=0.01)
call("damped", nl.damped, {"mass": POSITIVE, "friction": FROM_ZERO}, mass=1.0, friction=0.5)
call("newtonian", nl.newtonian, {"lr": POSITIVE | NONE, "half_first_step": {"True"}}, lr=0.1, half_first_step=False)
call("nesterov", nl.nesterov, {"lr": POSITIVE | NONE}, lr=0.1)
call("gradient_flow", nl.gradient_flow)
call(
    "natural_gradient",
    lambda t_span, **kw: nl.integrate(nl.natural_gradient(**kw), bowl, Q, t_span=t_span, max_nfev=300),
    {"mass": POSITIVE, "friction": FROM_ZERO, "grad_h_inverse": NONE},
    h=entropy,
    mass=1.0,
    friction=1.0,
    grad_h_inverse=torch.exp,
    t_span=(0.0, 0.1),
)
call(
    "general",
    lambda **kw: nl.general(**kw).rates(2.0),
    {"t_ref": NUMBERS},
    kappa2=lambda t: 2.0 + t,
    kappa1=lambda t: 3.0 / t,
    t_ref=1.0,
)
call(
    "bregman",
    lambda q, **kw: nl.integrate(nl.bregman(**kw), bowl, q, t_span=(1.0, 1.1), max_nfev=300),
    {"grad_h_inverse": NONE},
    alpha=lambda t: -torch.log(t),
    beta=lambda t: 2 * torch.log(t),
    gamma=lambda t: t,
    h=entropy,
    grad_h_inverse=torch.exp,
    q=Q,
)
call("euclidean", dynamics.euclidean, x=Q)
call("kinetic_energy", of_state(nl.kinetic_energy), ANY_TIME, rule=nl.damped(1.0, 0.5), **STATE)
call("bregman_momentum", of_state(nl.bregman_momentum), ANY_TIME, rule=nl.damped(1.0, 0.5), **STATE)
call(
    "lagrangian",
    of_state(nl.lagrangian),
    {"t_ref": NUMBERS | NONE, "t": NUMBERS},
    rule=nl.damped(1.0, 0.5),
    f=bowl,
    t_ref=0.5,
    **STATE,
)
call("modified_loss", lambda f, lr, q: nl.modified_loss(f, lr)(q), {"lr": POSITIVE}, f=bowl, lr=0.1, q=Q)
call(
    "integrate",
    nl.integrate,
    {
        "v0": NONE,
        "rtol": POSITIVE,
        "atol": FROM_ZERO,
        "t_eval": NONE,
        "max_nfev": {"three", "a large integer", "inf", "None"},
        "record": NONE,
        "integrand": NONE,
        "stop": NONE,
    },
    rule=nl.damped(1.0, 0.5),
    f=bowl,
    q0=Q,
    v0=V,
    t_span=(0.0, 1.0),
    method="DOP853",
    rtol=1e-6,
    atol=1e-9,
    t_eval=[0.5, 1.0],
    max_nfev=1000,
    record=lambda t, q, v: {"speed": v.norm()},
    integrand=lambda t, q, v: v @ v,
    stop=lambda t, q, v: False,
)
call("steady", nl.steady, {"speed": POSITIVE}, speed=1e-3)
call(
    "loss_below",
    lambda f, level: nl.integrate(nl.gradient_flow(), bowl, Q, t_span=(0, 1), stop=nl.loss_below(f, level)),
    {"level": NUMBERS},
    f=bowl,
    level=0.5,
)
call(
    "descend",
    nl.descend,
    {"record": NONE, "steps": {"zero", "three"}, "every": COUNTS | {"a large integer"}, "f": NONE},
    rule=nl.sgd(0.1),
    f=bowl,
    q0=Q,
    steps=3,
    record=lambda t, q, v: {"speed": v.norm()},
    every=2,
)
call(
    "descend with batches",
    lambda batches: nl.descend(nl.sgd(0.1), None, Q, steps=2, batches=batches),
    batches=lambda n: bowl,
)
call("convergence_order", nl.convergence_order, {"sizes": PAIRS, "errors": PAIRS}, sizes=[0.1, 0.05], errors=[0.2, 0.1])
call(
    "linearized_dynamics",
    nl.linearized_dynamics,
    {"rule": NONE, "weight": POSITIVE, "t0": {"zero", "minus one", "minus a half", "one number in a tensor", "a half"}}
    | {"t": POSITIVE | PAIRS, "y": PAIRS, "u0": PAIRS},
    kernel=[[4.0, 1.0], [1.0, 3.0]],
    u0=[0.0, 0.0],
    y=[1.0, 2.0],
    t=[1.0, 2.0],
    rule=nl.newtonian(),
    weight=1.0,
    t0=0.5,
)
call(
    "linearized_dynamics elsewhere",
    lambda **kw: nl.linearized_dynamics([[4.0]], [0.0], [1.0], [1.0], **kw),
    {"u0_cross": PAIRS},
    cross=[[1.0], [2.0]],
    u0_cross=[0.0, 0.0],
)
call(
    "Steps",
    lambda **kw: nl.Steps(**kw).memory_of(1),
    {"lr": POSITIVE, "time_step": POSITIVE, "memory": NUMBERS, "looks_ahead": {"True"}, "first_share": NUMBERS},
    lr=0.1,
    time_step=0.1,
    memory=0.5,
    looks_ahead=False,
    first_share=1.0,
)

# --- symmetries ---------------------------------------------------------------------------------------------------

ROTATION = [[0.0, -1.0], [1.0, 0.0]]
SHIFT = {"s": NUMBERS - {"a large integer"}}


def acting(make):
    """A function that makes an action, at work on a point."""

    def called(q, s, **arguments):
        return make(**arguments)(q, s)

    return called


call("translation", acting(nl.translation), {"s": NUMBERS}, direction=[0.0, 1.0], q=Q, s=0.5)
call("rotation", acting(nl.rotation), {"s": NUMBERS}, generator=ROTATION, q=Q, s=0.5)
call(
    "rotation in a plane",
    acting(nl.rotation),
    {"s": NUMBERS, "dimension": NONE},
    plane=(0, 1),
    dimension=2,
    q=Q,
    s=0.5,
)
call("scale", acting(nl.scale), {**SHIFT, "part": NONE | {"zero", "booleans"}}, part=slice(0, 1), q=Q, s=0.5)
call(
    "rescale",
    acting(nl.rescale),
    {**SHIFT, "inputs": {"zero", "booleans"}, "p": NUMBERS, "extra": {"empty list"}},
    inputs=[0],
    outputs=[1],
    p=2.0,
    extra=[],
    q=Q,
    s=0.5,
)
call("linear_action", acting(nl.linear_action), {"s": NUMBERS}, generator=ROTATION, q=Q, s=0.5)
PAIR = double(1.0, 2.0, 3.0, 4.0)
call(
    "linear_pair",
    acting(nl.linear_pair),
    {"s": NUMBERS},
    first=slice(0, 2),
    second=slice(2, 4),
    A=ROTATION,
    q=PAIR,
    s=0.5,
)
call("input_rotation", acting(nl.input_rotation), {"s": NUMBERS}, weights=slice(0, 2), P=ROTATION, q=PAIR, s=0.5)
TEXTS = {"text", "digits as text", "device"}
call(
    "Symmetry",
    acting(nl.Symmetry),
    {**SHIFT, "name": TEXTS},
    action=lambda q, s: q * torch.exp(s),
    name="scale",
    q=Q,
    s=0.5,
)
call("generator", lambda symmetry, q: nl.generator(symmetry)(q), symmetry=nl.scale(), q=Q)
call(
    "invariance_defect",
    nl.invariance_defect,
    {"s": NUMBERS | {"half precision", "another shape", "integers", "with gradient", "None"}},
    f=bowl,
    symmetry=nl.rotation(plane=(0, 1)),
    q=Q,
    s=[0.5, 1.0],
)
MOTION = {"rule": nl.damped(1.0, 0.5), "symmetry": nl.scale(), **STATE}
call("kinetic_symmetry_breaking", nl.kinetic_symmetry_breaking, ANY_TIME, **MOTION)
call("so", nl.so, {"d": COUNTS, "action": NONE}, d=2, action=nl.rotation)
call("gl", nl.gl, {"d": COUNTS, "action": NONE}, d=2, action=nl.linear_action)
call(
    "LieAlgebra",
    lambda **kw: list(nl.LieAlgebra(**kw)),
    {"name": {"text", "digits as text", "device"}},
    basis=[ROTATION],
    action=nl.linear_action,
    name="turns",
)

# --- noether ------------------------------------------------------------------------------------------------------

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

# --- networks -----------------------------------------------------------------------------------------------------

NETWORK = {"seed": SEEDS, "bias": {"True"}}
call("mlp", nl.mlp, NETWORK, widths=(4, 3, 2), activation="relu", bias=False, init="lecun", seed=1, dtype=torch.float64)
call(
    "ensemble",
    nl.ensemble,
    {"seeds": {"three"}, "bias": {"True"}},
    widths=(4, 3, 2),
    activation="relu",
    seeds=[0, 1],
    bias=False,
    init="lecun",
    dtype=torch.float64,
)
call("Ensemble", lambda members, x: nl.Ensemble(members)(x), members=[nl.mlp((4, 3, 2), seed=1)], x=samples()[0])
call(
    "over_members",
    lambda loss, outputs, targets: nl.over_members(loss)(outputs, targets),
    loss=nn.functional.cross_entropy,
    outputs=torch.ones(3, 5, 2, dtype=torch.float64),
    targets=samples()[1],
)
CONVNET = {"eps": FROM_ZERO, "seed": SEEDS, "in_channels": COUNTS, "classes": COUNTS}
call(
    "conv_bn",
    nl.conv_bn,
    {**CONVNET, "size": COUNTS | {"a large integer"}},
    channels=(2, 2),
    classes=2,
    in_channels=1,
    size=4,
    eps=1e-5,
    seed=0,
    dtype=torch.float32,
)
call(
    "vgg11",
    nl.vgg11,
    {**CONVNET, "width": {"a half", "three", "one number in a tensor"}},
    classes=2,
    in_channels=1,
    size=8,
    width=0.03,
    eps=1e-5,
    seed=0,
    dtype=torch.float32,
)
call("Power", lambda p, x: nl.Power(p)(x), {"p": COUNTS, "x": LAYER_INPUTS}, p=2, x=Q)
call("RePU", lambda p, x: nl.RePU(p)(x), {"p": POSITIVE, "x": LAYER_INPUTS}, p=2.0, x=Q)
call(
    "Swish",
    lambda width, beta, x: nl.Swish(width, beta)(x),
    {"beta": NUMBERS, "x": {"no rows", "nan inside", "half precision"}},
    width=2,
    beta=1.0,
    x=Q,
)
call(
    "flat_loss",
    nl.flat_loss,
    model=network(),
    inputs=samples()[0],
    targets=samples()[1],
    loss=nn.functional.cross_entropy,
)
call(
    "flat_loss of a batch",
    lambda model, loss: nl.flat_loss(model, samples(), loss=loss),
    model=network(),
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
)
call("FlatLoss", lambda q: loss()(q), q=loss().q0)
call(
    "ntk",
    nl.ntk,
    {
        "x2": NONE,
        "q": NONE,
        "output": {"zero"},
        "chunk": COUNTS | NONE,
        "max_memory": {"a large integer", "a huge integer"},
    }
    | {"vectorize": {"True"}},
    model=network(),
    x1=samples()[0],
    x2=samples()[0],
    q=loss().q0,
    output="full",
    chunk=2,
    max_memory=2**30,
    vectorize=False,
)
call("output_motion", nl.output_motion, f=loss(), q=loss().q0, v=loss().q0, a=loss().q0)

# --- laws ---------------------------------------------------------------------------------------------------------

call(
    "homogeneous_law",
    nl.homogeneous_law,
    {"p": NONE, "verify": {"True"}},
    f=loss(),
    layer=1,
    p=1.0,
    across=1,
    verify=False,
)
CALLS["homogeneous_law"].right["p"] |= NUMBERS  # with verify=False any degree is tried
call("homogeneous_laws", nl.homogeneous_laws, f=loss())
call("linear_law", nl.linear_law, f=linear_loss(), layer=1)
call("data_rotation_law", nl.data_rotation_law, {"weight": NONE}, f=loss(), layer=1, weight="1.weight")
call(
    "law_of",
    nl.law_of,
    symmetry=nl.rescale(loss().slices["1.weight"], loss().slices["3.weight"]),
    f=loss(),
)
call("Law", lambda q: law().charge(q), q=loss().q0)
call("LawUnderRule", nl.LawUnderRule, law=law(), rule=nl.sgd(0.1))

# --- adaptivity ---------------------------------------------------------------------------------------------------

call("angular_update", nl.angular_update, {**SGD, "weight_decay": POSITIVE, "decoupled": {"True"}})
CALLS["angular_update"].arguments.update(lr=0.1, weight_decay=0.01, momentum=0.5, decoupled=False)
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
call("rmsprop_twin", nl.rmsprop_twin, {**SGD, "weight_decay": POSITIVE, "persistence": POSITIVE})
CALLS["rmsprop_twin"].arguments.update(lr=0.1, weight_decay=0.01, momentum=0.5, persistence=1.0)
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
ADAPTIVE = {**SGD, "r0_squared": POSITIVE, "persistence": FROM_ZERO}
call(
    "radius_squared",
    nl.radius_squared,
    ADAPTIVE,
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
    {**SGD, "t": PAIRS, "r_squared": PAIRS | {"another shape"}},
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
CALLS["update_memory"].right["updates"] = {"integers"}
call("UpdateMemory", lambda fading: UPDATES_SEEN.memory(fading), {"fading": BELOW_ONE}, fading=0.1)
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

# --- monitoring ---------------------------------------------------------------------------------------------------


def followed(laws, model, optimizer, every):
    """A ledger beside one step."""
    ledger = nl.Ledger(laws, model, optimizer, every=every)
    optimizer.zero_grad()
    x, y = samples()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    ledger.close()
    return ledger


TRAINED = nl.mlp((4, 3, 2), seed=5)
call(
    "Ledger",
    followed,
    {"every": NONE | COUNTS | {"a large integer", "a huge integer"}},
    laws=[law()],
    model=TRAINED,
    optimizer=torch.optim.SGD(TRAINED.parameters(), lr=0.0),
    every=1,
)
call("Ledger of a rule", lambda rule: nl.Ledger(law(), rule=rule), rule=nl.sgd(0.1))
call(
    "RadiusTracker",
    nl.RadiusTracker,
    {
        **SGD,
        "keep": {"zero"},
        "window": COUNTS,
        "weight": {"one number in a tensor", "another shape", "with gradient", "half precision"},
    },
    weight=Q,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.01,
    keep=0,
    window=10,
)
call(
    "RadiusTracker.update",
    lambda weight, gradient, lr: nl.RadiusTracker(Q, lr=0.1).update(weight, gradient, lr=lr),
    {"lr": FROM_ZERO | NONE, "weight": {"half precision"}, "gradient": {"half precision"}},
    weight=Q,
    gradient=V,
    lr=0.1,
)

WATCHED = nl.mlp((4, 3, 2), seed=5)


def monitored(model, optimizer, laws, every, keep, replicas, ignore, on_alert):
    """A monitor beside one step."""
    with nl.Monitor(
        model, optimizer, laws, every=every, keep=keep, replicas=replicas, ignore=ignore, on_alert=on_alert
    ) as monitor:
        optimizer.zero_grad()
        x, y = samples()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return monitor


call(
    "Monitor",
    monitored,
    {
        "laws": NONE | {"empty list"},
        "every": COUNTS | {"a large integer"},
        "keep": NONE | {"a large integer"},
        "replicas": NONE | {"True"},
        "ignore": {"empty list"},
        "on_alert": NONE | FUNCTIONS,
    },
    model=WATCHED,
    optimizer=torch.optim.SGD(WATCHED.parameters(), lr=0.0),
    laws=[],
    every=1,
    keep=100,
    replicas=False,
    ignore=["decay"],
    on_alert=None,
)


@cache
def monitor():
    """A monitor that has seen a hundred steps of AdamW."""
    model = nl.mlp((4, 3, 2), seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = nl.Monitor(model, optimizer, every=2)
    x, y = samples()
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return found


call(
    "Monitor.forecast",
    lambda horizon, schedule: monitor().forecast(horizon, schedule),
    {"horizon": COUNTS, "schedule": NONE},
    horizon=10,
    schedule=lambda step: 1e-2,
)
call("Monitor.records", lambda of: monitor().records(of), of="laws")
call("Monitor.log_to", lambda target: nl.Monitor.log_to(monitor(), target), {"target": FUNCTIONS}, target=print)
call("Monitor.load_state_dict", lambda state: monitor().load_state_dict(state), state=monitor().state_dict())
# their settings are those of Monitor, which is made when training begins
call("lightning_callback", nl.lightning_callback)
call("hugging_face_callback", nl.hugging_face_callback)

# --- laws as tests ------------------------------------------------------------------------------------------------


def linear_layer(x):
    return x @ double(*range(1, 9)).view(4, 2)


RECORDED = {
    "x": torch.ones(3, 2, dtype=torch.float64),
    "weight": torch.eye(2, dtype=torch.float64),
    "y": torch.ones(3, 2, dtype=torch.float64),
}
CHECKS = {"precision": NONE, "resolution": POSITIVE, "seed": SEEDS, "raise_error": {"True"}, "grad_output": NONE}
call(
    "check_gradients",
    lambda x, **kw: nl.check_gradients(kw.pop("function"), x, **kw),
    {**CHECKS, "kinds": NONE | {"dict"}, "x": {"another shape"}},
    function=nn.Linear(4, 2).double(),
    x=samples()[0],
    kinds={},
    grad_output=torch.ones(5, 2, dtype=torch.float64),
    precision=torch.float64,
    resolution=0.5,
    seed=0,
    raise_error=False,
)


def backward(model):
    nn.functional.cross_entropy(model(samples()[0]), samples()[1]).backward()
    return model


call(
    "check_gradients as it lies in .grad",
    nl.check_gradients,
    {"laws": NONE},
    function=backward(nl.mlp((4, 3, 2), seed=7)),
    laws=[law()],
)
call(
    "check_gradients of a kernel",
    lambda function, x, kind, loss: nl.check_gradients(function, x, kind=kind, loss=loss),
    {"loss": NONE, "kind": NONE, "x": {"another shape", "with gradient", "one number in a tensor", "half precision"}},
    function=torch.relu,
    x=samples()[0],
    kind="homogeneous",
    loss=lambda y: y.square().sum(),
)
call(
    "assert_gradients_lawful",
    lambda function, x: nl.assert_gradients_lawful(function, x),
    {"x": {"another shape"}},
    function=nn.Linear(4, 2).double(),
    x=samples()[0],
)
call(
    "check_recorded",
    nl.check_recorded,
    {"precision": NONE, "resolution": POSITIVE, "raise_error": {"True"}},
    kind="linear",
    values=RECORDED,
    gradients=RECORDED,
    precision=torch.float64,
    resolution=0.5,
    raise_error=False,
)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


call(
    "check_optimizer",
    nl.check_optimizer,
    {"parameters": NONE | {"another shape", "half precision", "with gradient"}, "laws": NONE, "steps": COUNTS}
    | {"seed": SEEDS, "raise_error": {"True"}},
    factory=adam,
    parameters=[torch.ones(3, 2, dtype=torch.float64)],
    laws=nl.OptimizerLaws(degree=0),
    steps=2,
    seed=0,
    raise_error=False,
)
call("assert_optimizer_lawful", nl.assert_optimizer_lawful, factory=adam)
NAMES = {"texts"}
call(
    "GainIntoLinear",
    nl.GainIntoLinear,
    {"gain": TEXTS, "weights": NAMES, "shift": TEXTS | NONE},
    gain="gain",
    weights=("weight",),
    shift="shift",
)
call(
    "OptimizerLaws",
    nl.OptimizerLaws,
    {"degree": NONE | FROM_ZERO | FUNCTIONS, "elementwise": {"True"}, "ndim": NONE | COUNTS, "tolerance": FROM_ZERO}
    | {"stops": {"True"}, "equivariance": {"empty list", "dict"}},
    decay="none",
    degree=0,
    equivariance=("signs",),
    elementwise=True,
    ndim=None,
    tolerance=0.0,
    stops=True,
)

# --- data sets ----------------------------------------------------------------------------------------------------


@cache
def empty_folder():
    return tempfile.mkdtemp()


@cache
def small_digits():
    return nl.digits("test").first(30)


FLAGS = {"download": {"True"}, "progress": {"True"}, "folder": NONE}
call("digits", nl.digits, split="train")
call("describe", datasets.describe, dataset=nl.digits("test").first(10))
call("kmnist", nl.kmnist, FLAGS, split="train", folder=empty_folder(), download=False, progress=False)
call(
    "tiny_imagenet",
    nl.tiny_imagenet,
    {**FLAGS, "classes": COUNTS | NONE, "per_class": COUNTS | NONE},
    split="train",
    folder=empty_folder(),
    classes=2,
    per_class=2,
    download=False,
    progress=False,
)
call(
    "Dataset",
    nl.Dataset,
    {"name": TEXTS, "classes": NAMES, "levels": COUNTS, "source": TEXTS, "licence": TEXTS},
    name="two",
    images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
    labels=torch.tensor([0, 1]),
    classes=("a", "b"),
    levels=255,
    source="",
    licence="",
)
call("Dataset.first", lambda n: small_digits().first(n), {"n": {"three", "zero"}}, n=2)
call(
    "Dataset.balanced",
    lambda n, seed: small_digits().balanced(n, seed),
    {"n": {"three", "zero"}, "seed": SEEDS},
    n=2,
    seed=0,
)
call(
    "Dataset.tensors",
    lambda **kw: small_digits().tensors(**kw),
    {"flatten": {"True"}, "standardize": {"True"}},
    dtype=torch.float64,
    flatten=False,
    standardize=False,
)

# --- training -----------------------------------------------------------------------------------------------------

SETTINGS = {"subset": 64, "model": "conv_bn", "eps": 1e-5, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
SETTINGS |= {"batch_size": 32, "epochs": 1, "lr_drops": (), "constrain_norm": False, "init_scale": 1.0, "width": 0.5}
SETTINGS |= {"precision": "float32", "device": "cpu", "seed": 0, "label_noise": 0.0, "augment": False}
SETTINGS |= {"filter_lr": 0.1, "filter_weight_decay": 0.0, "dataset": "digits"}
call(
    "TrainConfig",
    nl.TrainConfig,
    {
        "subset": NONE | COUNTS,
        "eps": FROM_ZERO,
        "lr": POSITIVE,
        "momentum": BELOW_ONE,
        "weight_decay": FROM_ZERO,
        "batch_size": NONE | COUNTS,
        "epochs": COUNTS,
        "lr_drops": NONE | {"empty list", "empty tensor", "no rows", "dict"},
        "constrain_norm": {"True"},
        "init_scale": POSITIVE,
        "width": POSITIVE,
        "device": {"device"},
        "seed": SEEDS,
        "label_noise": BELOW_ONE,
        "augment": {"True"},
        "filter_lr": POSITIVE | NONE,
        "filter_weight_decay": FROM_ZERO | NONE,
    },
    **SETTINGS,
)


@cache
def checkpoint():
    return os.path.join(empty_folder(), "run.pt")


call(
    "train",
    nl.train,
    {"checkpoint": NONE | TEXTS | {"bytes"}, "resume": {"True"}, "data": NONE, "progress": NONE | {"True"}}
    | {"stride": NONE | ANY_COUNT, "evaluate_every": NONE | ANY_COUNT, "watch": NONE | FUNCTIONS, "capture": {"True"}}
    | {"compiled": {"True"}},
    config=nl.TrainConfig(**{**SETTINGS, "filter_lr": None, "filter_weight_decay": None}),
    checkpoint=None,
    resume=True,
    data=None,
    progress=False,
    stride=1,
    evaluate_every=1,
    watch=None,
    capture=False,
    compiled=False,
)
call(
    "sweep",
    nl.sweep,
    {"configs": {"empty list"}, "executor": NONE, "run": {"True"}, "retry_failed": {"True"}}
    | {"progress": {"True"} | FUNCTIONS, "folder": TEXTS},
    configs=[nl.TrainConfig(**SETTINGS)],
    folder=empty_folder(),
    executor=None,
    run=False,
    retry_failed=True,
    progress=False,
)
call("load_sweep", nl.load_sweep, folder=empty_folder())

# --- the audit ------------------------------------------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


call(
    "audit",
    nl.audit,
    {"seed": SEEDS, "optimizer": NONE},
    model=small(),
    inputs=samples()[0],
    targets=samples()[1],
    loss=nn.functional.cross_entropy,
    seed=0,
)
call(
    "count_laws",
    nl.count_laws,
    {"seed": SEEDS, "depth": COUNTS, "inputs": {"another shape"}},
    model=small(),
    inputs=samples()[0],
    depth=2,
    seed=0,
)

# --- the book's claims --------------------------------------------------------------------------------------------

MANY_NUMBERS = {"another shape", "ragged", "with gradient", "set", "generator"}
call(
    "claim",
    book.claim,
    {"measured": {"zero"}, "control": NONE | NUMBERS | PAIRS | MANY_NUMBERS},
    id="gu-31",
    measured=[1e-9, -1e-9],
    control=0.3,
)

# what calls return, and errors: nobody makes them by hand
RESULTS = {
    "Account",
    "Alert",
    "Audit",
    "BeforeStep",
    "ConservedQuantities",
    "ConservedQuantity",
    "Equilibrium",
    "Forecast",
    "LawCheck",
    "Match",
    "MatchedGroup",
    "Motion",
    "LearningRule",
    "NLDTerms",
    "NormForecast",
    "NormForecasts",
    "OutputMotion",
    "Persistence",
    "Polar",
    "RMSPropTwin",
    "Record",
    "Report",
    "Run",
    "RundTrautmann",
    "StationaryPath",
    "Steady",
    "Sweep",
    "Trajectory",
    "UpdateEquilibrium",
}
ERRORS = {"AuditError", "ClaimError", "DataError", "DescentError", "FlowError", "LawError", "LedgerError", "SweepError"}
TYPES = {"Lagrangian", "Part"}  # aliases for annotations
