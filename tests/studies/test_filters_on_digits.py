"""The experiments of the chapter on implicit adaptivity: made-up weights, residuals on a dial, real filters.

Whatever is trained with noise is judged by its mean over seeds, against several of its standard errors.
"""

import math

import pytest
import torch

import nlcompanion as nl
from studies import figure4, motion_on_a_dial
from studies import filters_on_digits as digits
from studies import weights_on_a_sphere as sphere

F64 = torch.float64
SHORT = {"subset": 128, "batch_size": 32, "lr": 0.03, "weight_decay": 5e-3, "label_noise": 0.3}


@pytest.fixture(scope="module")
def noisy():
    return digits.follow_seeds(range(3), epochs=200, **SHORT)


# --- courses ----------------------------------------------------------------------------------------------------------


def test_a_course_holds_the_gradients_at_unit_length():
    course = digits.follow(subset=40, batch_size="full", epochs=4)
    lengths = course.r_squared.sqrt()
    for layer, gradients in enumerate(course.gradients):
        recorded = course.run.records["gradient_norm"][:, layer] * lengths[:, layer]
        assert torch.allclose(gradients.norm(dim=1), recorded, rtol=1e-10)
    assert torch.equal(course.squared_gradients[:, 0], course.gradients[0].square().sum(1))
    first = 0.1**2 * course.squared_gradients[0]  # the average starts empty
    assert torch.allclose(course.squared_averages[0], first, rtol=1e-10)


def test_a_nudge_changes_the_start_and_nothing_else():
    own, nudged = (digits.follow(subset=40, batch_size="full", epochs=4, nudge=size) for size in (0.0, 1e-7))
    apart = (nudged.r_squared / own.r_squared - 1).abs().amax(1)
    assert 0 < apart.max() < 1e-6


def test_one_course_has_no_standard_error():
    with pytest.raises(ValueError, match="two seeds or more"):
        digits.mean_and_error([None], lambda course: torch.ones(1))


def test_mean_and_error_of_known_numbers():
    found = digits.mean_and_error([1.0, 2.0, 6.0], torch.tensor)
    assert (found.mean.item(), found.runs) == (3.0, 3)
    assert found.error.item() == pytest.approx(math.sqrt(7 / 3), rel=1e-6)


def test_samples_drawn_with_replacement_are_independent():
    train_set, _ = digits.drawn_with_replacement(2000, seed=1)
    own = nl.digits("train")
    assert len(train_set) == 2000
    assert torch.bincount(train_set.labels).min() > 150
    distinct = len(train_set.images.flatten(1).unique(dim=0))
    expected = len(own) * (1 - (1 - 1 / len(own)) ** 2000)  # of so many draws
    assert abs(distinct / expected - 1) < 0.05


# --- laws on noisy batches --------------------------------------------------------------------------------------------


@pytest.mark.slow  # six trainings
def test_the_turn_follows_the_law_with_the_drift(noisy):
    """Over six seeds: off by 0.04% with a standard error of 0.1%; the deepest layer's equilibrium by 6%, error 0.8%."""

    def against(law):
        def of(course):
            turn = digits.turn(course, 400, 800)
            return turn.measured / getattr(turn, law) - 1

        return digits.mean_and_error(noisy, of).mean

    assert abs(against("drifting").mean()) < 0.005
    assert against("settled")[2] < -0.02


@pytest.mark.slow
def test_the_averaged_gradient_needs_no_assumption(noisy):
    def error(**law):
        def of(course):
            return digits.deviation(course, **law)[200:].square().mean(0).sqrt()

        return digits.mean_and_error(noisy, of).mean

    assert error(averaged=True).max() < 0.02
    assert error().min() > 1.0  # Eq. 17 as printed


def test_gains_and_windows_agree_on_an_exact_law():
    course = digits.follow(seed=0, epochs=200, **SHORT)
    found = digits.windows([course], width=100, skip=200)
    assert found.reach.shape == found.error.shape == (15,)
    assert found.error.median() < 0.02
    assert digits.gain_error(course, 200, persistence=0.0).sub(-1).abs().max() < 1e-9


# --- the twin of unit norm --------------------------------------------------------------------------------------------


