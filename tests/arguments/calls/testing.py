"""Valid calls of ``nlcompanion.testing``."""

import torch
from torch import nn
from wrong_values import FUNCTIONS, NUMBERS, POSITIVE

import nlcompanion as nl
from calls.ingredients import Q, V, double, law, samples
from calls.table import COUNTS, FROM_ZERO, HANDED_ON, NAMES, NONE, SEEDS, TEXTS, call


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
    {**CHECKS, "kinds": NONE | {"dict"}},
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
    function=backward(nl.mlp((4, 3, 2), seed=7)),
    laws=[law()],
)
call(
    "check_gradients of a kernel",
    lambda function, x, kind, loss: nl.check_gradients(function, x, kind=kind, loss=loss),
    {"loss": NONE, "x": {"another shape", "with gradient", "one number in a tensor", "half precision"}},
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
    gradients={**RECORDED, "weight": torch.full((2, 2), 3.0, dtype=torch.float64)},
    precision=torch.float64,
    resolution=0.5,
    raise_error=False,
)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


call(
    "check_optimizer",
    nl.check_optimizer,
    {"parameters": NONE, "laws": NONE, "steps": COUNTS} | {"seed": SEEDS, "raise_error": {"True"}},
    factory=adam,
    parameters=[torch.ones(3, 2, dtype=torch.float64)],
    laws=nl.OptimizerLaws(degree=0),
    steps=2,
    seed=0,
    raise_error=False,
)
call("assert_optimizer_lawful", nl.assert_optimizer_lawful, factory=adam)
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
    {
        "degree": NONE | NUMBERS | FUNCTIONS - {"of nothing"},
        "elementwise": {"True"},
        "ndim": NONE | COUNTS | {"zero"},
        "tolerance": FROM_ZERO,
    }
    | {"stops": {"True"}, "sized": {"True"}, "equivariance": {"empty list", "dict"}},
    decay="none",
    degree=0,
    equivariance=("signs",),
    elementwise=True,
    ndim=None,
    tolerance=0.0,
    stops=True,
    sized=False,
)
call(
    "GainIntoLinear.slope",
    lambda values, gradients: nl.GainIntoLinear("gain", ("weight",)).slope(values, gradients),
    values={"gain": Q, "weight": torch.stack([Q, V])},
    gradients={"gain": Q, "weight": torch.stack([Q, V])},
)
call(
    "GainIntoLinear.slope of a gain",
    lambda gain: nl.GainIntoLinear("gain", ("weight",)).slope(
        {"gain": gain, "weight": torch.stack([Q, V])}, {"gain": V, "weight": torch.stack([Q, V])}
    ),
    {"gain": HANDED_ON},
    gain=Q,
)
