"""Forecasts of norms: exact laws, synthetic gradients with what is believed as controls, and refusals."""

import math

import pytest
import torch

import nlcompanion as nl

F64 = torch.float64
WEIGHTS, SIZE = 64, 40


def tangential(q, generator):
    """Independent gradients of unit size at unit length, at right angles to their weights, shrinking as they grow."""
    g = torch.randn(q.shape, generator=generator, dtype=F64) / SIZE**0.5
    r = q.norm(dim=1, keepdim=True)
    return (g - (g * q).sum(1, keepdim=True) / r**2 * q) / r


def sgd_norms(steps, *, lr, momentum=0.9, decay=0.0, start=1.0, factor=lambda n: 1.0, size=lambda n: 1.0, seed=0):
    """Norms before each step of heavy ball on independent gradients, and the gradients' own norms."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(WEIGHTS, SIZE, generator=generator, dtype=F64)
    q = start * q / q.norm(dim=1, keepdim=True)
    v, norms, gradients = torch.zeros_like(q), [], []
    for n in range(steps):
        g = size(n) * tangential(q, generator)
        norms.append(q.norm(dim=1))
        gradients.append(g.norm(dim=1))
        v = momentum * v + g + decay * q
        q = q - lr * factor(n) * v
    return torch.stack(norms), torch.stack(gradients)


def adam_like_norms(steps, *, lr, decay, start=1.0, seed=0):
    """Norms under independent updates of unit length and decoupled decay."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(WEIGHTS, SIZE, generator=generator, dtype=F64)
    w, norms = start * w / w.norm(dim=1, keepdim=True), []
    for _ in range(steps):
        norms.append(w.norm(dim=1))
        w = (1 - lr * decay) * w - lr * torch.randn(w.shape, generator=generator, dtype=F64) / SIZE**0.5
    return torch.stack(norms)


def inside(ahead, truth):
    held = (ahead.norm_low <= truth) & (truth <= ahead.norm_high)
    return held[:, ahead.possible].double().mean().item()


def mean_error(found, truth):
    return (found / truth).log().abs().mean().item()


# --- the law itself -----------------------------------------------------------------------------------------------


def test_a_constant_drive_is_carried_ahead_exactly():
    steps = torch.arange(0, 100, 5)
    rate, decay = 0.1, 0.01
    settled, fade = 2.0, 4 * rate * decay
    norms = (settled + (1 - settled) * torch.exp(-fade * steps.double())) ** 0.25
    ahead = nl.forecast(steps, norms, rule="sgd", lr=rate, weight_decay=decay, horizons=[10, 5000])
    then = 95 + ahead.horizons.double()
    assert torch.allclose(ahead.norm, (settled + (1 - settled) * torch.exp(-fade * then)) ** 0.25, rtol=1e-9)
    assert torch.allclose(ahead.effective_rate, rate / ahead.norm**2)
    assert ahead.equilibrium_norm.item() == pytest.approx(settled**0.25, rel=1e-9)
    when = ahead.equilibrium_step.item()
    reached = [(settled + (1 - settled) * math.exp(-fade * n)) for n in (when, when - 1)]
    assert 0 <= reached[0] - settled * (2 - 1.05**4) < reached[0] - reached[1]


def test_the_power_belongs_to_the_rule():
    """Control: the law of a normalised optimiser makes something else of the norms of SGD."""
    steps = torch.arange(0, 500, 5)
    norms = (1 + 0.05 * steps.double()) ** 0.25
    right = nl.forecast(steps, norms, rule="sgd", lr=0.1, horizons=[1000]).norm.item()
    wrong = nl.forecast(steps, norms, rule="normalized", lr=0.1, horizons=[1000]).norm.item()
    truth = (1 + 0.05 * 1495) ** 0.25
    assert right == pytest.approx(truth, rel=1e-9)
    assert abs(wrong / truth - 1) > 0.05


