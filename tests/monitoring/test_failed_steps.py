"""Steps that end in an exception: the next one is seen afresh."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from loops import flat, laws_of, network, samples, train
from torch.optim import SGD, Adam, AdamW

from nlcompanion.laws import audit
from nlcompanion.monitoring import Ledger, LedgerError

KINDS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "Nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: Adam(p, lr=0.01),
}
PAIRS = {
    "SGD and SGD": lambda a, b: (SGD(a, lr=0.1, momentum=0.9), SGD(b, lr=0.02, momentum=0.5, weight_decay=1e-2)),
    "AdamW and SGD": lambda a, b: (AdamW(a, lr=1e-3), SGD(b, lr=0.1, momentum=0.9, weight_decay=1e-2)),
}


@pytest.fixture(scope="module")
def data():
    return samples()


@cache
def audited(activation):
    """The laws of the network, found once: they name its parameters, not its values."""
    x, y = samples()
    return audit(network(activation), x[:8], y[:8], F.cross_entropy).laws


class Guard:
    """A user's hook that stops steps."""

    def __init__(self, *optimizers):
        self.stops = False
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self)

    def __call__(self, *_):
        if self.stops:
            raise FloatingPointError

    def step(self, optimizer, stops):
        self.stops = stops
        try:
            optimizer.step()
        except FloatingPointError:
            assert stops


def gradients_of(model, data, n):
    model.zero_grad()
    F.cross_entropy(model(data[0][n * 8 : n * 8 + 8]), data[1][n * 8 : n * 8 + 8]).backward()


def two_halves(model):
    return [p for p in model.parameters() if p.ndim == 2], [p for p in model.parameters() if p.ndim != 2]


def adds_up(ledger, start, model):
    for law, account in zip(ledger.laws, ledger, strict=True):
        change = law.charge(flat(model)) - law.charge(start)
        torch.testing.assert_close(account.change.sum(0), change.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_after_one_that_failed_is_seen_afresh(data, kind, activation):
    model = network(activation)
    optimizer = KINDS[kind](model.parameters())
    ledger, start = Ledger(audited(activation), model, optimizer), flat(model)
    guard = Guard(optimizer)
    for n in range(12):
        gradients_of(model, data, n)
        guard.step(optimizer, stops=n in (0, 4, 5, 8))
        if n in (0, 4, 5, 7):
            with torch.no_grad():
                model[1].weight.mul_(1.1)
        if n == 8:
            guard.step(optimizer, stops=False)  # the same gradient once more
        optimizer.param_groups[0]["lr"] *= 0.7
    assert ledger.steps == 9
    assert ledger.check() < 1e-12
    if activation == "relu":
        adds_up(ledger, start, model)
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError):
        ledger.check()


@pytest.mark.parametrize("kind", PAIRS)
def test_one_of_several_optimizers_fails(data, kind):
    model = network()
    one, other = PAIRS[kind](*two_halves(model))
    ledger, start = Ledger(laws_of(model, data), model, [one, other]), flat(model)
    guard = Guard(one, other)
    for n in range(16):
        gradients_of(model, data, n)
        guard.step(one, stops=n in (2, 5, 6))
        guard.step(other, stops=n in (2, 9, 12))
        one.param_groups[0]["lr"] *= 0.8
        other.param_groups[0]["lr"] *= 0.7
    gradients_of(model, data, 17)
    one.step()
    other.step()
    assert ledger.check() < 1e-12
    adds_up(ledger, start, model)
