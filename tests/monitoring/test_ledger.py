"""Ledger: every step of real training booked exactly, and what it must not let pass."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import flat, laws_of, network, samples, train
from torch import nn

from nlcompanion.dynamics import damped, descend, nesterov, newtonian, sgd
from nlcompanion.laws import data_rotation_law, homogeneous_law, homogeneous_laws, linear_law
from nlcompanion.laws.under_optimizers import CAUSES
from nlcompanion.monitoring import Ledger, LedgerError
from nlcompanion.monitoring.ledger import Account
from nlcompanion.networks import RePU, flat_loss, mlp

SGD = torch.optim.SGD


@pytest.fixture(scope="module")
def data():
    return samples()


def symmetric(x):
    return (x + x.T) / 2 if x.ndim == 2 else x


# --- every cause, on real mini-batches ------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 1e-2},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 1e-3},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "foreach": {"momentum": 0.9, "weight_decay": 1e-3, "foreach": True},
    "foreach nesterov": {"momentum": 0.9, "nesterov": True, "foreach": True},
    "strong decay": {"momentum": 0.5, "weight_decay": 0.5},
    "maximize": {"lr": 1e-3, "momentum": 0.5, "weight_decay": 1e-2, "maximize": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_is_booked_to_rounding_and_a_fault_is_flagged(data, setting):
    options = {"lr": 0.1, **SETTINGS[setting]}

    def run(fault=None):
        model = network()
        optimizer = SGD(model.parameters(), **options)
        ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
        start = flat(model)

        def plant(n):
            if fault and n == 12:
                dict(model.named_parameters())[fault].grad.mul_(1.001)

        train(model, optimizer, data, before=plant)
        return ledger, start, flat(model)

    ledger, start, end = run()
    assert ledger.check() < 1e-12
    for law, account in zip(ledger.laws, ledger, strict=True):
        parts = sum(getattr(account, cause) for cause in CAUSES)
        scale = sum(law.sides(start))
        assert ((account.change - parts).abs() / scale).max() < 1e-12
        torch.testing.assert_close(account.change.sum(0), law.charge(end) - law.charge(start), rtol=1e-9, atol=1e-12)
        assert account.finite_step.abs().sum() > 1e-7
        assert bool(account.momentum.any()) == ("momentum" in options)
        assert bool(account.decay.any()) == ("weight_decay" in options)
        assert not account.rates.any()
        assert not account.outside.any()
        # controls: without any one cause that is there, nothing adds up
        for cause in CAUSES:
            part = getattr(account, cause)
            assert not part.any() or ((account.residual + part).abs() / scale).max() > 1e-8
    for fault in ("1.weight", "3.weight", "3.bias"):
        with pytest.raises(LedgerError, match="at step 13 of 20") as caught:
            run(fault)[0].check()
        assert f"the gradient of {fault} is 1.001 times what belongs" in str(caught.value)


def test_the_account_agrees_with_the_laws_of_gradient_descent_and_heavy_ball(data):
    for beta in (0.0, 0.9):
        model = network()
        (law, _) = laws_of(model, data)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=beta)
        ledger = Ledger(law, model, optimizer, every=1)
        points, gradients = [flat(model)], []
        train(
            model,
            optimizer,
            data,
            steps=6,
            before=lambda n, m=model, g=gradients: g.append(torch.cat([p.grad.reshape(-1) for p in m.parameters()])),
        )
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=beta)
        for n in range(1, 7):  # the same run again, one step longer each time, for its points
            again = network()
            train(again, SGD(again.parameters(), lr=0.1, momentum=beta), data, steps=n)
            points.append(flat(again))
        previous, account = None, ledger[0]
        for n in range(6):
            step, change = points[n + 1] - points[n], law.change(points[n], points[n + 1])
            torch.testing.assert_close(account.change[n], change, rtol=1e-9, atol=1e-14)
            predicted = law.heavy_ball_change(step, previous, momentum=beta)
            by_ledger = account.finite_step[n] + account.momentum[n]
            torch.testing.assert_close(by_ledger, predicted, rtol=1e-9, atol=1e-14)
            if not beta:
                torch.testing.assert_close(
                    account.finite_step[n], law.gd_change(gradients[n], lr=0.1), rtol=1e-9, atol=1e-14
                )
            previous = step, change


def test_float32(data):
    model = network(dtype=torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=40)
    assert 1e-12 < ledger.check() < 1e-6
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError):
        ledger.check()


MATRICES = {
    "linear": lambda f: [linear_law(f, 1), linear_law(f, 2)],
    "linear traces": lambda f: [linear_law(f, 1).total, homogeneous_law(f, 2)[3]],
    "across": lambda f: [homogeneous_law(f, 1, across=2), homogeneous_law(f, 1)],
}


@pytest.mark.parametrize("kind", MATRICES)
def test_matrix_and_layer_laws(data, kind):
    model = network("linear", widths=(64, 7, 6, 10))
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    ledger = Ledger(laws_of(model, data, MATRICES[kind]), model, optimizer, every=1)
    start = flat(model)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12
    for law, account in zip(ledger.laws, ledger, strict=True):
        assert account.change.shape == (20, *law.shape)
        change, exact = account.change.sum(0), law.charge(flat(model)) - law.charge(start)
        torch.testing.assert_close(symmetric(change), exact, rtol=1e-9, atol=1e-12)
        if kind == "linear":
            # the antisymmetric part is booked, too; from an empty buffer it stays at rest
            assert (account.change - account.change.mT).abs().max() < 1e-13 < account.change.abs().max()
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError, match="was broken at step 21 of 21, by"):
        ledger.check()


def test_a_finite_data_set_is_not_rotation_invariant(data):
    model = network(widths=(64, 5, 10))
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data, data_rotation_law), model, optimizer)
    train(model, optimizer, data, steps=3)
    with pytest.raises(LedgerError, match="not the same after a rotation"):
        ledger.check()


def test_dropout_keeps_the_balance_of_every_mask(data):
    model = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10)).double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model.eval(), data), model.train(), optimizer)  # a loss with dropout is no function of q
    torch.manual_seed(0)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12


# --- loops as people write them -------------------------------------------------------------------------------------


def test_parameter_groups_and_schedules(data):
    model = network()
    biases = [p for name, p in model.named_parameters() if "bias" in name]
    weights = [p for name, p in model.named_parameters() if "weight" in name]
    optimizer = SGD(
        [{"params": biases, "momentum": 0.5}, {"params": weights, "weight_decay": 1e-2}], lr=0.1, momentum=0.9
    )
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-6, total_iters=5)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    for n in range(15):
        train(model, optimizer, data, steps=1, seed=n)
        warm_up.step()
    assert ledger.check() < 1e-12
    assert ledger[0].decay.any()


def test_different_rates_are_a_cause_of_their_own(data):
    model = network()
    groups = [{"params": [p], "lr": 0.1 / (1 + k)} for k, p in enumerate(model.parameters())]
    optimizer = SGD(groups, momentum=0.9, weight_decay=1e-2, dampening=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12
    assert ledger[0].rates.abs().max() > 1e-4
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError):
        ledger.check()


def test_different_rates_while_maximising(data):
    model = network()
    groups = [{"params": [p], "lr": 1e-3 * (1 + k)} for k, p in enumerate(model.parameters())]
    optimizer = SGD(groups, momentum=0.5, weight_decay=1e-2, maximize=True)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12
    assert ledger[0].rates.abs().max() > 1e-6


def test_momentum_that_pauses_and_returns_to_its_old_buffer(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    for momentum in (0.9, 0.0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        train(model, optimizer, data, steps=4)
    assert ledger.check() < 1e-12
    assert not ledger[0].momentum[4:8].any()
    assert ledger[0].momentum[8].any()


@pytest.mark.parametrize(("lr", "decay", "momentum"), [(0.1, 1.0, 0.0), (0.1, 0.3, 0.9), (0.5, 1.0, 0.0)])
def test_weights_that_decay_to_nothing_keep_their_books(data, lr, decay, momentum):
    """Squares that shrink by many orders between two summations must not keep the rounding of the large ones."""
    model = network(widths=(64, 4, 10))
    optimizer = SGD(model.parameters(), lr=lr, weight_decay=decay, momentum=momentum)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    start = flat(model).norm()
    train(model, optimizer, data, steps=240, size=8)
    assert flat(model).norm() < 0.7 * start
    assert ledger.check() < 1e-12


def test_weights_made_very_small_between_steps(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    train(model, optimizer, data, steps=3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-3)
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    assert ledger[0].outside[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_converted_under_a_ledger_is_refused(data, dtype):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=2)
    model.to(dtype)
    with pytest.raises(ValueError, match=f"1.weight was torch.float64 on cpu .* is {dtype} on cpu now.*make a new one"):
        train(model, optimizer, data, steps=1)
    assert ledger.steps == 2


def test_listening_leaves_the_optimizer_as_it_is(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=2)
    assert optimizer.state_dict()["state"] == {}


def test_weights_moved_between_steps_are_booked_as_outside(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    start = flat(model)
    for n in range(5):
        train(model, optimizer, data, steps=2, seed=n)
        with torch.no_grad():
            model[1].weight.mul_(0.9)
    train(model, optimizer, data, steps=1)
    assert ledger.check() < 1e-12
    account = ledger[0]
    assert account.outside[2::2].abs().min() > 0
    assert not account.outside[1::2].any()
    change = ledger.laws[0].charge(flat(model)) - ledger.laws[0].charge(start)
    torch.testing.assert_close(account.change.sum(0), change, rtol=1e-9, atol=1e-12)
    model[1].weight.data.mul_(0.9)  # behind autograd's back
    train(model, optimizer, data, steps=1)
    with pytest.raises(
        LedgerError, match=r"at step 12 .*1\.weight moved by more than the step of SGD: written to through \.data"
    ):
        ledger.check()


def test_a_buffer_emptied_or_restored_between_steps(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=4)
    saved = optimizer.state_dict()
    saved["state"] = {k: {"momentum_buffer": 2 * s["momentum_buffer"]} for k, s in saved["state"].items()}
    optimizer.load_state_dict(saved)
    train(model, optimizer, data, steps=4)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    train(model, optimizer, data, steps=4)
    assert ledger.check() < 1e-12
    assert not ledger[0].outside.any()


def test_a_parameter_without_gradient_is_passed_over(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    train(model, optimizer, data, steps=3)

    def drop(n):  # as if the whole first pair had no part in this loss
        for p in model.parameters():
            p.grad = None

    train(model, optimizer, data, steps=2, before=drop)
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    assert not ledger[0].change[3:5].any()
    train(model, optimizer, data, steps=1, before=lambda n: setattr(model[3].weight, "grad", None))
    with pytest.raises(
        LedgerError, match=r"at step 9 .*3\.weight was without a gradient from step 9 on"
    ):  # one side only: the other loses its counterweight
        ledger.check()


def test_a_loaded_optimizer_goes_on_with_its_buffer(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, data, steps=3)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    train(model, optimizer, data, steps=3)
    assert ledger.check() < 1e-12
    assert ledger[0].momentum[0].any()


def test_a_closure_is_fine_for_sgd(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    x, y = data

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:32]), y[:32])
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert ledger.check() < 1e-12


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_other_optimizers_are_booked_and_their_gradients_judged(data, kind):
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    start = flat(model)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12
    for law, account in zip(ledger.laws, ledger, strict=True):
        change = law.charge(flat(model)) - law.charge(start)
        torch.testing.assert_close(account.change.sum(0), change, rtol=1e-9, atol=1e-12)
        assert account.optimizer.abs().max() > 1e-3  # Adam does not conserve
        assert account.cosine.shape == account.change.shape
        assert account.cosine.abs().max() < 1e-13
        assert not account.momentum.any()
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    assert ledger[0].cosine[-1].abs().max() > 1e-6
    with pytest.raises(LedgerError, match=r"gradient of 3\.weight is 1\.001 times what belongs"):
        ledger.check()


# --- entries --------------------------------------------------------------------------------------------------------


@given(every=st.integers(1, 12), steps=st.integers(1, 15))
@settings(deadline=None, max_examples=6)
def test_entries_always_add_up_to_the_whole(every, steps):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(40) % 3
    ledgers = []
    for keep in (1, every, None):
        model = mlp((6, 5, 3), "relu", seed=2)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-2)
        ledgers.append(Ledger(laws_of(model, (x, y)), model, optimizer, every=keep))
        train(model, optimizer, (x, y), steps=steps, size=8)
    each, blocks, whole = (ledger[0] for ledger in ledgers)
    assert each.steps.tolist() == list(range(1, steps + 1))
    assert len(blocks.steps) == math.ceil(steps / every)
    assert blocks.steps[-1] == whole.steps[-1] == steps
    assert len(whole.steps) == 1
    for name in ("change", *CAUSES):
        for account in (blocks, whole):
            total = getattr(each, name).sum(0)
            torch.testing.assert_close(getattr(account, name).sum(0), total, rtol=1e-10, atol=1e-14)
            torch.testing.assert_close(account.cumulative[name][-1], total, rtol=1e-10, atol=1e-14)
    assert ledgers[0].residual == ledgers[1].residual == ledgers[2].residual


def test_a_long_run_of_float32_squares_does_not_drift(data):
    """Squares follow from the steps and are summed anew only every so often; decay is booked from them."""
    model = network(dtype=torch.float32, widths=(64, 4, 10))
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=1e-2)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=None)
    train(model, optimizer, data, steps=300, size=8)
    assert ledger.check() < 1e-6


def test_the_docstrings_say_what_is_booked():
    assert Ledger.__doc__.startswith("Books a training run:")
    named = re.search(r"``change == ([a-z_ +]+)``", re.sub(r"\s+", " ", Account.__doc__))
    assert named[1].split(" + ") == [*CAUSES, "residual"]


def test_a_write_without_a_trace_is_booked_as_adams(data):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ledger, start = Ledger(laws_of(model, data), model, optimizer), flat(model)
    for n in range(3):
        train(model, optimizer, data, steps=1, seed=n)
        if n < 2:
            model[1].weight.data.mul_(0.9)
    assert ledger.check() < 1e-12
    assert not ledger[0].outside.any()
    law = ledger.laws[0]
    change = law.charge(flat(model)) - law.charge(start)
    torch.testing.assert_close((ledger[0].optimizer + ledger[0].finite_step).sum(0), change, rtol=1e-9, atol=1e-12)


def test_table_and_context(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    with Ledger(laws_of(model, data), model, optimizer, every=1) as ledger:
        assert str(ledger) == repr(ledger) == "Ledger(2 laws, 0 steps of SGD)"
        for ask in (lambda: ledger[0], ledger.check, lambda: ledger.residual):
            with pytest.raises(ValueError, match="nothing is booked"):
                ask()
        train(model, optimizer, data, steps=3)
    train(model, optimizer, data, steps=3)
    assert ledger.steps == 3
    head, names, *rows = str(ledger).splitlines()
    assert head == "3 steps of SGD"
    assert names.split() == ["start", "change", "finite", "step", "momentum", "decay", "residual", "relative"]
    assert rows[0].startswith("|1.weight|² + |1.bias|² - |3.weight|² (sum of 12)")
    start, change = rows[0].split(")")[1].split()[:2]
    fresh = homogeneous_law(flat_loss(network(), data[0][:4], data[1][:4], F.cross_entropy), 1).total
    assert float(start) == pytest.approx(fresh.charge(network()).item(), rel=1e-5)
    assert float(change) == pytest.approx(ledger[0].change.sum().item(), rel=1e-5)
    assert re.fullmatch(r"Account\(\|1.weight\|² .* \(sum of 12\): 3 entries, worst \S+e-1\d\)", repr(ledger[0]))


def test_the_last_column_says_what_is_judged(data):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=2)
    assert str(ledger).splitlines()[1].split()[-1] == "gradients"


def test_each_law_of_mixed_optimizers_names_its_own_scale(data):
    model = network()
    first = {"1.weight", "1.bias", "3.weight"}  # the first law's
    of_sgd = [p for name, p in model.named_parameters() if name in first]
    others = [p for name, p in model.named_parameters() if name not in first]
    optimizers = [torch.optim.SGD(of_sgd, lr=0.1), torch.optim.Adam(others, lr=0.01)]

    def fault(layer):
        ledger = Ledger(laws_of(model, data), model, optimizers)
        F.cross_entropy(model(data[0][:32]), data[1][:32]).backward()
        model[layer].weight.grad.mul_(1.1)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return ledger

    assert str(fault(1)).splitlines()[1].split()[-1] == "judged"
    with pytest.raises(LedgerError, match="of its parameters' squares"):
        fault(1).check()
    with pytest.raises(LedgerError, match="of the gradient's length"):
        fault(5).check()


def test_steps_much_longer_than_the_weights(data):
    """A run that blows up, by its own fault and not by the gradients': rounding is that of the step."""
    model = network()
    optimizer = SGD(model.parameters(), lr=1e5, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    start = flat(model).norm()
    train(model, optimizer, data, steps=3)
    assert flat(model).norm() > 1e3 * start
    assert ledger.check() < 1e-12
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.fill_(flat(model).norm()))
    with pytest.raises(LedgerError, match="at step 4"):
        ledger.check()