def test_unit_norm_and_scaled_gradients_are_the_same_training():
    plain = digits.unit_norm_twins(lr=0.05, momentum=0.0, weight_decay=0.0, steps=20)
    assert (plain.scaled / plain.free - 1).abs().max() < 1e-12
    assert (plain.fixed / plain.free - 1).abs().max() > 1e-4
    rates = (0.02, 0.01)
    heavy = [digits.unit_norm_twins(lr=lr, momentum=0.9, weight_decay=5e-3, steps=40) for lr in rates]
    errors = [(run.scaled / run.free - 1).abs().max().item() for run in heavy]
    assert max(errors) < 3e-3
    assert errors[0] > 3 * errors[1]  # of leading order: it falls faster than the step
    assert all((run.fixed / run.free - 1).abs().max() > 5 * error for run, error in zip(heavy, errors, strict=True))


def test_eps_tilts_the_gradient():
    assert max(digits.largest_cosine(0)) < 1e-12 < 1e-4 < max(digits.largest_cosine(1e-5)) < 1e-2


# --- made-up weights --------------------------------------------------------------------------------------------------


def test_a_ride_settles_where_its_persistence_says():
    cases = [(0.5, 0.0), (0.9, 0.0), (0.9, 0.8), (0.9, 1.0)]
    members = [case for case in cases for _ in range(8)]
    radii = [sphere.settled(*case).radius for case in members]
    ride = sphere.ride([rho for _, rho in members], [beta for beta, _ in members], radii, steps=2000)
    fourth = ride.r_squared[500:].square().mean(0).view(4, 8)
    expected = torch.tensor([sphere.settled(*case).radius ** 4 for case in cases])
    off, error = fourth.mean(1) / expected - 1, fourth.std(1) / 8**0.5 / expected
    assert (off.abs() < 0.01 + 4 * error).all()
    assert ride.turn.shape == (2000, 32)


def test_a_real_rmsprop_follows():
    beside = sphere.rmsprop_beside(beta=0.0, steps=2000)
    assert (beside.fourth_power / beside.accumulator - 1).abs().max() < 2e-3
    assert abs(beside.sgd_angle[-1] / beside.rmsprop_angle[-1] - 1) < 1e-3
    forgets = 8 * sphere.LR * sphere.decay(0.0)  # twice too fast
    wrong = sphere.rmsprop_beside(beta=0.0, forgets=forgets, steps=2000)
    assert (wrong.fourth_power / wrong.accumulator - 1).abs().max() > 0.05


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_the_direction_moves_by_the_normalised_gradient(size):
    balance = sphere.balance_at_rest(0.5, size, steps=50)
    scale = balance.normalised.norm(dim=1)
    assert ((balance.motion - balance.normalised).norm(dim=1) < 1e-3 * scale).all()
    assert ((balance.motion - balance.plain).norm(dim=1) > 0.4 * scale).all()


def test_relaxation_takes_longer_where_the_momentum_remembers_as_long():
    def over_law(memories):
        steps = memories / 0.1
        return sphere.relaxation_steps(0.9, 0.1 / (4 * sphere.LR * steps)) / steps

    assert abs(over_law(50) - 1) < 0.01
    assert over_law(3) > 1.1
    assert over_law(1) > 1.5


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_what_gradients_add_vanishes_with_the_step(beta):
    gains = sphere.gain_of_descents((0.01, 0.005), beta=beta, weight_decay=0.05, time=1.0)
    assert abs(nl.convergence_order((0.01, 0.005), gains.tolist()) - 1) < 0.15


# --- the dial and figure 4 --------------------------------------------------------------------------------------------


def test_residuals_vanish_for_exact_equations_alone():
    found = motion_on_a_dial.residuals(0.4, 0.3, time=3.0)
    assert max(found.angular, found.radial, found.squared) < 1e-11
    rest = found._asdict()
    for name in ("angular", "radial", "squared"):
        del rest[name]
    assert min(abs(value) for value in rest.values()) > 1e-2


def test_differences_carry_their_errors():
    curve = {"accuracy_mean": [0.9, None], "accuracy_sem": [0.03, None]}
    other = {"accuracy_mean": [0.5, 0.4], "accuracy_sem": [0.04, 0.1]}
    content = {"curves": {"a": {"free": curve, "constrained": other}}}
    gap = figure4.gap(content, "a", "accuracy")
    assert gap.mean[0] == pytest.approx(0.4)
    assert gap.error[0] == pytest.approx(0.05)
    assert gap.mean[1].isnan()
    change = figure4.change(content, "a", "accuracy", "constrained")
    assert change.mean.tolist() == pytest.approx([0.0, -0.1])
