"""Valid calls of ``nlcompanion.laws``."""

import torch
from torch import nn
from wrong_values import POSITIVE

import nlcompanion as nl
from calls.ingredients import law, linear_loss, loss, samples
from calls.table import COUNTS, NONE, SEEDS, call

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
call("Law", lambda q: law().charge(q), q=loss().q0)
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
