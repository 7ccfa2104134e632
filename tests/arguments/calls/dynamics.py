"""Valid calls of ``nlcompanion.dynamics``."""

import torch
from wrong_values import NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import STATE, Q, V, bowl, entropy, of_state
from calls.table import ANY_COUNT, ANY_TIME, COUNTS, FROM_ZERO, NONE, PAIRS, SGD, call
from nlcompanion import dynamics

call("sgd", nl.sgd, SGD, lr=0.1, momentum=0.5, weight_decay=0.01)
call("damped", nl.damped, {"mass": POSITIVE, "friction": FROM_ZERO}, mass=1.0, friction=0.5)
call("newtonian", nl.newtonian, {"lr": POSITIVE | NONE, "half_first_step": {"True"}}, lr=0.1, half_first_step=False)
call("nesterov", nl.nesterov, {"lr": POSITIVE | NONE}, lr=0.1)
call("gradient_flow", nl.gradient_flow)
call(
    "natural_gradient",
    lambda t_span, **kw: nl.integrate(nl.natural_gradient(**kw), bowl, Q, t_span=t_span, max_nfev=300),
    {
        "mass": POSITIVE,
        "friction": FROM_ZERO - {"a large integer"},  # too stiff for so few calls
        "grad_h_inverse": NONE,
        "t_span": PAIRS,
    },
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
        "t_span": PAIRS,
        "rtol": POSITIVE,
        "atol": POSITIVE,  # the integral begins at 0, and 0 has no share
        "t_eval": NONE,
        "max_nfev": {"a large integer", "inf", "None"},
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
    t_eval=[1.0],
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
    {"record": NONE, "steps": {"zero", "three"}, "every": COUNTS},
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
call("Steps.memory_of", lambda n: nl.nesterov(lr=0.1).steps.memory_of(n), {"n": ANY_COUNT | {"zero"}}, n=10)
call("LearningRule.rates", lambda t: nl.sgd(0.1).rates(t), {"t": NUMBERS}, t=0.5)
call("LearningRule.rates of schedules", lambda t: nl.nesterov().rates(t), {"t": POSITIVE}, t=0.5)
call("LearningRule.equation", lambda t: nl.nesterov().equation(t), {"t": POSITIVE}, t=0.5)
