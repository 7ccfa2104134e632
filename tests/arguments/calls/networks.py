"""Valid calls of ``nlcompanion.networks``."""

import torch
from torch import nn
from wrong_values import NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, loss, network, samples
from calls.table import COUNTS, FROM_ZERO, LAYER_INPUTS, NONE, SEEDS, call

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
call("KernelProduct", lambda v: nl.ntk_product(network(), samples()[0])(v), v=torch.ones(5, 2, dtype=torch.float64))
call("output_motion", nl.output_motion, f=loss(), q=loss().q0, v=loss().q0, a=loss().q0)
