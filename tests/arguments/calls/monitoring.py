"""Valid calls of ``nlcompanion.monitoring``."""

import torch
from torch import nn

import nlcompanion as nl
from calls.ingredients import Q, V, law, samples
from calls.table import COUNTS, FROM_ZERO, NONE, SGD, call


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
call(
    "Ledger.check",
    lambda tol: followed([law()], TRAINED, torch.optim.SGD(TRAINED.parameters(), lr=0.0), 1).check(tol),
    {"tol": FROM_ZERO | NONE},
    tol=1e-9,
)