# --- synthetic gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "start"), [(0.0, 1.0), (0.01, 1.0), (0.01, 3.0)])
def test_sgd_on_independent_gradients_grows_falls_and_settles_as_forecast(decay, start):
    norms, gradients = sgd_norms(1400, lr=0.05, decay=decay, start=start)
    settings = {"rule": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": decay}
    known = slice(0, 401)
    ahead = nl.forecast(
        range(401),
        norms[known],
        grad_norms=gradients[known],
        persistence=0.1 / 1.9,
        **settings,
        horizons=[100, 300, 990],
    )
    truth = norms[[500, 700, 1390]]
    assert all(ahead.possible)
    error = mean_error(ahead.norm, truth)
    assert error < 0.03
    assert inside(ahead, truth) > 0.85
    alone = nl.forecast(range(401), norms[known], grad_norms=gradients[known], persistence=1.0, **settings)
    assert mean_error(alone.norm, truth) > 3 * error  # TK's Eq. 17 with P = 1
    if decay and start == 1:
        there = nl.equilibrium(0.05, decay, 0.9, grad_norm=1.0, persistence=0.1 / 1.9).radius
        assert ahead.equilibrium_norm.mean().item() == pytest.approx(there, rel=0.03)


def test_a_normalised_optimiser_settles_as_forecast():
    norms = adam_like_norms(1600, lr=0.02, decay=0.1)
    settings = {"rule": "normalized", "lr": 0.02, "weight_decay": 0.1, "decoupled": True, "horizons": [100, 300, 990]}
    ahead = nl.forecast(range(601), norms[:601], update_norms=1.0, memory=1.0, **settings)
    truth = norms[[700, 900, 1590]]
    unknown = nl.forecast(range(601), norms[:601], **settings)  # of the norms alone, whose chance it takes for a pull
    assert all(ahead.possible)
    assert mean_error(ahead.norm[2], truth[2]) < 0.7 * mean_error(norms[600], truth[2])
    assert mean_error(ahead.norm[2], truth[2]) < 0.7 * mean_error(
        unknown.norm[2][unknown.possible], truth[2][unknown.possible]
    )
    assert inside(ahead, truth) > 0.85
    assert ahead.equilibrium_norm.square().mean().sqrt().item() == pytest.approx((0.02 / 0.2) ** 0.5, rel=0.1)


def test_a_rate_that_will_fall_is_taken_from_the_schedule():
    fall = lambda n: 1.0 if n < 500 else 0.1  # noqa: E731
    norms, gradients = sgd_norms(1400, lr=0.05, factor=fall)
    known = {"grad_norms": gradients[:401], "persistence": 0.1 / 1.9, "rule": "sgd", "lr": 0.05, "momentum": 0.9}
    truth = norms[1390]
    told = nl.forecast(range(401), norms[:401], schedule=lambda n: 0.05 * fall(n), horizons=[990], **known)
    untold = nl.forecast(range(401), norms[:401], horizons=[990], **known)
    assert mean_error(told.norm[0], truth) < 0.02 < 0.1 < mean_error(untold.norm[0], truth)
    assert told.effective_rate[0, 0] == pytest.approx(0.005 / told.norm[0, 0].item() ** 2)


def test_a_drive_from_before_a_jump_of_the_rate_is_forgotten():
    """With the rate the noise of gradients falls; the window reaches back behind the jump, the drive must not."""
    late = lambda n: 0.4 if n >= 350 else 1.0  # noqa: E731
    norms, gradients = sgd_norms(1401, lr=0.05, factor=late, size=late)
    lrs = [0.05 * late(n) for n in range(401)]
    told = {"grad_norms": gradients[:401], "persistence": 0.1 / 1.9, "rule": "sgd", "momentum": 0.9, "horizons": [1000]}
    right = nl.forecast(range(401), norms[:401], lr=0.02, lrs=lrs, **told)
    unaware = nl.forecast(range(401), norms[:401], lr=0.02, lrs=[0.02] * 401, **told)
    assert mean_error(right.norm[0], norms[1400]) < 0.5 * mean_error(unaware.norm[0], norms[1400])


def test_the_interval_widens_ahead_and_with_its_coverage():
    norms, _ = sgd_norms(400, lr=0.05)
    wide = nl.forecast(range(400), norms, rule="sgd", lr=0.05, momentum=0.9, horizons=[10, 100, 1000, 10000])
    narrow = nl.forecast(range(400), norms, rule="sgd", lr=0.05, momentum=0.9, horizons=[10, 100], coverage=0.5)
    width = (wide.norm_high / wide.norm_low).log()
    assert (width.diff(dim=0) > 0).all()
    assert ((narrow.norm_high / narrow.norm_low).log() < width[:2]).all()


def test_strides_and_shapes_are_free():
    norms, gradients = sgd_norms(400, lr=0.05)
    shaped = norms.reshape(400, 4, 16)
    ahead = nl.forecast(range(400)[::10], shaped[::10], grad_norms=gradients.reshape(400, 4, 16)[::10],
                        persistence=0.1 / 1.9, rule="sgd", lr=0.05, momentum=0.9)  # fmt: skip
    assert ahead.norm.shape == (3, 4, 16)
    assert ahead.equilibrium_norm.shape == (4, 16)
    single = nl.forecast(range(400), norms[:, 0], rule="sgd", lr=0.05)
    assert single.norm.shape == (3,)
    assert single.possible.shape == ()
    assert single.refusals == ("",)


# --- refusals -----------------------------------------------------------------------------------------------------


def refusal(norms, **settings):
    given = {"rule": "sgd", "lr": 0.1, "momentum": 0.0, "horizons": [100]} | settings
    ahead = nl.forecast(range(len(norms)), norms, **given)
    assert ahead.norm.isnan().all() == (not ahead.possible)
    return ahead.refusals[0]


def test_what_has_no_forecast_says_why():
    steps = torch.arange(200).double()
    growing = (1 + 0.01 * steps) ** 0.25
    assert refusal(growing) == ""
    assert "too few" in refusal(growing[:10])
    assert "not finite from step 7" in refusal(torch.where(steps == 7, math.nan, growing))
    assert "vanishes" in refusal(torch.where(steps == 7, 0.0, growing))
    assert refusal(torch.where(steps == 0, 0.0, growing), rule="normalized") == ""  # a bias that began at 0
    assert "another law" in refusal(growing.flip(0))
    assert refusal(growing.flip(0), weight_decay=1.0) == ""
    assert "coupled" in refusal(growing, rule="normalized", weight_decay=0.1)
    assert refusal(growing, rule="normalized", weight_decay=0.1, decoupled=True) == ""
    assert refusal(1.2 - 0.005 * steps, rule="normalized") == ""


def test_a_pull_inward_fades_with_the_weight():
    """A linear law would carry the square of this norm below 0."""
    steps = torch.arange(200).double()
    norms = torch.exp(-0.01 * steps)
    ahead = nl.forecast(range(200), norms, rule="normalized", lr=0.1, horizons=[300])
    slope = (norms[-1] ** 2 - norms[-50] ** 2) / 49
    assert norms[-1] ** 2 + 300 * slope < 0 < ahead.norm_low.item() < ahead.norm.item() < norms[-1]


def test_a_burst_is_refused_and_a_turn_that_large_but_falling_is_not():
    fall, gradients = torch.exp(-0.002 * torch.arange(400).double()), torch.ones(400)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}
    weak = {"grad_norms": 0.2 * gradients / fall, "persistence": 1e-9, **settings}
    assert "no law" in refusal(fall, grad_norms=gradients / fall, persistence=1e-9, **settings)
    assert "a burst:" in refusal(fall, **weak)
    rise = 1 / fall
    assert refusal(rise, grad_norms=0.5 * gradients / rise, persistence=0.1, **settings) == ""
    assert refusal(torch.ones(400), grad_norms=0.5 * gradients, persistence=1e-9, **settings) == ""  # 0.1 rad, steady
    assert "burst ahead" in refusal(
        torch.ones(400), grad_norms=0.5 * gradients, persistence=1e-9, horizons=[1000], **settings
    )


