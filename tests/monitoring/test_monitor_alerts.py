"""Faults that are planted in a run, each found within 200 steps; and what a careful person might have taken for one."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import OPTIMIZERS, convnet, groups, kinds, layers, normed, samples, train, watched

from nlcompanion.laws import audit
from nlcompanion.monitoring import Monitor

AFTER, WITHIN = 90, 200  # a fault's step, and how many steps a monitor has to find it
SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def data():
    return samples()


def found(monitor, kind):
    """The one alert, in time."""
    (alert,) = monitor.alerts
    assert alert.kind == kind, str(alert)
    assert AFTER < alert.since <= alert.seen <= AFTER + WITHIN
    assert monitor.stopped is None
    return alert


# --- a broken gradient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Lion", "Muon"])
def test_a_gradient_scaled_by_a_hundredth(data, kind):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS[kind](model))
    train(
        model, optimizers, data, steps=AFTER + WITHIN,
        before=lambda n: model[3].weight.grad.mul_(1.01) if n >= AFTER else None,
    )  # fmt: skip
    alert = found(monitor, "broken gradient")
    assert alert.tensors == ("3.weight",)
    assert "gradient of 3.weight is 1.01 times" in alert.message
    assert alert.size > 10 * alert.expected
    assert alert.since == 100
    assert "|3.weight" in alert.law


def two_layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24, bias=False), nn.ReLU(), nn.Linear(24, 10, bias=False))


@pytest.mark.parametrize(
    ("make", "place", "tensors"),
    [
        (two_layers, 1, ("1.weight", "3.weight")),  # its one law cannot tell which
        (two_layers, 3, ("1.weight", "3.weight")),
        (lambda: layers(bias=False), 1, ("1.weight",)),  # 3.weight keeps the law of the next layer
        (lambda: layers(bias=False), 3, ("3.weight",)),  # both laws are broken
        (lambda: layers(bias=False), 5, ("5.weight",)),
    ],
)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_which_tensor_was_scaled(data, make, place, tensors, kind):
    model = make()
    monitor, optimizers = watched(model, OPTIMIZERS[kind](model))
    train(
        model, optimizers, data, steps=AFTER + 90,
        before=lambda n: model[place].weight.grad.mul_(1.25) if n >= AFTER else None,
    )  # fmt: skip
    alert = found(monitor, "broken gradient")
    assert alert.tensors == tensors
    assert f"of {place}.weight is 1.25 times what belongs to that of" in alert.message
    assert ("no law that is watched tells which" in alert.message) == (len(tensors) == 2)


def test_all_gradients_scaled_together_break_no_law(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))

    def scale_all(n):
        for p in model.parameters():
            p.grad.mul_(1.01 if n >= AFTER else 1.0)

    train(model, optimizers, data, steps=AFTER + 60, before=scale_all)
    assert not monitor.alerts


def test_a_gradient_that_was_scaled_from_the_start(data):
    """No sample shows the law as it should be: the degree that is found is none of a layer."""
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=20, before=lambda n: model[3].weight.grad.mul_(1.01))
    (alert,) = monitor.alerts  # of 1.weight and 1.bias against 3.weight
    assert (alert.kind, alert.since) == ("broken gradient", 1)
    assert "0.990099 times what belongs to that of 3.weight" in alert.message


def test_the_laws_of_an_audit(data):
    model = convnet()
    found_laws = audit(model, data[0][:32], data[1][:32], F.cross_entropy)
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model), laws=found_laws)
    assert len(monitor.laws) == len(found_laws.laws) > 3
    train(model, optimizers, data, steps=AFTER)
    assert not monitor.alerts, monitor.report()
    train(model, optimizers, data, steps=WITHIN, seed=1, before=lambda n: model[4].weight.grad[3].mul_(1.01))
    assert found(monitor, "broken gradient").tensors[0] == "4.weight"


def test_float64_sees_what_float32_cannot(data):
    x, y = samples(torch.float64)
    model = layers().double()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(
        model, optimizers, (x, y), steps=160,
        before=lambda n: model[3].weight.grad.mul_(1 + 1e-8) if n >= AFTER else None,
    )  # fmt: skip
    assert found(monitor, "broken gradient").expected < 1e-10


def test_an_activation_that_leaves_its_linear_range_is_no_fault(data):
    """Hardtanh is linear until it saturates: laws that were found there are taken back."""
    model = layers(nn.Hardtanh)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.2)
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=4)
    assert len(monitor.laws) == 2
    train(model, optimizers, data, steps=300)
    assert not monitor.alerts
    assert not monitor.laws
    assert sum("is no law of this run" in note for note in monitor.notes) == 2


# --- a frozen layer -------------------------------------------------------------------------------------------------


def freeze(model):
    model[3].weight.requires_grad_(False)


def detach(model):
    model[3].register_forward_hook(lambda module, inputs, out: out.detach())


def write_back(model):
    kept = model[3].weight.detach().clone()
    model.kept = lambda: model[3].weight.data.copy_(kept)


def test_a_layer_that_is_frozen(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    train(model, optimizers, data, steps=AFTER + WITHIN, before=lambda n: freeze(model) if n == AFTER else None)
    alert = found(monitor, "frozen")
    assert alert.tensors == ("3.weight",)
    assert "requires_grad was turned off" in alert.message


def test_a_layer_that_is_cut_off(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=AFTER)
    detach(model)
    train(model, optimizers, data, steps=WITHIN)
    assert set(kinds(monitor)) == {"frozen"}
    assert {name for alert in monitor.alerts for name in alert.tensors} == {
        "1.weight", "1.bias", "3.weight", "3.bias"
    }  # fmt: skip
    assert "no gradient any more" in monitor.alerts[0].message


def test_a_layer_at_rest_from_the_start_is_meant_so(data):
    model = layers()
    model[1].requires_grad_(False)
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=120)
    assert not monitor.alerts


def test_an_expert_that_is_rarely_called_is_not_frozen(data):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.calls = nn.ModuleList([layers(), layers()]), 0

        def forward(self, x):
            self.calls += 1
            return self.experts[self.calls % 20 == 7](x)

    model = Experts()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model), every=1)
    train(model, optimizers, data, steps=150)
    assert not monitor.alerts, monitor.report()


# --- decay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [convnet, normed])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_decay_on_a_normalisation(data, make, kind):
    model = make()
    monitor, optimizers = watched(model, kind(model.parameters(), lr=1e-2, weight_decay=0.1))
    train(model, optimizers, data, steps=5)
    (alert,) = monitor.alerts
    gains = {"1.weight", "1.bias"} if make is convnet else {"2.weight", "2.bias"}
    assert (alert.kind, set(alert.tensors), alert.size) == ("decay", gains, pytest.approx(1e-3))
    model = make()
    monitor, optimizers = watched(model, kind(groups(model, 0.1), lr=1e-2))
    train(model, optimizers, data, steps=5)
    assert not monitor.alerts


def test_decay_that_is_turned_on_later(data):
    model = convnet()
    optimizer = AdamW(groups(model, 0.1), lr=1e-3)
    monitor, optimizers = watched(model, optimizer)
    train(
        model, optimizers, data, steps=AFTER + 40,
        before=lambda n: optimizer.param_groups[1].update(weight_decay=0.1 if n >= AFTER else 0.0),
    )  # fmt: skip
    assert found(monitor, "decay").since == 100


def test_decay_through_a_momentum_takes_its_share_many_times(data):
    """A step of decay stays in the buffer: in all it takes 1/(1 - momentum) times lr * weight_decay."""
    model = convnet()
    monitor, optimizers = watched(model, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3))
    train(model, optimizers, data, steps=5)
    (alert,) = monitor.alerts
    assert alert.kind == "decay"
    assert alert.size == pytest.approx(0.05 * 1e-3 / (1 - 0.9))


# --- a schedule -----------------------------------------------------------------------------------------------------


def test_a_group_without_schedule(data):
    model = layers()
    parts = [{"params": model[k].parameters()} for k in (1, 3, 5)]
    optimizer = SGD(parts, lr=0.05, momentum=0.9)
    monitor, optimizers = watched(model, optimizer)

    def schedule(n):  # written by hand, for two groups of three
        for group in optimizer.param_groups[:2]:
            group["lr"] = 0.05 * (1 - n / 400)

    train(model, optimizers, data, steps=WITHIN, after=schedule)
    (alert,) = monitor.alerts
    assert (alert.kind, alert.tensors) == ("schedule", ("5.weight", "5.bias"))
    assert "group 2" in alert.message


def test_an_optimizer_without_schedule(data):
    model = layers()
    first, second = (
        SGD(model[1].parameters(), lr=0.05),
        AdamW([*model[3].parameters(), *model[5].parameters()], lr=1e-3),
    )
    monitor, optimizers = watched(model, [first, second])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(first, 400)
    train(model, optimizers, data, steps=WITHIN, schedules=[schedule])
    (alert,) = monitor.alerts
    assert (alert.kind, len(alert.tensors)) == ("schedule", 4)
    assert "of optimizer 1" in alert.message


@pytest.mark.parametrize("late", [False, True], ids=["at the start", "after a group was added"])
def test_a_schedule_for_all_groups(data, late):
    model = layers()
    optimizer = SGD([{"params": model[1].parameters()}, {"params": model[3].parameters(), "lr": 0.01}], lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=200)
    monitor, optimizers = watched(model, optimizer, every=10)
    train(model, optimizers, data, steps=199, schedules=[schedule])
    if late:  # when the schedule is over
        optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.05})
        train(model, optimizers, data, steps=60)
    assert not monitor.alerts, monitor.report()


def test_changes_from_before_a_group_was_added_do_not_count(data):
    """The others' rates changed in many steps before, and once since: that is no schedule that leaves it out."""
    model = layers()
    optimizer = SGD([{"params": model[1].parameters()}, {"params": model[3].parameters()}], lr=0.05)
    monitor, optimizers = watched(model, optimizer)

    def set_rates(lr):
        for group in optimizer.param_groups[:2]:
            group["lr"] = lr

    train(model, optimizers, data, steps=120, after=lambda n: set_rates(0.05 * (1 - n / 400)))
    optimizer.add_param_group({"params": model[5].parameters(), "lr": 0.01})
    train(model, optimizers, data, steps=80, after=lambda n: set_rates(0.01) if n == 30 else None)
    assert not monitor.alerts, monitor.report()


