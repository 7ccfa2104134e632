"""Flows against exact solutions, and what happens when an integration cannot work."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.integrate
import torch
from grids import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CURVATURES, FLOWS, START, damped_oscillator, quadratic, quartic

from nlcompanion.dynamics import (
    FlowError,
    Trajectory,
    bregman,
    damped,
    flows,
    gradient_flow,
    integrate,
    lagrangian,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.dynamics.equations import set_up
from nlcompanion.mechanics import energy

ENTROPY = lambda q: (q * q.log()).sum()  # noqa: E731


@pytest.mark.parametrize(
    ("problem", "method"), covering(FLOWS, ["DOP853", "Radau"]), ids=lambda x: getattr(x, "name", x)
)
def test_exact_solutions(problem, method):
    times = np.linspace(*problem.t_span, 17)[1:]
    q0 = START if problem.q0 is None else problem.q0
    rtol, tolerance = (1e-12, 1e-10) if method == "DOP853" else (1e-8, 1e-6)
    run = integrate(
        problem.rule, problem.f, q0, problem.v0, t_span=problem.t_span, t_eval=times, method=method, rtol=rtol
    )
    assert np.abs(run.q.numpy() - problem.exact(times)).max() < tolerance
    h = 1e-5
    slope = (problem.exact(times + h) - problem.exact(times - h)) / (2 * h)
    assert np.abs(run.v.numpy() - slope).max() < max(tolerance, 1e-8)


@pytest.mark.parametrize("rule", [damped(0.7, 1.3), nesterov(), sgd(0.2, 0.5, 0.1)], ids=lambda r: r.name)
def test_right_hand_side_and_lagrangian_move_alike(rule):
    """The one test that holds a rule's direct equation and its Lagrangian together, along whole trajectories."""
    span, times, start, v0 = (0.5, 1.0), [0.75, 1.0], [0.9, -0.4], [0.1, 0.2]
    direct = integrate(rule, quartic, start, v0, t_span=span, t_eval=times, rtol=1e-11)
    L = lagrangian(rule, quartic, t_ref=1.0)
    by_lagrangian = integrate(L, None, start, v0, t_span=span, t_eval=times, rtol=1e-11)
    assert (direct.q - by_lagrangian.q).abs().max() < 1e-9
    assert (direct.v - by_lagrangian.v).abs().max() < 1e-9


METRICS = {
    "entropy": (ENTROPY, lambda Y: torch.exp(Y - 1)),
    "cosh": (lambda q: torch.cosh(q).sum(), torch.asinh),
    "quartic": (lambda q: (q**4).sum() + 0.5 * q @ q, None),
}


@pytest.mark.parametrize("metric", METRICS)
def test_mirror_variables_give_the_lagrangians_motion(metric):
    h, inverse = METRICS[metric]
    start = [1.0, 0.5]
    runs = []
    for rule in (natural_gradient(h, 0.3, 1.0), natural_gradient(h, 0.3, 1.0, grad_h_inverse=inverse)):
        runs.append(integrate(rule, quartic, start, t_span=(0, 0.5), t_eval=[0.25, 0.5], rtol=1e-9))
    L = lagrangian(natural_gradient(h, 0.3, 1.0), quartic)
    reference = integrate(L, None, start, t_span=(0, 0.5), t_eval=[0.25, 0.5], rtol=1e-9)
    for run in runs:
        assert (run.q - reference.q).abs().max() < 1e-7
        assert (run.v - reference.v).abs().max() < 1e-6


def test_accelerated_mirror_descent_with_time_dependent_schedules():
    """Ideal scaling, gamma' = exp(alpha): z moves by the force alone, as Wibisono, Wilson and Jordan derive."""
    p = 3.0
    rule = bregman(lambda t: math.log(p) - t.log(), lambda t: p * t.log(), lambda t: p * t.log(), ENTROPY)
    run = integrate(rule, quartic, [1.0, 0.5], t_span=(1, 1.5), rtol=1e-9)
    reference = integrate(lagrangian(rule, quartic), None, [1.0, 0.5], t_span=(1, 1.5), rtol=1e-9)
    assert (run.q[-1] - reference.q[-1]).abs().max() < 1e-8