def test_without_decay_nothing_settles():
    norms, _ = sgd_norms(300, lr=0.05)
    ahead = nl.forecast(range(300), norms, rule="sgd", lr=0.05)
    assert "no decay" in ahead.no_equilibrium
    assert ahead.equilibrium_step.isnan().all()
    assert ahead.possible.all()


def test_a_frozen_weight_stays():
    ahead = nl.forecast(range(100), torch.full((100,), 2.0), rule="normalized", lr=0.1)
    assert all((norm == 2).all() for norm in (ahead.norm, ahead.norm_low, ahead.norm_high))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"horizons": [300, 100]}, "horizons must increase"),
        ({"horizons": 100}, "horizons are numbers of steps"),
        ({"schedule": [0.1] * 50}, "schedule has shape"),
        ({"rule": "adam"}, "choose from sgd, normalized"),
        ({"coverage": 1}, "coverage"),
        ({"grad_norms": torch.ones(7)}, "does not broadcast"),
        ({"lrs": torch.ones(7)}, "lrs has shape"),
        ({"steps": torch.ones(200)}, "that increase"),
        ({"norms": torch.ones(3)}, "one record for each step"),
    ],
)
def test_wrong_arguments_are_named(wrong, says):
    right = {"steps": range(200), "norms": torch.ones(200), "rule": "sgd", "lr": 0.1}
    with pytest.raises((ValueError, TypeError), match=says):
        nl.forecast(**(right | wrong))