# --- dead directions, numbers, layers -------------------------------------------------------------------------------


def test_a_bias_before_a_normalisation_drifts_under_adam(data):
    model = convnet(bias=True)
    monitor, optimizers = watched(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    train(model, optimizers, data, steps=200)
    (alert,) = monitor.alerts
    assert (alert.kind, alert.tensors) == ("dead direction", ("0.bias",))
    model = convnet(bias=True)
    monitor, optimizers = watched(model, SGD(model.parameters(), lr=0.05, momentum=0.9))
    train(model, optimizers, data, steps=200)
    assert not monitor.alerts  # SGD leaves it where it is


@pytest.mark.parametrize("rounding", [True, False])
def test_a_gradient_of_rounding_moves_a_bias_or_not_and_is_not_frozen(data, rounding):
    """Near 0 the bias takes every step, at 1 none. The control: so does one of whose gradient nothing is left."""
    model = convnet(bias=True)
    monitor, optimizers = watched(model, SGD(model.parameters(), lr=0.05))
    bias = model[0].bias

    def round_off(n):
        bias.data.fill_(0.0 if n < AFTER else 1.0)
        bias.grad.fill_(1e-9 if n < AFTER or rounding else 0.0)

    train(model, optimizers, data, steps=AFTER + WITHIN, before=round_off)
    assert kinds(monitor) == ([] if rounding else ["frozen"])


def test_a_gradient_that_is_not_finite(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=120, before=lambda n: model[3].bias.grad.fill_(torch.nan) if n == 99 else None)
    alert = found(monitor, "not finite")
    assert "3.bias" in alert.tensors


def test_a_layer_that_is_replaced(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))

    def replace(n):
        if n == AFTER:
            model[5] = nn.Linear(16, 10)

    train(model, optimizers, data, steps=AFTER + WITHIN, after=replace)
    alert = monitor.alerts[0]
    assert (alert.kind, set(alert.tensors)) == ("replaced", {"5.weight", "5.bias"})
    assert alert.seen <= AFTER + WITHIN
    assert monitor.stopped is None


# --- how alerts are told --------------------------------------------------------------------------------------------


def test_alerts_are_logged_and_handed_on_and_can_be_ignored(data, caplog):
    logging.getLogger("nlcompanion.monitor").setLevel(logging.WARNING)
    model, heard = convnet(), []
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    with caplog.at_level(logging.WARNING, logger="nlcompanion.monitor"):
        monitor = Monitor(model, optimizer, on_alert=heard.append)
        train(model, optimizer, data, steps=5)
    assert tuple(heard) == monitor.alerts
    assert "decay, since step 1" in caplog.text
    model = convnet()
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    monitor = Monitor(model, optimizer, ignore=["decay"])
    train(model, optimizer, data, steps=5)
    assert not monitor.alerts
