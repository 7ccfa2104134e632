"""The laws that a monitor finds in gradients are those that the layers have, and its tests of them are fair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import OPTIMIZERS, convnet, kinds, layers, normed, samples, train, watched

from nlcompanion.laws import audit, homogeneous_laws
from nlcompanion.monitoring.alerts.broken_gradient import BrokenGradient
from nlcompanion.monitoring.watch.law_sums import LawFigures
from nlcompanion.networks import RePU, flat_loss

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def data():
    return samples(torch.float64)


def found(model, data, steps=5, lr=1e-3):
    model = model.double()
    monitor, optimizers = watched(model, torch.optim.SGD(model.parameters(), lr=lr))
    train(model, optimizers, data, steps=steps)
    return monitor


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, lambda: RePU(2), nn.Identity])
@pytest.mark.parametrize("bias", [True, False])
def test_they_are_those_of_the_layers(data, activation, bias):
    model = layers(activation, bias).double()
    monitor = found(model, data)
    power = 2 if isinstance(model[2], RePU) else 1
    known = [
        {("1.weight", 1.0), ("1.bias", 1.0), ("3.weight", -power)},
        {("3.weight", 1.0), ("3.bias", 1.0), ("5.weight", -power)},
    ]
    if not bias:
        known = [{pair for pair in law if "bias" not in pair[0]} for law in known]
    assert [{(term.name, term.coefficient) for term in law.terms} for law in monitor.laws] == known
    if isinstance(model[2], nn.ReLU | RePU):
        expected = homogeneous_laws(flat_loss(model, data[0][:2], data[1][:2], F.cross_entropy))
        charges = [row["charge"] for row in monitor.records("laws")]
        assert len(expected) == len(monitor.laws)
        assert len(charges) == 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus])
def test_other_activations_have_none(data, activation):
    monitor = found(layers(activation), data)
    assert not monitor.laws
    assert any("no balance between layers was found" in note for note in monitor.notes)


def test_free_lengths_are_those_before_a_normalisation(data):
    monitor = found(convnet(), data)
    assert monitor._inspection.free == {"0.weight"}
    assert not found(layers(), data)._inspection.free
    unit = nn.Sequential(nn.Flatten(), nn.Linear(64, 24, bias=False), nn.ReLU(), nn.Linear(24, 10))
    assert not found(unit, data)._inspection.free


def test_an_audit_knows_at_least_as_many(data):
    model = normed().double()
    known = audit(model, data[0][:32], data[1][:32], F.cross_entropy)
    monitor = found(model, data)
    (law,) = monitor.laws
    assert any(set(law.parameters) <= set(one.parameters) for one in known.laws)


def test_the_end_of_a_training_raises_no_alert(data):
    """Near a minimum gradients are rounding of what they were: that is compared with the largest so far."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    x = data[0][:8]
    y = torch.randn(8, 3, dtype=torch.float64)
    monitor, (optimizer,) = watched(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), every=10)
    for _ in range(4000):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if loss.item() < 1e-28:
            break
    last = [row["gradient"] for row in monitor.records() if row["tensor"] == "1.weight"]
    assert last[-1] < 1e-10 * last[0]
    assert not monitor.alerts, monitor.report()


def test_a_gradient_is_judged_by_the_largest_it_was():
    """At a minimum it is a difference of large terms and has their rounding; its own length is the control."""
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    (law,) = homogeneous_laws(flat_loss(model, torch.ones(1, 2), torch.ones(1, 1), F.mse_loss))
    run = SimpleNamespace(
        laws=(law,), places=[slice(0, 1)], found=(False,), tolerance=1e-4, eps=torch.finfo(torch.float32).eps, odd=[]
    )
    settings = dict.fromkeys(law.parameters, SimpleNamespace(has_gradient=True))
    rule = BrokenGradient()
    rounding = 1e-5  # of the largest gradient: above a few units in its last place, below the tolerance
    for step, (form, gradient) in enumerate([(0.0, 1.0), (rounding, 1e-3)], start=1):
        figures = LawFigures(*(np.array([number]) for number in (form, gradient, 1.0, 0.0)))
        sample = SimpleNamespace(
            step=step, names=law.parameters, settings=settings, stepped=set(law.parameters), laws=figures, skipped=False
        )
        assert not rule.look(sample, run)
    assert rule.defects == pytest.approx(rounding)
    assert form / gradient > run.tolerance


def test_a_law_that_is_left_once_is_no_fault(data):
    """One sample is no proof, two are."""
    model = layers().double()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))
    train(model, optimizers, data, steps=100, before=lambda n: model[3].weight.grad.mul_(1.01 if n == 59 else 1.0))
    assert not monitor.alerts
    train(model, optimizers, data, steps=20, before=lambda n: model[3].weight.grad.mul_(1.01))
    assert kinds(monitor) == ["broken gradient"]
    assert monitor.alerts[0].since == 60
