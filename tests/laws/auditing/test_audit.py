"""The audit beside the laws themselves: what it leaves alone, what it prints, what its laws do in a ledger."""

import copy
import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import Audit, Ledger, audit, check_gradients
from nlcompanion.laws.auditing.parameter_rows import ParameterRow
from nlcompanion.laws.auditing.report import Line


def block(activation="gelu", width=8):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        width, 2, 12, batch_first=True, activation=activation, norm_first=True, dropout=0.0
    )
    model = nn.Sequential(layer, nn.LayerNorm(width), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():  # biases start at 0, where a law does not feel them
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, 8, generator=generator), torch.randint(0, 3, (3, 5), generator=generator)


def loss(outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def relu(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2]), F.cross_entropy


# --- the model comes back untouched -----------------------------------------------------------------------------------


def test_the_model_and_the_random_state_are_as_they_were():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    F.cross_entropy(model(x), y).backward()
    model[3].eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    hooks, modes = len(model[0]._forward_hooks), [m.training for m in model.modules()]
    random, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    audit(model, x, y, F.cross_entropy)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert len(model[0]._forward_hooks) == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert (np.random.get_state()[1] == numpy).all()  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32
    assert model[0].weight.dtype == torch.float32


def test_a_seed_makes_it_repeatable():
    assert audit(*relu()) == audit(*relu())
    assert [line.charge for line in audit(*relu(), seed=5).lines] == [line.charge for line in audit(*relu()).lines]


# --- what it says -----------------------------------------------------------------------------------------------------


@functools.cache
def of_block() -> Audit:
    return audit(block(), *batch(), loss)


@pytest.fixture(scope="module")
def found() -> Audit:
    model = block()
    return audit(model, *batch(), loss, optimizer=torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-2))


def test_the_tables_name_every_parameter_and_fit_a_screen(found):
    text = str(found)
    assert all(line.isprintable() and len(line) < 170 for line in text.splitlines() if not line.startswith("- "))
    assert len(text.splitlines()) < 90
    assert {row.name for row in found.parameters} == {name for name, _ in block().named_parameters()}
    html = found._repr_html_()
    assert html.count("<table>") == 2
    assert "attention, query and key" in html


def test_json_holds_it_all(found):
    told = json.loads(found.to_json())
    assert told["count"] == found.count == sum(line["count"] for line in told["laws"])
    assert len(told["parameters"]) == len(found.parameters)
    assert told["optimizer"] == "SGD"
    listed = lambda row: {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}  # noqa: E731
    lines = [listed({**line, "gap": float("inf") if line["gap"] is None else line["gap"]}) for line in told["laws"]]
    assert tuple(Line(**line) for line in lines) == found.lines
    assert tuple(ParameterRow(**listed(row)) for row in told["parameters"]) == found.parameters
    assert tuple(told["limits"]) == found.limits


def test_like_layers_are_told_once():
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 4, bias=False), nn.ReLU())]
    text = str(
        audit(nn.Sequential(nn.Sequential(*layers), nn.Linear(4, 2)), torch.randn(5, 4), torch.randn(5, 2), F.mse_loss)
    )
    assert "(x 2)" in text


@pytest.mark.parametrize(
    ("name", "decay", "group"),
    [
        ("0.weight", "sets the effective step size", "decay"),
        ("0.bias", "shrinks what has no effect", "either"),
        ("1.weight", "moves a charge: one side of a balance", "no decay"),
        ("4.weight", "moves a charge: one side of a balance", "decay"),
        ("4.bias", "regularises, and fades a direction without effect", "no decay"),
    ],
)
def test_what_decay_does_to_a_parameter(name, decay, group):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    found = audit(nn.Sequential(*layers), torch.randn(7, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2, 2]), F.cross_entropy)
    (row,) = [row for row in found.parameters if row.name == name]
    assert (row.decay, row.group) == (decay, group)


OPTIMIZERS = {
    "conserved": lambda p: None,
    "drifting by the finite step alone": lambda p: torch.optim.SGD(p, 0.1),
    "decaying to an equilibrium": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-3),
    "drifting, with momentum": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
    "not conserved by Adam": lambda p: torch.optim.Adam(p),
    "not conserved by AdamW": lambda p: torch.optim.AdamW(p),
    "not conserved by RMSprop": lambda p: torch.optim.RMSprop(p),
}


@pytest.mark.parametrize("verdict", OPTIMIZERS)
def test_what_an_optimizer_makes_of_a_balance(verdict):
    model, *rest = relu()
    found = audit(model, *rest, optimizer=OPTIMIZERS[verdict](list(model.parameters())))
    (line,) = [line for line in found.lines if line.kind == "rescaling"]
    assert line.verdict == verdict


def test_an_unknown_optimizer_gets_the_universal_form():
    class Odd(torch.optim.SGD):
        pass

    model, *rest = relu()
    found = audit(model, *rest, optimizer=Odd(model.parameters(), 0.1))
    (line,) = [line for line in found.lines if line.kind == "rescaling"]
    assert "ΔC = 2 form(d, θ) + Q(d)" in line.statement


def test_a_parameter_that_the_optimizer_lacks_leaves_no_law():
    model, *rest = relu()
    found = audit(model, *rest, optimizer=torch.optim.SGD([model[0].weight], 0.1))
    (line,) = [line for line in found.lines if line.kind == "rescaling"]
    assert "does not have all its parameters" in line.verdict


