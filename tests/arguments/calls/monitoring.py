"""Valid calls of ``nlcompanion.monitoring``."""

from functools import cache

import torch
from torch import nn
from wrong_values import FUNCTIONS

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
        "every": COUNTS,
        "keep": NONE,
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
