"""Flows that end where a condition begins to hold, and solvers that say why they stop or crawl."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from nlcompanion import (
    FlowError,
    damped,
    gradient_flow,
    integrate,
    loss_below,
    natural_gradient,
    newtonian,
    steady,
)


def bowl(q):
    return 0.5 * q @ q


def flow(**options):
    return integrate(gradient_flow(), bowl, [1.0], **{"t_span": (0, 100), **options})


# --- where a run ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["RK23", "DOP853", "BDF", "Radau", "LSODA"])
def test_the_steady_state_is_found_where_it_begins(method):
    """The speed is exp(-t): the first time below 1e-3 is log(1000), not the end of the step that passed it."""
    run = flow(stop=steady(1e-3), method=method, rtol=1e-8, atol=1e-11)
    assert run.stopped
    assert abs(run.t[-1].item() - math.log(1e3)) < 1e-4
    assert run.v[-1].norm() <= 1e-3 * (1 + 1e-6)
    assert (run.t.diff() > 0).all()
    whole = flow(method=method, rtol=1e-8, atol=1e-11)
    assert not whole.stopped
    assert run.nfev < whole.nfev


def test_a_start_from_rest_is_no_steady_state():
    """At rest the velocity is 0 and the acceleration is not: a condition on v alone would end the run at its start."""
    rest = integrate(damped(1.0, 2.0), bowl, [1.0], t_span=(0, 60), stop=steady(1e-4))
    assert rest.stopped
    assert rest.t[-1] > 5
    naive = integrate(damped(1.0, 2.0), bowl, [1.0], t_span=(0, 60), stop=lambda t, q, v: bool(v.norm() < 1e-4))
    assert naive.t.tolist() == [0.0]


def test_a_turning_point_is_no_steady_state():
    undamped = integrate(newtonian(), bowl, [1.0], t_span=(0, 20), stop=steady(1e-3))
    assert not undamped.stopped
    assert undamped.t[-1] == 20


def test_the_steady_state_of_a_mirror_rule():
    entropy = natural_gradient(lambda z: (z * z.log() - z).sum(), 0.1, 1.0)
    run = integrate(entropy, lambda q: 0.5 * (q - 2).square().sum(), [1.0], t_span=(0, 200), stop=steady(1e-5))
    assert run.stopped
    assert (run.q[-1] - 2).abs().max() < 1e-3


def test_conditions_on_time_point_and_velocity():
    assert flow(stop=lambda t, q, v: t >= 2.0).t[-1].item() == pytest.approx(2, abs=1e-9)
    assert flow(stop=lambda t, q, v: t >= 2.0).t[-1].item() >= 2.0  # it holds there: not one rounding before
    assert flow(stop=lambda t, q, v: q[0] <= 0.25).q[-1].item() == pytest.approx(0.25, abs=1e-9)
    assert flow(stop=lambda t, q, v: np.bool_(v[0] > -0.5)).v[-1].item() == pytest.approx(-0.5, abs=1e-9)
    assert flow(stop=loss_below(bowl, 1e-4)).q[-1].item() == pytest.approx(math.sqrt(2e-4), rel=1e-8)


def test_times_asked_for_are_kept_up_to_the_end():
    run = flow(stop=lambda t, q, v: t >= 2.5, t_eval=[0.0, 1.0, 2.0, 3.0, 4.0])
    assert run.t[:-1].tolist() == [0.0, 1.0, 2.0]
    assert run.t[-1].item() == pytest.approx(2.5, abs=1e-9)
    assert (run.q[:, 0] - (-run.t).exp()).abs().max() < 1e-8


def test_records_and_integrals_stop_with_the_state():
    run = flow(
        stop=steady(1e-2), record=lambda t, q, v: {"speed": v.norm()}, integrand=lambda t, q, v: v @ v, t_eval=[0, 1.0]
    )
    assert run.record["speed"][-1].item() == pytest.approx(1e-2)
    assert run.integral[-1].item() == pytest.approx((1 - math.exp(-2 * run.t[-1].item())) / 2, rel=1e-7)


def test_a_condition_that_holds_at_the_start_costs_nothing():
    run = flow(stop=lambda t, q, v: True)
    assert run.t.tolist() == [0.0]
    assert run.stopped
    assert run.nfev <= 3


def test_what_is_no_condition():
    with pytest.raises(TypeError, match="stop must be a function"):
        flow(stop=1e-6)
    with pytest.raises(TypeError, match="must return True or False"):
        flow(stop=lambda t, q, v: v.norm())
    with pytest.raises(ValueError, match="speed"):
        steady(0.0)
    with pytest.raises(TypeError, match="must be a function"):
        loss_below(3.0, 1.0)


# --- times that were computed -------------------------------------------------------------------------------------


def test_one_rounding_beyond_an_end_is_the_end():
    assert 0.1 * 3 > 0.3
    assert flow(t_span=(0, 0.3), t_eval=[0.1, 0.1 * 3]).t[-1].item() == 0.3
    single = torch.linspace(0, 0.1, 8)
    assert single[-1].item() > 0.1  # a rounding of float32
    assert flow(t_span=(0, 0.1), t_eval=single).t[-1].item() == 0.1
    with pytest.raises(ValueError, match="within"):
        flow(t_span=(0, 0.3), t_eval=[0.1, 0.3 + 1e-9])
    with pytest.raises(ValueError, match="entry 1 is not finite"):
        flow(t_eval=[0.0, math.nan, 1.0])


# --- solvers that crawl or stop -----------------------------------------------------------------------------------


def stretched(q):
    return 0.5 * (q * torch.tensor([1.0, 1e5], dtype=torch.float64)) @ q


def test_a_stiff_flow_is_said_early():
    """The whole span needs some 2e7 calls: the warning comes within a thousandth of them."""
    with pytest.warns(UserWarning, match="stiff.*BDF"), pytest.raises(FlowError):
        integrate(gradient_flow(), stretched, [1.0, 1.0], t_span=(0, 100), max_nfev=10_000, method="RK45")


def test_a_flow_that_its_decay_makes_stiff():
    decaying = replace(gradient_flow(), weight_decay=1e5)
    with pytest.warns(UserWarning, match="stiff.*BDF"), pytest.raises(FlowError):
        integrate(decaying, bowl, [1.0, 1.0], t_span=(0, 100), max_nfev=10_000, method="RK45")


def test_what_is_not_stiff_gets_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow()
        integrate(gradient_flow(), stretched, [1.0, 1.0], t_span=(0, 1e-3), method="RK45")
        integrate(gradient_flow(), stretched, [1.0, 1.0], t_span=(0, 100), method="BDF", rtol=1e-6)
        waves = lambda q: -2 * q[0] - (1e3 * q[0]).sin() / 1e3  # noqa: E731  accuracy holds the steps, not stability
        integrate(gradient_flow(), waves, [1.0], t_span=(0, 0.2))


def test_an_implicit_solver_stopped_by_a_kink_says_kink():
    """The explicit solver's message proposes BDF, which stops at ReLU's kinks: not at infinity."""
    with pytest.raises(FlowError, match="kink of the loss") as stopped:
        integrate(gradient_flow(), lambda q: q.abs().sum() + 0.5 * q @ q, [0.3], t_span=(0, 10), method="BDF")
    assert "infinity" not in str(stopped.value)


@pytest.mark.parametrize("method", ["BDF", "DOP853"])
def test_infinity_is_not_taken_for_a_kink(method):
    with pytest.raises(FlowError, match="infinity") as stopped:
        integrate(gradient_flow(), lambda q: -(q**3).sum() / 3, [1.0], t_span=(0, 2), method=method)
    assert "kink" not in str(stopped.value)