def test_diverged_runs_do_not_pass(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=3, before=lambda n: model[1].weight.grad.mul_(math.nan) if n == 1 else None)
    with pytest.raises(LedgerError, match=r"broken at step 2 of 3, by nan .*gradient of 1.weight is not finite"):
        ledger.check()


def test_a_wrong_law_does_not_pass(data):
    model = network("tanh")
    optimizer = SGD(model.parameters(), lr=0.1)
    law = laws_of(model, data, lambda f: homogeneous_law(f, 1, p=1.0, verify=False))
    ledger = Ledger(law, model, optimizer)
    train(model, optimizer, data, steps=1)
    with pytest.raises(LedgerError):
        ledger.check()


# --- along descend --------------------------------------------------------------------------------------------------

STEPS = (
    sgd(0.1),
    sgd(0.05, 0.9),
    sgd(0.05, 0.5, 0.1),
    nesterov(0.01),
    newtonian(0.01),
    newtonian(0.01, half_first_step=False),
    replace(nesterov(0.01), weight_decay=0.1),  # which pulls ahead of the weights
    replace(newtonian(0.01), weight_decay=0.1),  # and half as much in the first step
)


@pytest.mark.parametrize("rule", STEPS, ids=lambda rule: f"{rule.name}, decay {rule.weight_decay:g}")
@pytest.mark.parametrize("kind", [RePU(2), "swish", "linear"], ids=str)
def test_along_descend_on_mini_batches(data, rule, kind):
    x, y = data
    f = flat_loss(mlp((64, 6, 6, 10), kind, bias=True, init="kaiming", seed=3), x, y, F.cross_entropy)
    laws = [homogeneous_law(f, 1), homogeneous_law(f, 1, across=2)] + ([linear_law(f, 1)] if kind == "linear" else [])

    def batches(n):
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(n))[:40]
        return f.on(x[chosen], y[chosen])

    ledger = Ledger(laws, rule=rule)
    run = descend(rule, None, f.q0, steps=15, batches=batches, record=ledger.record)
    assert ledger.check() < 1e-12
    assert ledger.steps == 15
    assert run.record["residual"].max() == ledger.residual
    for law, account in zip(laws, ledger, strict=True):
        change, exact = account.change.sum(0), law.charge(run.q[-1]) - law.charge(f.q0)
        torch.testing.assert_close(symmetric(change), exact, rtol=1e-8, atol=1e-12)
        assert account.finite_step.abs().max() > 1e-8
    wrong = homogeneous_law(f, 1, p=1.5, verify=False)
    assert worst_of_descent(laws[0], rule, f.q0, steps=15, batches=batches) < 1e-12
    assert worst_of_descent(wrong, rule, f.q0, steps=15, batches=batches) > 1e-6


