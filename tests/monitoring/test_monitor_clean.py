"""Runs without a fault raise no alert, whatever the model and the optimizer."""

import pytest
import torch
from watched import MODELS, OPTIMIZERS, samples, train, watched

# each optimizer and each model once or twice; all pairs in the slow test
FEW = [
    ("ReLU", "SGD"), ("leaky ReLU", "AdamW"), ("tanh", "Muon"), ("GELU", "RMSprop"), ("ReLU6", "SGD, Nesterov"),
    ("hardtanh", "SGD, plain"), ("dropout", "Lion"), ("BatchNorm", "SGD"), ("LayerNorm", "Adam"),
    ("transformer", "AdamW"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return samples()


def run(model, optimizer, data, steps, seed=0, every=20):
    torch.manual_seed(seed)
    net = MODELS[model]()
    monitor, optimizers = watched(net, OPTIMIZERS[optimizer](net), every=every)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, steps) for one in optimizers]
    train(net, optimizers, data, steps=steps, seed=seed, schedules=schedules)
    assert monitor.stopped is None
    assert monitor.steps == steps
    assert not monitor.alerts, monitor.report()
    return monitor


@pytest.mark.parametrize(("model", "optimizer"), FEW)
def test_a_few_runs(data, model, optimizer):
    monitor = run(model, optimizer, data, 120)
    expected = {"ReLU": 2, "leaky ReLU": 2, "tanh": 0, "GELU": 0, "dropout": 1, "BatchNorm": 0, "LayerNorm": 1}
    if model in expected:
        assert len(monitor.laws) == expected[model]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_many_runs(data, model, optimizer, seed):
    run(model, optimizer, data, 400, seed)


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_is_watched_at_every_step(data, every):
    monitor = run("ReLU", "SGD", data, 90, every=every)
    assert {row["step"] for row in monitor.records()} >= set(range(every, 91, every))
