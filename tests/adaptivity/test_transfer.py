"""Settings carried to another optimiser: three targets, two knobs, and what is missed."""

import math

import pytest
import torch
from torch import nn

import nlcompanion as nl
from studies.small_trainings import Lion
from studies.white_gradients import settled_run

RATE, DECAY = 2e-2, 0.15


def adam(shape=(32, 32), **settings):
    return torch.optim.AdamW([nn.Parameter(torch.randn(shape))], **({"lr": RATE, "weight_decay": DECAY} | settings))


def muon(p, **settings):
    return torch.optim.Muon(p, **settings)


TARGETS = {
    "Muon": muon,
    "Lion": Lion,
    "SGD": lambda p, **settings: torch.optim.SGD(p, momentum=0.95, **settings),
    "AdamW with a longer memory": lambda p, **settings: torch.optim.AdamW(p, betas=(0.95, 0.999), **settings),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "Muon")) for name in TARGETS])
def test_runs_under_white_gradients_settle_alike(name):
    """The matched optimiser reaches the source's norm and turn; at the source's own rate and decay it does not."""
    source, target = adam(), TARGETS[name]
    found = nl.match(source, target, grad_rms=1.0).rows[0]
    rms, turn = settled_run(lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=DECAY))
    matched = settled_run(lambda p: target(p, lr=found.lr, weight_decay=found.weight_decay))
    naive = settled_run(lambda p: target(p, lr=RATE, weight_decay=DECAY))
    assert matched[0] == pytest.approx(rms, rel=0.05)
    assert matched[1] == pytest.approx(turn, rel=0.05)
    assert max(abs(naive[1] / turn - 1), abs(naive[0] / rms - 1)) > 0.15


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("keep", ["angle", "time_constant"])
def test_two_knobs_meet_two_targets_and_the_third_is_missed_by_the_memories(name, keep):
    found = nl.match(adam(), TARGETS[name], grad_rms=1.0, keep=keep).rows[0]
    missed = found.missed
    assert missed["early_step"] == 0
    assert missed[keep] == 0
    third = {"angle": "time_constant", "time_constant": "angle"}[keep]
    assert abs(missed[third]) > 0.05


def test_the_same_memory_misses_nothing_and_the_same_optimiser_keeps_its_settings():
    row = nl.match(adam(), lambda p: torch.optim.SGD(p, momentum=0.9), grad_rms=1e-3).rows[0]
    assert all(abs(off) < 1e-6 for off in row.missed.values())
    assert row.lr == pytest.approx(RATE * 0.1 * 1e3, rel=1e-6)  # Adam averages, SGD sums
    assert row.weight_decay == pytest.approx(RATE * DECAY * 0.1 / row.lr, rel=1e-6)  # coupled: through the momentum
    same = nl.match(adam(), torch.optim.AdamW).rows[0]
    assert (same.lr, same.weight_decay) == pytest.approx((RATE, DECAY))


def test_coupled_decay_of_the_source_is_understood():
    sgd = torch.optim.SGD([nn.Parameter(torch.randn(8, 8))], lr=0.1, momentum=0.9, weight_decay=0.01)
    row = nl.match(sgd, torch.optim.AdamW, grad_rms=0.01).rows[0]
    assert row.wanted.time_constant == pytest.approx(-1 / (2 * math.log(1 - 0.01)), rel=1e-6)
    assert row.lr * row.weight_decay == pytest.approx(0.01, rel=1e-6)


def test_another_batch_size_keeps_the_motion_in_samples():
    """Adam: the root rule for the rate; SGD: the linear one, since its gradients shrink by the root themselves."""
    row = nl.match(adam(), torch.optim.AdamW, batch_sizes=(64, 256)).rows[0]
    assert row.lr == pytest.approx(2 * RATE)
    assert row.wanted.time_constant == pytest.approx(adam_constant() / 4)
    sgd = torch.optim.SGD([nn.Parameter(torch.randn(8, 8))], lr=0.1, momentum=0.9)
    row = nl.match(sgd, lambda p: torch.optim.SGD(p, momentum=0.9), batch_sizes=(64, 256)).rows[0]
    assert row.lr == pytest.approx(0.4)


def adam_constant():
    return nl.equilibrium_of(adam()).time_constant_steps


def test_without_decay_there_is_one_target():
    row = nl.match(adam(weight_decay=0.0), muon).rows[0]
    assert row.weight_decay == 0
    assert row.missed == {"early_step": 0, "time_constant": 0, "angle": 0, "rms": 0}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x))))


def test_groups_shapes_what_is_not_taken_and_what_means_nothing():
    torch.manual_seed(0)
    model = Small()
    vectors = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    source = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3)
    audit = nl.audit(model, torch.randn(16, 6), torch.arange(16) % 3, nn.functional.cross_entropy)
    found = nl.match(source, muon, model, audit=audit)
    assert [row.names for row in found.rows] == [("first.weight",), ("head.weight",)]
    assert {name for names, _ in found.left for name in names} == {
        "first.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    }
    meaningless = dict(found.meaningless)
    assert "first.weight" not in meaningless
    assert {"head.weight", "head.bias", "norm.weight"} <= set(meaningless)
    groups = torch.optim.Muon(found.groups).param_groups
    assert [group["lr"] for group in groups] == [row.lr for row in found.rows]
    text = str(found)
    assert "not taken: first.bias" in text
    assert "nothing is said of losses" in text
    assert "no effective rate: head.weight" in text


def test_gradients_are_read_from_the_parameters():
    source = adam()
    source.param_groups[0]["params"][0].grad = torch.full((32, 32), 0.01)
    row = nl.match(source, torch.optim.SGD).rows[0]
    assert row.lr == pytest.approx(RATE * (0.1 / 1.9) ** 0.5 / 0.01, rel=1e-6)


def test_what_cannot_be_matched_says_why():
    with pytest.raises(ValueError, match="give grad_rms="):
        nl.match(adam(), torch.optim.SGD)
    with pytest.raises(ValueError, match="joins the gradient"):
        nl.match(torch.optim.Adam([nn.Parameter(torch.randn(4, 4))], weight_decay=0.1), muon)
    with pytest.raises(ValueError, match="joins the gradient"):
        nl.match(adam(), torch.optim.Adam)
    with pytest.raises(ValueError, match="no decay makes this optimiser turn"):
        nl.match(adam(betas=(0.0, 0.9), lr=0.5), lambda p: torch.optim.SGD(p, momentum=0.99), grad_rms=1.0)
    with pytest.raises(TypeError, match="returned"):
        nl.match(adam(), lambda p: 3)