def worst_of_descent(law, rule, q0, *, steps, batches):
    ledger = Ledger(law, rule=rule)
    descend(rule, None, q0, steps=steps, batches=batches, record=ledger.record)
    return ledger.residual


def test_the_angular_momentum_of_steps():
    """On a rotation-invariant loss GD has none, heavy ball loses it by beta a step, Newtonian steps keep it."""

    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[0.5, 0.2, 0.1], [0.1, -0.4, 0.3]]).double())

        def forward(self, x):
            return ((self.w @ self.w.T).det() - 1) ** 2

    f = flat_loss(Ring(), torch.zeros(1), torch.zeros(1), lambda value, _: value)
    law = data_rotation_law(f, weight="w")
    for rule in (sgd(0.05), sgd(0.05, 0.9), newtonian(0.01), nesterov(0.01)):
        assert worst_of_descent(law, rule, f.q0, steps=20, batches=lambda n: f) < 1e-12
    # a sudden force that breaks the symmetry gives some, which then decays
    push = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).double()
    batches = lambda n: (lambda q: f(q) + push @ q) if n == 3 else f  # noqa: E731
    ledger = Ledger(law, rule=sgd(0.05, 0.9), every=1)
    descend(sgd(0.05, 0.9), None, f.q0, steps=10, batches=batches, record=ledger.record)
    with pytest.raises(LedgerError, match="at step 4 of 10"):
        ledger.check()
    moved = ledger[0].change[:, 0, 1]
    assert moved[:3].abs().max() < 1e-14
    torch.testing.assert_close(moved[4:], 0.9 * moved[3:-1], rtol=1e-9, atol=0)


