"""The usual step books what the full one books, takes over and gives back in the middle of a run, and is used."""

import pytest
import torch
from loops import laws_of, network, samples, train

from nlcompanion.laws import homogeneous_laws, linear_law
from nlcompanion.monitoring import Ledger, LedgerError
from nlcompanion.monitoring.optimizer_steps import OptimizerSteps
from nlcompanion.monitoring.usual_step import UsualStep

SGD = torch.optim.SGD
CAUSES = ("change", "finite_step", "momentum", "decay", "rates", "outside", "optimizer")
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 1e-2},
    "both": {"momentum": 0.9, "weight_decay": 1e-2},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "fused": {"momentum": 0.9, "fused": True},
}
LAWS = {
    "neurons": homogeneous_laws,
    "layers": lambda f: [law.total for law in homogeneous_laws(f)],
    "both": lambda f: [*homogeneous_laws(f), *(law.total for law in homogeneous_laws(f))],
}


@pytest.fixture(scope="module")
def data():
    return samples()


@pytest.fixture
def counted(monkeypatch):
    """How many steps were usual ones."""
    count, book = [0], UsualStep.book

    def counting(*args):
        count[0] += 1
        return book(*args)

    monkeypatch.setattr(UsualStep, "book", counting)
    return count


def run(data, options, laws=homogeneous_laws, every=1, dtype=torch.float64, steps=20):
    model = network(dtype=dtype)
    optimizer = SGD(model.parameters(), **{"lr": 0.1, **options})
    ledger = Ledger(laws_of(model, data, laws), model, optimizer, every=every)
    train(model, optimizer, data, steps=steps)
    return model, optimizer, ledger


@pytest.mark.parametrize("laws", LAWS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_it_books_what_the_full_step_books(data, counted, monkeypatch, setting, laws):
    *_, usual = run(data, SETTINGS[setting], LAWS[laws])
    assert counted[0] >= 18
    monkeypatch.setattr(OptimizerSteps, "_is_usual", lambda self, ahead: False)
    *_, full = run(data, SETTINGS[setting], LAWS[laws])
    assert usual.check() < 1e-12
    assert usual.steps == full.steps == 20
    for one, other in zip(usual, full, strict=True):
        scale = float(other.law.charge(network().requires_grad_(False)).abs().max()) + 1.0
        for name in CAUSES:
            a, b = getattr(one, name), getattr(other, name)
            assert (a - b).abs().max() < 1e-13 * scale
            assert bool(a.any()) == bool(b.any())
        assert torch.equal(one.steps, other.steps)


def test_the_way_in_and_out_of_it(data, counted):
    """Weights written to, a rate of its own, a frozen layer: the full step, and then the usual one again."""
    model, optimizer, ledger = run(data, {"momentum": 0.9, "weight_decay": 1e-3})
    with torch.no_grad():
        model[1].weight.mul_(0.9)
    before = counted[0]
    train(model, optimizer, data, steps=1)
    assert counted[0] == before
    train(model, optimizer, data, steps=3)
    assert counted[0] == before + 3
    for p in model.parameters():
        p.data = p.data.clone()  # as moving a model does
    train(model, optimizer, data, steps=3)
    optimizer.param_groups[0]["lr"] = 0.02
    train(model, optimizer, data, steps=3)
    optimizer.param_groups[0]["lr"] = 0.1  # much more than before: the buffer is read again
    train(model, optimizer, data, steps=3)
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    assert ledger.steps == 36
    assert ledger[0].outside[20].any()


@pytest.mark.parametrize("every", [None, 1, 7])
def test_entries_end_where_they_should_and_may_be_read_at_any_time(data, every):
    *_, each = run(data, {"momentum": 0.9})
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=every)
    train(model, optimizer, data, steps=20)
    steps = {None: [20], 1: list(range(1, 21)), 7: [7, 14, 20]}[every]
    assert ledger[0].steps.tolist() == steps
    sums = each[0].cumulative["momentum"][[n - 1 for n in steps]]
    torch.testing.assert_close(ledger[0].cumulative["momentum"], sums, rtol=1e-12, atol=1e-15)
    assert str(ledger).startswith("20 steps of SGD")
    train(model, optimizer, data, steps=1)  # read in the middle of an entry, and on
    assert ledger[0].steps.tolist()[-1] == 21
    assert ledger.check() < 1e-12


def test_a_breach_is_found_at_its_step_and_named(data, counted):
    model, optimizer, ledger = run(data, {"momentum": 0.9}, every=None)
    before = counted[0]
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.01))
    train(model, optimizer, data, steps=5)
    assert counted[0] == before + 6
    with pytest.raises(LedgerError, match=r"at step 21 of 26.*gradient of 3\.weight is 1\.01 times"):
        ledger.check()


def test_what_it_does_not_take(data, counted):
    model = network("linear", widths=(64, 7, 6, 10))
    optimizer = SGD(model.parameters(), lr=0.05)
    ledger = Ledger(laws_of(model, data, lambda f: linear_law(f, 1)), model, optimizer)  # matrices
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    model = network()
    optimizer = SGD([{"params": [p], "lr": 0.01 * (k + 1)} for k, p in enumerate(model.parameters())])
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    assert counted[0] == 0