def test_mirror_flow_from_a_moving_start_under_decay():
    """The dual start divides the velocity by exp(alpha), here 3; decay pulls at the point, not at its dual."""
    p = 3.0
    rule = bregman(lambda t: math.log(p) - t.log(), lambda t: p * t.log(), lambda t: p * t.log(), ENTROPY)
    rule = replace(rule, weight_decay=0.4)
    start, v0 = [1.0, 0.5], [0.3, -0.2]
    run = integrate(rule, quartic, start, v0, t_span=(1, 1.5), rtol=1e-9)
    reference = integrate(lagrangian(rule, quartic), None, start, v0, t_span=(1, 1.5), rtol=1e-9)
    assert run.v[0].tolist() == pytest.approx(v0, abs=1e-12)
    assert (run.q[-1] - reference.q[-1]).abs().max() < 1e-8


@pytest.mark.parametrize(
    "rule", [replace(gradient_flow(), weight_decay=0.3), sgd(0.2, 0.5, 0.3), nesterov()], ids=lambda r: r.name
)
def test_the_jacobian_is_the_slopes_own(rule):
    """A wrong one costs an implicit solver steps, and no run tells."""
    system, y = set_up(rule, quartic, START[:2], None, 0.7, 100)
    columns = np.eye(len(y)) * 1e-6
    differences = [(system.slope(0.7, y + h) - system.slope(0.7, y - h)) / 2e-6 for h in columns]
    assert system.jacobian(0.7, y) == pytest.approx(np.stack(differences, 1), abs=1e-7)


def test_small_mass_mirror_flow_tends_to_natural_gradient_flow():
    """q' = -q grad f for the entropy, so a linear loss gives q0 exp(-c t); the error is of order m."""
    c = torch.tensor([0.5, 1.0], dtype=torch.float64)
    exact = torch.tensor([1.0, 2.0]).double() * torch.exp(-c)
    errors = []
    for mass in (4e-3, 2e-3, 1e-3):
        rule = natural_gradient(ENTROPY, mass, 1.0, grad_h_inverse=lambda Y: torch.exp(Y - 1))
        run = integrate(rule, lambda q: c @ q, [1.0, 2.0], t_span=(0, 1), method="Radau")
        errors.append((run.q[-1] - exact).norm().item())
    order = math.log(errors[0] / errors[-1]) / math.log(4)
    assert order == pytest.approx(1, abs=0.1)


def test_newtonian_energy_is_conserved_and_the_damped_one_is_not():
    E = energy(lagrangian(newtonian(), quartic))
    for rule, conserved in ((newtonian(), True), (damped(1.0, 0.01), False)):
        run = integrate(rule, quartic, [0.9, -0.4], [0.3, 0.0], t_span=(0, 10), rtol=1e-12)
        drift = abs(E(0.0, run.q[-1], run.v[-1]) - E(0.0, run.q[0], run.v[0])).item()
        assert (drift < 1e-10) is conserved


def test_stiff_motion_by_bdf_takes_far_fewer_calls():
    options = {"t_span": (0.0, 1.25), "rtol": 1e-6, "atol": 1e-9}
    with pytest.warns(UserWarning, match="BDF"):
        explicit = integrate(damped(2e-4, 1.0), quadratic, START, method="RK45", **options)
    stiff = integrate(damped(2e-4, 1.0), quadratic, START, method="BDF", **options)
    exact = [damped_oscillator(1.25, 2e-4, 1.0, c, x, 0.0) for c, x in zip((0.5, 2.0, 3.0), START, strict=True)]
    assert np.abs(stiff.q[-1].numpy() - exact).max() < 1e-5
    assert stiff.nfev * 20 < explicit.nfev


def test_nesterov_from_its_singular_point_is_not_called_stiff():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrate(nesterov(), quadratic, START, t_span=(1e-3, 2))


# --- what is returned ---------------------------------------------------------------------------------------------


def test_shapes_types_and_own_steps():
    run = integrate(gradient_flow(), quadratic, START, t_span=(0, 1))
    assert isinstance(run, Trajectory)
    assert run.t[0] == 0
    assert run.t[-1] == 1
    assert run.q.shape == run.v.shape == (len(run.t), 3)
    assert all(x.dtype == torch.float64 and not x.requires_grad for x in (run.t, run.q, run.v))
    assert (run.v + torch.stack([torch.tensor([0.5, 2.0, 3.0]).double() * q for q in run.q])).abs().max() < 1e-12
    assert "DOP853" in repr(run)


