"""Valid calls of ``nlcompanion.laws``."""

import torch
from torch import nn
from wrong_values import NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, V, law, law_of_two, linear_loss, loss, loss_of_two, samples
from calls.table import COUNTS, HANDED_ON, NONE, PAIRS, SEEDS, call

call(
    "homogeneous_law",
    nl.homogeneous_law,
    {"p": POSITIVE, "verify": {"True"}},  # without verification any degree is tried
    f=loss(),
    layer=1,
    p=1.0,
    across=1,
    verify=False,
)
call("homogeneous_laws", nl.homogeneous_laws, f=loss())
call("linear_law", nl.linear_law, f=linear_loss(), layer=1)
call("data_rotation_law", nl.data_rotation_law, {"weight": NONE}, f=loss(), layer=1, weight="1.weight")
call(
    "law_of",
    nl.law_of,
    symmetry=nl.rescale(loss().slices["1.weight"], loss().slices["3.weight"]),
    f=loss(),
)
call("LawUnderRule", nl.LawUnderRule, law=law(), rule=nl.sgd(0.1))

# --- the audit ---


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
    optimizer=None,
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


# --- what a law does ----------------------------------------------------------------------------------------------

OTHER = {"q": Q, "v": V}
for name in ("charge", "linear", "square"):
    argument = {"charge": "q", "linear": "x", "square": "step"}[name]
    call(f"Law.{name}", getattr(law_of_two(), name), {argument: HANDED_ON}, **{argument: Q})
call("Law.form", law_of_two().form, {"a": HANDED_ON, "b": HANDED_ON | NONE}, a=Q, b=V)
call("Law.sides", law_of_two().sides, {"a": HANDED_ON, "b": HANDED_ON | NONE}, a=Q, b=V)
call("Law.momentum", law_of_two().momentum, {"q": HANDED_ON, "v": HANDED_ON}, q=Q, v=V)
call("Law.cosine", law_of_two().cosine, {"gradient": HANDED_ON, "q": HANDED_ON}, gradient=V, q=Q)
call("Law.change", law_of_two().change, {"q": HANDED_ON, "q_next": HANDED_ON}, q=Q, q_next=V)
call("Law.gd_change", law_of_two().gd_change, {"gradient": HANDED_ON, "lr": POSITIVE}, gradient=V, lr=0.1)
call(
    "Law.heavy_ball_change",
    law_of_two().heavy_ball_change,
    {"step": HANDED_ON, "previous": NONE, "momentum": NUMBERS},
    step=V,
    previous=(V, law_of_two().square(V)),
    momentum=0.9,
)
call(
    "Law.heavy_ball_change after another step",
    lambda step, change: law_of_two().heavy_ball_change(V, (step, change), momentum=0.9),
    {"step": HANDED_ON},
    step=V,
    change=law_of_two().square(V),
)
call("Law.generator", law_of_two().generator, {"q": HANDED_ON, "s": NUMBERS}, q=Q, s=1.0)
call("Law.act", law_of_two().act, {"q": HANDED_ON, "s": NUMBERS}, q=Q, s=0.5)
call(
    "Law.symmetry",
    lambda direction: law_of_two().symmetry(direction)(Q, 0.1),
    {"direction": NUMBERS - {"a large integer"}},
    direction=1.0,
)
call("Law.tensor_of", law_of_two().tensor_of, {"source": HANDED_ON}, source=Q, term=law_of_two().terms[0])
call("Law.under", law_of_two().under, rule=nl.nesterov())
call(
    "LawUnderRule.residual",
    lambda rtol, **given: law_of_two().under(nl.damped(1.0, 0.5)).residual(**given, rtol=rtol),
    {"q0": NONE, "v0": NONE, "t_span": PAIRS, "rtol": POSITIVE},
    f=loss_of_two(),
    q0=Q,
    v0=V,
    t_span=(0.0, 0.1),
    rtol=1e-6,
)
