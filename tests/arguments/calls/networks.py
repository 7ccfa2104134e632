"""Valid calls of ``nlcompanion.networks``."""

from functools import cache

import torch
from torch import nn
from wrong_values import NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, V, loss, loss_of_two, network, samples
from calls.table import COUNTS, FROM_ZERO, HANDED_ON, LAYER_INPUTS, NONE, SEEDS, call

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
    {**CONVNET, "size": COUNTS},
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
    {**CONVNET, "width": {"a half", "one number in a tensor"}},
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
call(
    "ntk_product",
    nl.ntk_product,
    {"x2": NONE, "q": NONE, "output": {"zero"}, "max_memory": {"a large integer", "a huge integer"}},
    model=network(),
    x1=samples()[0],
    x2=samples()[0],
    q=loss().q0,
    output="full",
    max_memory=2**30,
)
call("output_motion", nl.output_motion, f=loss(), q=loss().q0, v=loss().q0, a=loss().q0)
call("Power.forward", lambda x: nl.Power(2)(x), {"x": LAYER_INPUTS}, x=Q)
call("RePU.forward", lambda x: nl.RePU(2)(x), {"x": LAYER_INPUTS}, x=Q)
call("Swish.forward", lambda x: nl.Swish(2)(x), {"x": {"no rows", "nan inside", "half precision"}}, x=Q)


@cache
def team():
    """Two members of one parameter each."""
    return nl.Ensemble([nl.mlp((2, 1), seed=seed) for seed in (0, 1)])


call("Ensemble.forward", lambda x: team()(x), {"x": {"nan inside", "no rows"}}, x=Q)
PLAIN_TEAM = nl.Ensemble([nl.mlp((1, 1), seed=seed) for seed in (0, 1)])
call("Ensemble.split", lambda q: PLAIN_TEAM.split(q), {"q": HANDED_ON | {"no rows"}}, q=Q)
call("Ensemble.join", lambda rows: PLAIN_TEAM.join(rows), rows=Q[:, None])
call("Ensemble.member", lambda e, q: PLAIN_TEAM.member(e, q), {"e": {"zero"}, "q": NONE | HANDED_ON}, e=1, q=Q)

call("FlatLoss.__call__", lambda q: loss_of_two()(q), {"q": HANDED_ON}, q=Q)
call("FlatLoss.unflatten", lambda q: loss_of_two().unflatten(q), {"q": HANDED_ON}, q=Q)
call("FlatLoss.flatten", lambda tensors: loss_of_two().flatten(tensors), tensors=loss_of_two().unflatten(Q))
call(
    "FlatLoss.flatten one of them",
    lambda tensor: nl.flat_loss(nn.Linear(2, 1, bias=False), Q[None], Q[:1, None], nn.functional.mse_loss).flatten(
        {"weight": tensor}
    ),
    {"tensor": HANDED_ON},
    tensor=Q,
)
call(
    "FlatLoss.outputs",
    lambda q, inputs: loss_of_two().outputs(q, inputs),
    {"q": HANDED_ON, "inputs": NONE},
    q=Q,
    inputs=Q[:, None],
)
call(
    "FlatLoss.on",
    lambda inputs, targets: loss_of_two().on(inputs, targets)(Q),
    {"targets": HANDED_ON | {"integers", "booleans"}},  # what a loss takes is its own affair
    inputs=Q[:, None],
    targets=V[:, None],
)
call("KernelProduct.__call__", lambda v: nl.ntk_product(nn.Linear(2, 1), Q[None], output=0)(v), v=[1.0])