def test_descend_must_show_every_step(data):
    x, y = data
    f = flat_loss(network(widths=(64, 4, 10)), x, y, F.cross_entropy)
    ledger = Ledger(homogeneous_laws(f), rule=sgd(0.1))
    with pytest.raises(ValueError, match="leave descend's every at 1"):
        descend(sgd(0.1), f, f.q0, steps=4, every=2, record=ledger.record)
    ledger = Ledger(homogeneous_laws(f), rule=sgd(0.1))
    descend(sgd(0.1), f, f.q0, steps=4, record=ledger.record)
    with pytest.raises(ValueError, match="a new Ledger"):
        descend(sgd(0.1), f, f.q0, steps=4, record=ledger.record)
    other = Ledger(homogeneous_laws(f), rule=sgd(0.05))
    with pytest.raises(ValueError, match=r"time step of 0\.05"):
        descend(sgd(0.1), f, f.q0, steps=4, record=other.record)
    momentum = Ledger(homogeneous_laws(f), rule=sgd(0.1))  # the wrong rule's books do not balance
    descend(sgd(0.1, 0.9), f, f.q0, steps=4, record=momentum.record)
    with pytest.raises(LedgerError):
        momentum.check()


# --- errors ---------------------------------------------------------------------------------------------------------


def test_bad_arguments(data):
    model = network()
    laws = laws_of(model, data)
    optimizer = SGD(model.parameters(), lr=0.1)
    for args, kwargs, error, match in (
        ((laws, model, optimizer), {"every": 0}, ValueError, "every must be an integer"),
        (([], model, optimizer), {}, ValueError, "at least one law"),
        ((["a"], model, optimizer), {}, TypeError, "must be Laws"),
        ((laws, None, optimizer), {}, TypeError, "Module that is trained"),
        ((laws, model, None), {}, TypeError, "pass rule="),
        ((laws, model, optimizer), {"rule": sgd(0.1)}, ValueError, "not both"),
        ((laws,), {"rule": "sgd"}, TypeError, "LearningRule"),
        ((laws,), {"rule": damped(1.0, 1.0)}, ValueError, "no discrete steps"),
        ((laws, mlp((64, 3, 10)), optimizer), {}, ValueError, r"need a parameter 1\.weight"),
        ((laws, network(), optimizer), {}, ValueError, "not among the optimizer's parameters"),
        ((laws, model.half(), optimizer), {}, ValueError, "half precision"),
    ):
        with pytest.raises(error, match=match):
            Ledger(*args, **kwargs)
    other = laws_of(network(widths=(64, 4, 10)), data)
    with pytest.raises(ValueError, match="different sizes"):
        Ledger([*laws, *other], network(), optimizer)
    listening = network()
    with pytest.raises(ValueError, match="listens to its optimizer"):
        Ledger(laws, listening, SGD(listening.parameters(), lr=0.1)).record  # noqa: B018