def test_start_is_left_alone():
    q0 = START.clone()
    integrate(newtonian(), quadratic, q0, t_span=(0, 1))
    assert torch.equal(q0, START)


def test_record_replaces_states():
    seen = integrate(newtonian(), quadratic, START, t_span=(0, 1), record=lambda t, q, v: {"r": q.norm(), "t": t})
    full = integrate(newtonian(), quadratic, START, t_span=(0, 1))
    assert torch.allclose(seen.record["r"], full.q.norm(dim=1), rtol=1e-14)
    assert torch.equal(seen.record["t"], full.t)
    assert seen.q.shape == (1, 3)
    assert torch.equal(seen.q[0], full.q[-1])


def test_record_at_given_times():
    times = [0.25, 0.5, 1.0]
    run = integrate(newtonian(), quadratic, START, t_span=(0, 1), t_eval=times, record=lambda t, q, v: {"x": q[0]})
    assert run.t.tolist() == times
    exact = START[0] * torch.cos(math.sqrt(0.5) * run.t)
    assert (run.record["x"] - exact).abs().max() < 1e-7


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (lambda t, q, v: q, TypeError),
        (lambda t, q, v: {"q": q}, TypeError),
        (lambda t, q, v: {f"{t}": 1.0}, ValueError),
    ],
)
def test_bad_records(record, error):
    with pytest.raises(error, match="record"):
        integrate(newtonian(), quadratic, START, t_span=(0, 1), record=record)


# --- beside the state -----------------------------------------------------------------------------------------------


def kinetic(t, q, v):
    return torch.stack([v @ v, torch.tensor(2.0 * t, dtype=torch.float64), q.sum()])


BESIDE_RULES = (
    damped(0.7, 1.1),
    gradient_flow(),
    natural_gradient(ENTROPY, 0.5, 1.0, grad_h_inverse=lambda Y: torch.exp(Y - 1)),
)


METHODS = ["RK45", "DOP853", "Radau", "BDF", "LSODA"]


@pytest.mark.parametrize("method", METHODS)
def test_each_step_keeps_a_state_of_its_own(method):
    """Whatever the solver does with its arrays afterwards."""
    run = integrate(gradient_flow(), lambda q: 0.5 * q @ q, [1.0, -2.0], t_span=(0, 3), method=method, rtol=1e-6)
    exact = torch.exp(-run.t)[:, None] * torch.tensor([1.0, -2.0]).double()
    assert len(run.t) > 5
    assert (run.q - exact).abs().max() < 1e-4
    assert (run.v + exact).abs().max() < 1e-4


@pytest.mark.parametrize(("method", "rule"), covering(METHODS, BESIDE_RULES), ids=lambda x: getattr(x, "name", x))
def test_an_integral_beside_the_state(rule, method):
    """Against a quadrature of the same integrand along the finished trajectory; t^2 is known."""
    times = np.linspace(0.5, 1.5, 101)
    tight = 1e-7 if method == "BDF" else 1e-9
    run = integrate(
        rule,
        quartic,
        [0.9, 0.4],
        t_span=(0.5, 1.5),
        t_eval=times,
        method=method,
        rtol=tight,
        atol=1e-10,
        integrand=kinetic,
    )
    assert run.integral.shape == (101, 3)
    assert not run.integral[0].any()
    assert (run.integral[:, 1] - (run.t**2 - 0.25)).abs().max() < 2e-6
    integrand = torch.stack([kinetic(0.0, q, v) for q, v in zip(run.q, run.v, strict=True)])[:, [0, 2]].numpy()
    exact = scipy.integrate.simpson(integrand, x=times, axis=0)
    assert np.abs(run.integral[-1, [0, 2]].numpy() - exact).max() < 5e-6
    control = scipy.integrate.simpson(1.001 * integrand, x=times, axis=0)
    assert np.abs(run.integral[-1, [0, 2]].numpy() - control).max() > 1e-4


