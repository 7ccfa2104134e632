"""The small trainings, their histories, and the studies of forecasts, transfers and gradient norms, in short."""

import math

import pytest
import torch

import nlcompanion as nl
from nlcompanion.book.results import read
from studies import forecasts, gradient_norms, transfers
from studies.norm_histories import follow
from studies.small_trainings import Lion, characters, convnet, digit_batches, text_batches, writer


@pytest.fixture(scope="module")
def adam_history():
    model = writer(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    return follow(model, optimizer, text_batches(4, 0), ("blocks.0.query.weight", "blocks.0.up.weight"), 120)


@pytest.fixture(scope="module")
def sgd_history():
    model = convnet(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    return follow(model, optimizer, digit_batches(32, 0, noise=0.3), ("conv1.weight", "conv2.weight"), 220)


def test_batches_are_the_seeds_own_and_the_text_is_its_own_target():
    inputs, targets = next(text_batches(4, 1))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs, next(text_batches(4, 1))[0])
    assert not torch.equal(inputs, next(text_batches(4, 2))[0])
    assert len(characters()) > 10_000
    images, labels = next(digit_batches(8, 1, subset=100))
    assert images.shape == (8, 1, 8, 8)
    assert labels.shape == (8,)


def test_what_is_recorded_obeys_the_bookkeeping_of_squares(adam_history):
    """r'^2 = (1 - eta lambda)^2 r^2 - 2 eta (1 - eta lambda) <W, u> + eta^2 |u|^2, with what was recorded."""
    h, kept = adam_history, 1 - 3e-3 * 0.1
    along = h.norms * h.update_norms * h.alignments
    said = kept**2 * h.norms.square() - 2 * 3e-3 * kept * along + (3e-3 * h.update_norms).square()
    assert torch.allclose(said[:-1].sqrt(), h.norms[1:], rtol=1e-6)
    without = kept**2 * h.norms.square() + (3e-3 * h.update_norms).square()
    assert not torch.allclose(without[:-1].sqrt(), h.norms[1:], rtol=1e-5)


def test_memory_is_the_autocorrelation_of_the_updates():
    """The recorded S, weighted with the squares of the updates, is the one of update_memory."""
    model = convnet(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    batches, weight, updates = digit_batches(32, 0, noise=0.3), model.get_parameter("conv2.weight"), []
    optimizer.register_step_post_hook(lambda *_: updates.append(weight.detach().double().flatten().clone()))
    start = weight.detach().double().flatten().clone()
    history = follow(model, optimizer, batches, ("conv2.weight",), 400)
    path = torch.stack([start, *updates])
    said = nl.update_memory((path[:-1] - path[1:]) / 0.01, lags=60).memory()
    squares = history.update_norms.square()
    assert ((history.memory * squares).sum() / squares.sum()).item() == pytest.approx(said, rel=0.15)


def test_a_forecast_sees_nothing_of_what_follows(sgd_history):
    """Made from what was recorded until then: another future changes nothing."""
    ahead = forecasts.made_at(sgd_history, 100, (50, 100))
    for measured in (sgd_history.norms, sgd_history.grad_norms, sgd_history.averages):
        measured[101:] = 7.0
    again = forecasts.made_at(sgd_history, 100, (50, 100))
    assert torch.equal(ahead.norm, again.norm)
    assert torch.equal(ahead.norm_low, again.norm_low)


def test_lions_steps_are_signs_and_decay():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step()
    assert torch.allclose(weight.detach(), 0.95 - 0.1 * torch.tensor([1.0, -1.0, 1.0]))


# --- stored results -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return read("forecasts_on_small_trainings")


def test_forecasts_are_inside_their_intervals_as_often_as_stated(table):
    whole = forecasts.score(table["curves"]["forecasts"], forecasts.rows_of(table))
    assert whole.count >= 100
    assert whole.inside >= table["settings"]["coverage"]
    for regime in ("growth", "decay", "equilibrium", "schedule"):
        part = forecasts.score(table["curves"]["forecasts"], forecasts.rows_of(table, regime=regime))
        assert part.count >= 20
        assert part.inside > 0.75


def test_forecasts_beat_no_change_the_equilibrium_and_eq_17_alone(table):
    for horizon in forecasts.HORIZONS:
        errors = forecasts.score(table["curves"]["forecasts"], forecasts.rows_of(table, horizon=horizon)).errors
        assert all(errors["forecast"] < errors[name] for name in ("no change", "equilibrium", "TK Eq. 17"))


def test_a_mask_that_chooses_nothing_has_no_score(table):
    nothing = forecasts.score(table["curves"]["forecasts"], forecasts.rows_of(table, regime="growth", horizon=7))
    assert nothing.count == 0
    assert math.isnan(nothing.inside)


def test_matched_settings_bring_norms_and_angles_nearer_than_naive_ones():
    numbers = read("transfers_on_small_trainings")["numbers"]
    for name, found in numbers.items():
        assert found["matched"]["norm"] < found["naive"]["norm"], name
        assert found["matched"]["angle"] < found["naive"]["angle"], name


def test_the_gradient_rises_to_its_share_of_the_weight():
    """Control: it does not begin there, and the gradient grows while the loss falls."""
    found = gradient_norms.rise(700, window=100)
    last = found.ratio[-1] / found.settled[-1]
    first = found.ratio[0] / found.settled[0]
    assert ((last - 1).abs() < 0.25).all()
    assert (first < 0.75).all()
    assert found.loss[-1] < 0.7 * found.loss[0]
    assert found.gradient[-1, 0] > 1.3 * found.gradient[0, 0]


@pytest.mark.slow
def test_a_transfer_runs_from_end_to_end():
    transfer = transfers.TRANSFERS[1]
    runs = {kind: transfers.followed(transfer, kind, 200) for kind in ("source", "matched", "naive")}
    near, far = (transfers.distance(runs[kind], runs["source"]) for kind in ("matched", "naive"))
    assert near["norm"] < far["norm"]