# --- in the ledger ----------------------------------------------------------------------------------------------------

STEPS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


def trained(optimizer, break_it=lambda model: None):
    """A transformer block, trained with accumulation, loss scaling and clipping, and its ledger."""
    model = block().double()
    optimizer = STEPS[optimizer](model.parameters())
    found = of_block()
    with Ledger(found.laws, model, optimizer) as ledger:
        for seed in range(8):
            optimizer.zero_grad()
            for half in (0, 1):
                x, y = batch(2 * seed + half)
                (512 * loss(model(x.double()), y)).backward()
            for p in model.parameters():
                p.grad /= 512
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            break_it(model)
            optimizer.step()
    return found, ledger


@pytest.mark.parametrize("optimizer", STEPS)
def test_the_ledger_books_every_law_sources_included(optimizer):
    found, ledger = trained(optimizer)
    assert {law.kind for law in found.laws} >= {"rescaling", "query-key", "value-output", "shift", "dead", "source"}
    assert ledger.check() < 1e-12


@pytest.mark.parametrize("optimizer", STEPS)
def test_a_gradient_scaled_by_itself_breaks_the_sources_law_too(optimizer):
    def break_it(model):
        model[4].weight.grad *= 1.01

    found, ledger = trained(optimizer, break_it)
    (law,) = [law for law in found.laws if law.kind == "source" and "4.weight" in law.parameters]
    account = ledger[found.laws.index(law)]
    assert float(account.worst.max()) > 1e-6


def test_the_source_is_what_moves_the_balance_of_a_gelu():
    found, ledger = trained("sgd")
    for law, account in zip(found.laws, ledger, strict=True):
        assert bool(account.source.any()) == (law.kind == "source")
        if law.kind == "source":  # without it the books would not close
            assert float(account.source.abs().max()) > 1e6 * float(account.residual.abs().max())


def test_one_neuron_and_the_sum_of_a_law_with_a_source():
    model = block().double()
    law = next(law for law in of_block().laws if law.kind == "source")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Ledger([law, law[2], law.total], model, optimizer) as ledger:
        x, y = batch(1)
        loss(model(x.double()), y).backward()
        optimizer.step()
    assert ledger.check() < 1e-12
    assert torch.allclose(ledger[0].source[0, 2], ledger[1].source[0])
    assert torch.allclose(ledger[0].source[0].sum(), ledger[2].source[0])


def test_without_a_backward_pass_there_is_no_source():
    model = block().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Ledger(of_block().laws, model, optimizer):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        with pytest.raises(ValueError, match="no backward pass went through gelu"):
            optimizer.step()


# --- a whole model's gradient -----------------------------------------------------------------------------------------


def held(dtype=torch.float64, do=lambda model: None):
    model = block().to(dtype)
    found = of_block()
    x, y = batch(1)
    loss(model(x.to(dtype)), y).backward()
    do(model)
    return found, check_gradients(model, laws=found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_obeys_every_law_of_the_audit(dtype):
    found, report = held(dtype)
    assert report.verdict == "lawful"
    assert len(report.checks) == len(found.laws) + len(found.identities) - 2  # two have a source
    assert len(report.limits) == 2


def accumulate(model):
    x, y = batch(5)
    loss(model(x.double()), y).backward()


def unscale(model):
    for p in model.parameters():
        p.grad.mul_(3.0).div_(7.0)


def all_reduce(model):
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    accumulate(model)
    for p, g in zip(model.parameters(), mine, strict=True):
        p.grad = (p.grad + g) / 2


def clip_total(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def clip_each(model):
    for p in model.parameters():
        torch.nn.utils.clip_grad_norm_([p], 1e-2)


def clip_numbers(model):
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def penalty(model):
    for p in model.parameters():
        p.grad += 1e-2 * p.detach()


DONE = {
    "accumulation": accumulate,
    "loss scaling": unscale,
    "an all-reduce of all tensors": all_reduce,
    "clipping by the total norm": clip_total,
    "clipping tensor by tensor": clip_each,
    "clipping number by number": clip_numbers,
}


def is_dead(check) -> bool:
    return "in_proj_bias" in check.law and "for each of" in check.law


@pytest.mark.parametrize("what", DONE)
def test_a_law_survives_what_it_is_said_to_survive_and_nothing_else(what):
    _, report = held(do=DONE[what])
    for check in report.checks:
        if what == "clipping number by number" and is_dead(check):
            continue  # rounding beside what clipping has made small: it may come out either way
        assert (check.verdict == "lawful") == (what in check.survives), check.law


def test_a_penalty_in_the_gradient_is_survived_by_directions_that_decay_does_not_see():
    """The control of the list: what is not on it breaks balances."""
    _, report = held(do=penalty)
    assert len(report.broken) > 10


def test_a_tensor_left_out_of_the_all_reduce_is_found():
    def forget(model):
        kept = model[0].norm1.weight.grad.clone()
        all_reduce(model)
        model[0].norm1.weight.grad = kept

    _, report = held(do=forget)
    assert {check.law for check in report.broken if "norm1.weight" in check.tensors}
    assert all("norm1.weight" in check.tensors for check in report.broken)