def test_work_of_friction_is_the_energy_lost():
    E = energy(lagrangian(newtonian(), quartic))
    run = integrate(
        damped(1.0, 0.5), quartic, [0.9, -0.4], t_span=(0, 5), rtol=1e-12, integrand=lambda t, q, v: 0.5 * v @ v
    )
    lost = torch.stack([E(0.0, run.q[0], run.v[0]) - E(0.0, q, v) for q, v in zip(run.q, run.v, strict=True)])
    assert run.integral.shape == (len(run.t),)
    assert (lost - run.integral).abs().max() < 1e-10 < 0.1 < lost[-1]


@pytest.mark.parametrize("rule", [newtonian(), gradient_flow(), damped(1.0, 0.3)], ids=lambda rule: rule.name)
def test_an_integrand_leaves_the_motion_alone_and_costs_no_gradient(rule):
    options = {"t_span": (0, 2), "rtol": 1e-9, "t_eval": [0.5, 2.0]}
    plain = integrate(rule, quartic, [0.9, -0.4], **options)
    run = integrate(rule, quartic, [0.9, -0.4], **options, integrand=lambda t, q, v: torch.zeros(2, 3))
    assert plain.integral is None
    assert run.integral.shape == (2, 2, 3)
    assert (run.q - plain.q).abs().max() < 1e-8
    assert run.nfev <= 1.3 * plain.nfev  # zeros dilute the solver's error norm: steps differ a little


def test_an_integrand_with_a_record_and_with_an_integrand_that_torch_cannot_differentiate():
    for method in ("DOP853", "BDF"):
        run = integrate(
            newtonian(),
            quadratic,
            START,
            t_span=(0, 1),
            method=method,
            rtol=1e-8,
            record=lambda t, q, v: {"t": t},
            integrand=lambda t, q, v: float((v @ v).detach()),
        )
        exact = (0.5 * CURVATURES * START**2 * (1 - (2 * CURVATURES.sqrt()).sin() / (2 * CURVATURES.sqrt()))).sum()
        assert run.q.shape == (1, 3)
        assert run.integral.shape == run.record["t"].shape
        assert run.integral[-1].item() == pytest.approx(exact.item(), abs=1e-5)


def test_a_stall_keeps_what_stood_beside():
    with pytest.raises(FlowError) as caught:
        integrate(newtonian(), quadratic, START, t_span=(0, 100), max_nfev=50, integrand=lambda t, q, v: q)
    assert caught.value.trajectory.integral.shape == caught.value.trajectory.q.shape


@pytest.mark.filterwarnings("ignore:invalid value")  # SciPy's own, on the way to the error
def test_bad_integrands():
    go = lambda g, **kw: integrate(newtonian(), quadratic, START, t_span=(0, 1), integrand=g, **kw)  # noqa: E731
    with pytest.raises(TypeError, match="integrand must be a function"):
        go(3.0)
    with pytest.raises(TypeError, match=r"must return a tensor.*got dict"):
        go(lambda t, q, v: {"a": 1})
    with pytest.raises(ValueError, match=r"returned shape \(3,\) after \(2,\)"):
        go(lambda t, q, v: q if t > 0 else q[:2])
    with pytest.raises(ValueError, match="dense Jacobian"):
        go(lambda t, q, v: torch.zeros(30_000), method="BDF")
    with pytest.raises(FlowError, match="integrand"):
        go(lambda t, q, v: torch.tensor(0.5 - t).log())


# --- what cannot work ---------------------------------------------------------------------------------------------


def test_blow_up_names_the_time_and_keeps_the_trajectory():
    """q' = q^2 from 1 reaches infinity at t = 1."""
    with pytest.raises(FlowError, match=r"beyond t = (1|0\.99).*infinity") as caught:
        integrate(gradient_flow(), lambda q: -(q**3).sum() / 3, [1.0], t_span=(0, 2))
    kept = caught.value.trajectory
    assert 0.9 < kept.t[-1] < 1 + 1e-6
    assert (kept.q[:, 0] - 1 / (1 - kept.t)).abs()[kept.t < 0.9].max() < 1e-7


def test_domain_ends():
    with pytest.raises(FlowError, match="edge of the domain") as caught:
        integrate(newtonian(), lambda q: q.log().sum(), [1.0], t_span=(0, 10))
    assert len(caught.value.trajectory.t) > 1