@pytest.mark.parametrize(
    "wrappers", [("module",), ("_orig_mod",), ("module", "_orig_mod"), ("_orig_mod", "module")], ids=" in ".join
)
def test_wrapped_models_are_found(data, wrappers):
    wrapped = model = network()
    laws = laws_of(model, data)
    for name in wrappers:
        wrapped = nn.ModuleDict({name: wrapped})
    optimizer = SGD(wrapped.parameters(), lr=0.1)
    ledger = Ledger(laws, wrapped, optimizer)
    train(model, optimizer, data, steps=2)
    assert ledger.check() < 1e-12


def test_a_layer_may_be_called_module(data):
    model = nn.Sequential()
    for name, layer in (("module", nn.Linear(64, 5)), ("act", nn.ReLU()), ("out", nn.Linear(5, 10))):
        model.add_module(name, layer.double())
    for trained in (model, nn.ModuleDict({"module": model})):
        optimizer = SGD(trained.parameters(), lr=0.1)
        ledger = Ledger(laws_of(model, data), trained, optimizer)
        train(model, optimizer, data, steps=2)
        assert ledger.check() < 1e-12


def test_the_finite_step_is_what_discretisation_does(data):
    """The first cause is the discretisation's: over a fixed time it halves with the step."""
    x, y = data
    f = flat_loss(mlp((64, 4, 10), RePU(2), init="kaiming", seed=1), x[:40], y[:40], F.cross_entropy)
    law, totals = homogeneous_law(f, 1).total, []
    for steps in (20, 40, 80):
        rule = sgd(0.05 / steps)
        ledger = Ledger(law, rule=rule, every=None)
        descend(rule, f, f.q0, steps=steps, record=ledger.record)
        totals.append(ledger[0].finite_step.sum().item())
    assert totals[0] / totals[1] == pytest.approx(2, abs=0.15)
    assert totals[1] / totals[2] == pytest.approx(2, abs=0.08)
