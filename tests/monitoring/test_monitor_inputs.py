"""What users hand over by mistake, or change on the way: recognised and said, and the loop goes on."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from watched import OPTIMIZERS, convnet, kinds, layers, samples, train, watched

from nlcompanion.laws import homogeneous_laws
from nlcompanion.monitoring import Monitor
from nlcompanion.networks import flat_loss

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def data():
    return samples()


def said(monitor, *words):
    (note,) = [note for note in monitor.notes if all(word in note for word in words)]
    return note


# --- at the start -----------------------------------------------------------------------------------------------------


def test_an_optimizer_of_another_model():
    with pytest.raises(ValueError, match="SGD holds none of the parameters of this Sequential"):
        Monitor(layers(), SGD(layers().parameters(), lr=0.1))


def test_an_optimizer_without_some_parameters(data):
    model = layers()
    monitor, optimizers = watched(model, SGD(model[1].parameters(), lr=0.1))
    train(model, optimizers, data, steps=60)
    assert said(monitor, "no optimizer holds 3.weight, 3.bias, 5.weight, 5.bias")
    assert {row["tensor"] for row in monitor.records()} == {"1.weight", "1.bias"}
    assert not monitor.alerts


def test_an_optimizer_with_tensors_of_elsewhere(data):
    model, margin = layers(), nn.Parameter(torch.ones(3))
    monitor, optimizers = watched(model, SGD([*model.parameters(), margin], lr=0.1))
    train(model, optimizers, data, steps=5)
    assert said(monitor, "1 tensor that the model lacks")


def test_laws_of_another_model(data):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 10))
    laws = homogeneous_laws(flat_loss(other, data[0][:2], data[1][:2], nn.functional.cross_entropy))
    model = layers()
    with pytest.raises(ValueError, match="make the laws from this model's own"):
        Monitor(model, SGD(model.parameters(), lr=0.1), laws=laws)


def test_laws_of_a_part_that_nobody_moves(data):
    model = layers()
    laws = homogeneous_laws(flat_loss(model, data[0][:2], data[1][:2], nn.functional.cross_entropy))
    monitor, _ = watched(model, SGD([*model[1].parameters(), *model[3].parameters()], lr=0.1), laws=laws)
    assert said(monitor, "not watched: 1 law of which no optimizer moves all tensors")
    assert len(monitor.laws) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every"),
        ({"keep": 3}, "keep"),
        ({"ignore": ["decays"]}, "ignore"),
        ({"ignore": "decay"}, "ignore"),
        ({"laws": 3}, "laws must be an audit"),
        ({"on_alert": 3}, "on_alert"),
        ({"replicas": "yes"}, "replicas"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    model = layers()
    with pytest.raises((ValueError, TypeError), match=message):
        Monitor(model, SGD(model.parameters(), lr=0.1), **settings)
    with pytest.raises(TypeError, match="model must be"):
        Monitor(model.parameters(), SGD(model.parameters(), lr=0.1))


def test_sharded_weights_are_refused():
    model = nn.Linear(2, 2)
    model.weight.placements = ("Shard(0)",)  # as a DTensor has
    with pytest.raises(ValueError, match="split over machines"):
        Monitor(model, SGD(model.parameters(), lr=0.1))


# --- on the way -------------------------------------------------------------------------------------------------------


def test_groups_that_come_and_go(data):
    model = layers()
    optimizer = OPTIMIZERS["AdamW"](nn.ModuleList([model[1], model[3]]))
    monitor, optimizers = watched(model, optimizer, every=10)
    train(model, optimizers, data, steps=40)
    assert len(monitor.laws) == 1
    optimizer.add_param_group({"params": list(model[5].parameters())})
    train(model, optimizers, data, steps=80)
    assert said(monitor, "from step 50 on the optimizer holds 5.weight, 5.bias too")
    assert len(monitor.laws) == 2  # sought anew
    of_last = [row["step"] for row in monitor.records() if row["tensor"] == "5.weight"]
    assert min(of_last) == 50
    optimizer.param_groups.pop()
    train(model, optimizers, data, steps=60)
    assert said(monitor, "from step 130 on no optimizer holds 5.weight, 5.bias")
    assert not monitor.alerts
    assert monitor.stopped is None
    train(model, optimizers, data, steps=60, before=lambda n: model[3].weight.grad.mul_(1.01))
    assert kinds(monitor) == ["broken gradient"]


def test_clipping_is_recognised(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=200, before=lambda n: clip_grad_norm_(model.parameters(), 0.1))
    assert said(monitor, "clipped by their whole norm at 0.1")
    assert not monitor.alerts
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=200)
    assert not monitor.notes


def test_clipping_by_value_breaks_the_laws(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))

    def clip(n):
        if n >= 90:
            nn.utils.clip_grad_value_(model.parameters(), 0.01)

    train(model, optimizers, data, steps=200, before=clip)
    assert set(kinds(monitor)) == {"broken gradient"}
    assert "clipped by value" in monitor.alerts[0].message


def test_weights_in_half_precision(data):
    model = layers().bfloat16()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    train(model, optimizers, samples(torch.bfloat16), steps=60)
    assert said(monitor, "weights in half precision")
    assert not monitor.alerts
    assert monitor.stopped is None
    assert all(row["norm"] > 0 for row in monitor.records())


def test_gradients_in_half_precision(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    for _ in range(60):
        optimizers[0].zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        optimizers[0].step()
    assert said(monitor, "digits of bfloat16", "0.0625")
    assert not monitor.alerts


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True), nn.Flatten(), nn.Linear(32, 5))
    sparse = torch.optim.SparseAdam(model[0].parameters(), lr=1e-2)
    monitor, _ = watched(model, [sparse, SGD(model[2].parameters(), lr=1e-2)])
    for n in range(60):
        for optimizer in monitor.optimizers:
            optimizer.zero_grad()
        words = torch.randint(50, (16, 4), generator=torch.Generator().manual_seed(n))
        nn.functional.cross_entropy(model(words), words[:, 0] % 5).backward()
        for optimizer in monitor.optimizers:
            optimizer.step()
    row = monitor.records()[-3]
    assert row["tensor"] == "0.weight"
    assert row["gradient"] == pytest.approx(float(model[0].weight.grad.to_dense().norm()), rel=0.5)
    assert monitor.stopped is None
    assert not monitor.alerts


def test_weights_that_change_their_storage_or_their_dtype(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model), every=1)
    train(model, optimizers, data, steps=25)
    for p in model.parameters():
        p.data = p.data.clone()
    train(model, optimizers, data, steps=25)
    assert monitor.stopped is None
    assert not monitor.alerts
    model.double()
    train(model, OPTIMIZERS["SGD"](model), samples(torch.float64), steps=2)  # a loop of another optimizer is not heard
    for group in optimizers[0].param_groups:
        group["momentum"] = 0.0
    train(model, optimizers, samples(torch.float64), steps=30)
    assert "is torch.float64 of shape" in monitor.stopped
    assert monitor.steps == 50
    assert "stopped at step 51" in monitor.report()


def test_a_fault_of_the_monitor_itself_leaves_the_loop_alone(data, monkeypatch, caplog):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=5)

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(monitor._watch.layout, "begin", fails)
    before = model[1].weight.detach().clone()
    with caplog.at_level(logging.WARNING, logger="nlcompanion.monitor"):
        train(model, optimizers, data, steps=40)
    assert not torch.equal(before, model[1].weight)
    assert "stopped at step 20: RuntimeError: out of memory" in monitor.stopped
    assert "stopped at step 20" in caplog.text
    assert len({row["step"] for row in monitor.records()}) == 4


def test_a_listener_that_fails_leaves_the_loop_alone(data):
    model = convnet()

    def fails(alert):
        raise RuntimeError("no network")

    monitor = Monitor(model, AdamW(model.parameters(), lr=1e-3), on_alert=fails)
    train(model, monitor.optimizers, data, steps=30)
    assert kinds(monitor) == ["decay"]
    assert monitor.stopped is None
    assert said(monitor, "on_alert", "no network")


# --- a run that is resumed --------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_with_another_optimizer(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=60)
    state = monitor.state_dict()
    monitor.close()
    other, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    other.load_state_dict(state)
    train(model, optimizers, data, steps=60)
    assert said(other, "after step 60 the run was resumed with AdamW, and had SGD before")
    assert other.steps == 120
    assert not other.alerts
    assert len(other.laws) == 2


def test_a_run_that_is_resumed_with_other_layers(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=60)
    wider = nn.Sequential(*model[:5], nn.Linear(16, 12))
    other, optimizers = watched(wider, OPTIMIZERS["SGD"](wider))
    other.load_state_dict(monitor.state_dict())
    train(wider, optimizers, data, steps=60)
    assert said(other, "resumed with other tensors: 5.bias, 5.weight")
    assert not other.alerts


def test_what_is_no_state():
    model = layers()
    monitor, _ = watched(model, SGD(model.parameters(), lr=0.1))
    for wrong in (None, {}, {"version": 1}, [1]):
        with pytest.raises(TypeError, match=r"what Monitor\.state_dict\(\) returned"):
            monitor.load_state_dict(wrong)
    with pytest.raises(ValueError, match="version 99"):
        monitor.load_state_dict({**monitor.state_dict(), "version": 99})