def test_non_finite_start():
    with pytest.raises(FlowError, match="not finite at the start, t = 0"):
        integrate(newtonian(), lambda q: (q - 2).log().sum(), [1.0], t_span=(0, 1))


def test_a_stalled_solver_says_so():
    with pytest.raises(FlowError, match="max_nfev = 50") as caught:
        integrate(newtonian(), quadratic, START, t_span=(0, 100), max_nfev=50)
    assert caught.value.trajectory.nfev == 50
    assert caught.value.trajectory.t[-1] < 100


def test_relu_kinks_do_stall_and_the_cap_catches_them():
    """|q| is ReLU's kink in one dimension: the flow sits on it and an adaptive solver chatters."""
    with pytest.raises(FlowError, match="kink"):
        integrate(gradient_flow(), lambda q: q.abs().sum(), [0.3], t_span=(0, 10), max_nfev=2000)


@pytest.mark.parametrize("method", ["BDF", "Radau", "LSODA"])
def test_dense_jacobians_of_networks_are_refused(method):
    with pytest.raises(ValueError, match="dense Jacobian") as caught:
        integrate(newtonian(), lambda q: q @ q, torch.zeros(239_000), t_span=(0, 1), method=method)
    assert "GiB" in str(caught.value)
    assert "DOP853" in str(caught.value)


def test_storing_too_much_is_pointed_out(monkeypatch):
    monkeypatch.setattr(flows, "_WARN_STORED_BYTES", 100)
    with pytest.warns(UserWarning, match="record="):
        integrate(newtonian(), quadratic, START, t_span=(0, 1))


def test_bad_losses():
    for loss, match in (
        (lambda q: q, "scalar tensor"),
        (lambda q: 1.0, "scalar tensor"),
        (lambda q: torch.tensor(q.sum().item()), "no gradient"),
    ):
        with pytest.raises(TypeError, match=match):
            integrate(newtonian(), loss, START, t_span=(0, 1))
    with pytest.raises(TypeError, match="must be a function"):
        integrate(newtonian(), 3.0, START, t_span=(0, 1))


def test_bad_arguments():
    go = lambda **kw: integrate(newtonian(), quadratic, START, **{"t_span": (0, 1), **kw})  # noqa: E731
    for kw, match in (
        ({"method": "Euler"}, "unknown"),
        ({"t_eval": [0.5, 0.2]}, "increasing"),
        ({"t_eval": [0.5, 2.0]}, "within"),
        ({"t_eval": []}, "T > 0"),
        ({"max_nfev": 0}, "max_nfev"),
        ({"v0": [1.0]}, "v0 has 1 components"),
        ({"t_span": (1, 0)}, "no interval"),
    ):
        with pytest.raises(ValueError, match=match):
            go(**kw)
    with pytest.raises(ValueError, match="singular at t = 0"):
        integrate(nesterov(), quadratic, START, t_span=(0, 1))
    with pytest.raises(ValueError, match="no initial velocity"):
        integrate(gradient_flow(), quadratic, START, START, t_span=(0, 1))
    with pytest.raises(ValueError, match="f=None"):
        integrate(lambda t, q, v: v @ v, quadratic, START, t_span=(0, 1))
    with pytest.raises(TypeError, match="of a Lagrangian, or a LearningRule"):
        integrate("sgd", quadratic, START, t_span=(0, 1))
    with pytest.raises(ValueError, match="domain of h"):
        integrate(natural_gradient(ENTROPY, 0.1, 1.0), quadratic, -START, t_span=(0, 1))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6, unique=True))
@settings(max_examples=15, deadline=None)
def test_any_increasing_times_are_met_exactly(times):
    times = sorted(times)
    run = integrate(newtonian(), quadratic, START, t_span=(0, 1), t_eval=times)
    assert run.t.tolist() == times
    exact = START * torch.cos(torch.tensor([0.5, 2.0, 3.0]).double().sqrt() * run.t[:, None])
    assert (run.q - exact).abs().max() < 1e-7


def test_a_cap_before_the_first_step_names_the_start():
    with pytest.raises(FlowError, match=r"at t = 0\.5 of 1"):
        integrate(newtonian(), quadratic, START, t_span=(0.5, 1), max_nfev=1)
