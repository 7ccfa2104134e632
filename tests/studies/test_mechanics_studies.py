"""The studies behind the chapters on mechanics: each against a case that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import romb
from torch import nn

import nlcompanion as nl
from studies import charges, continuous_models, group_walks, kinetic_energies, least_action, transformed_starts


def test_a_quartic_has_its_slope_exactly():
    assert least_action.quartic_slope(lambda e: 7 + 3 * e - e**2 + 2 * e**3 - e**4) == pytest.approx(3, abs=1e-14)
    assert abs(least_action.quartic_slope(lambda e: e**5)) > 1  # a quintic is beyond it


@pytest.mark.parametrize("friction", [0.0, 0.5, 2.0])
def test_friction_slows_an_oscillation(friction):
    L = least_action.damped_oscillator(friction, 1.25)
    residual = nl.euler_lagrange(L, least_action.damped_oscillation(friction, 1.25))
    assert residual(0.7).abs() < 1e-13
    if friction:
        kept = least_action.damped_oscillation(friction, 1.25, slowed=False)
        assert nl.euler_lagrange(L, kept)(0.7).abs() > 1e-3


def test_the_kink_is_a_motion_of_the_pendulum():
    def pendulum(t, q, v):
        return 0.5 * v @ v + torch.cos(q).sum()

    assert nl.euler_lagrange(pendulum, least_action.pendulum_kink)(0.4).abs() < 1e-13


def test_the_frozen_derivative_is_right_for_a_constant_mass_alone():
    path = least_action.damped_oscillation(1.0, 2.0)
    for friction, same in ((0.0, True), (1.0, False)):
        L = least_action.damped_oscillator(friction, 1.0)
        t = torch.tensor(0.3, dtype=torch.float64)
        gap = least_action.frozen_variational_derivative(L, path)(t) + nl.euler_lagrange(L, path)(t)
        assert (gap.abs().max() < 1e-13) == same


def test_the_left_end_path_converges_with_order_1_and_refuses_what_is_not_quadratic():
    L, motion = least_action.damped_oscillator(1.0, 1.25), least_action.damped_oscillation(1.0, 1.25)
    one = torch.ones(1, dtype=torch.float64)
    errors = []
    for n in (20, 40):
        t, q = least_action.left_end_path(L, one, motion(torch.tensor(1.0).double()), (0, 1), n)
        errors.append((q - torch.stack([motion(x) for x in t])).abs().max())
    assert nl.convergence_order([2, 1], errors) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="quadratic"):
        least_action.left_end_path(lambda t, q, v: 0.5 * v @ v - (q**4).sum(), 0 * one, 3 * one, (0, 1), 10)


def bowl(q):
    return 0.5 * q @ q


def test_steps_stray_from_gradient_flow_with_order_1_and_from_the_second_order_equation_with_order_2():
    walk = {"loss": bowl, "q0": [1.0], "time": 1.0}
    order = continuous_models.order_of_distance
    assert order((20, 40), nl.sgd, **walk) == pytest.approx(2, abs=0.1)
    assert order((20, 40), nl.sgd, **walk, flow=nl.gradient_flow()) == pytest.approx(1, abs=0.1)


def test_distances_start_the_flow_where_they_are_told_and_read_it_by_the_given_clock():
    walk = {"loss": bowl, "q0": [1.0], "time": 1.0, "steps": 20}
    right = continuous_models.distance_from_flow(nl.sgd, **walk)
    assert continuous_models.distance_from_flow(nl.sgd, **walk, clock=0.5) > 10 * right
    assert continuous_models.distance_from_flow(nl.sgd, **walk, v0=torch.zeros(1).double()) > right


def test_energy_is_kinetic_and_potential_and_its_highest_is_a_share_of_the_first():
    run = nl.integrate(nl.newtonian(), bowl, [1.0], [0.0], t_span=(0, 2), t_eval=torch.linspace(0, 2, 5))
    assert torch.allclose(continuous_models.energy(run, bowl, 1.0), torch.full((5,), 0.5).double())
    assert continuous_models.highest_energy(run, bowl, 1.0) == pytest.approx(1)
    assert continuous_models.highest_energy(run, bowl, 2.0) > 1.2  # kinetic energy counted twice


# --- kinetic energies ---------------------------------------------------------------------------------------------

Q, V = torch.tensor([0.7, 1.6]).double(), torch.tensor([0.8, -0.5]).double()


@pytest.mark.parametrize("p", [0, 1, 1.5, 2, 3, 4])
def test_power_metrics_have_the_second_derivative_that_names_them(p):
    metric = torch.func.hessian(kinetic_energies.power(p))(Q)
    assert torch.allclose(metric, torch.diag(Q ** (p - 2)), rtol=1e-13, atol=0)


def test_the_integral_is_the_gap_and_the_other_readings_are_not():
    for p, curved in ((2, False), (1, True), (4, True)):
        h = kinetic_energies.power(p)
        energy = nl.kinetic_energy(nl.natural_gradient(h, 0.5, 1.0))(0.0, Q, V)
        assert kinetic_energies.energy_by_integral(h, Q, V, 0.5).allclose(energy, rtol=1e-13, atol=0)
        for other in (kinetic_energies.quadratic_energy, kinetic_energies.energy_of_swapped_arguments):
            assert other(h, Q, V, 0.5).allclose(energy, rtol=1e-3, atol=0) != curved


def test_a_run_from_a_turned_start_is_the_turned_run_and_from_a_scaled_one_is_not():
    def well(q):
        return torch.log1p(q @ q)

    def sgd(weights):
        return torch.optim.SGD(weights, lr=0.1)

    for symmetry, same in ((nl.rotation(plane=(0, 1)), True), (nl.scale(), False)):
        run = transformed_starts.train(sgd, well, Q, steps=20)
        moved = transformed_starts.train(sgd, well, symmetry(Q, 0.7), steps=20)
        assert (transformed_starts.distance_to_image(run, moved, symmetry, 0.7) < 1e-12) == same


def test_eps_breaks_the_scale_as_predicted():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    layers = [nn.Linear(3, 4, bias=False), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, eps=0.1)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 2)).double()
    f = nl.flat_loss(model, x, y, nn.functional.mse_loss)
    predicted = transformed_starts.slope_left_by_eps(f, f.q0, x, eps=0.1)
    weights = f.slices["1.weight"]
    assert torch.func.grad(f)(f.q0)[weights] @ f.q0[weights] == pytest.approx(predicted.item(), rel=1e-10)
    assert predicted.abs() > 1e-4


# --- charges --------------------------------------------------------------------------------------------------------


def rays(q):
    return 1 - 2 * q[0] * q[1] / (q @ q)


def test_a_charge_changes_by_what_the_slid_lagrangian_does():
    L = nl.lagrangian(nl.newtonian(), rays)
    times = torch.linspace(0, 1, 257, dtype=torch.float64)
    path = nl.integrate(nl.newtonian(), rays, [1.0, -0.45], [-0.6, 0.3], t_span=(0, 1), t_eval=times, rtol=1e-12)
    charge, slope = charges.change_by_sliding(L, L, nl.scale(), path)
    assert torch.allclose(charge, (path.q * path.v).sum(1))
    assert (charge[-1] - charge[0]).item() == pytest.approx(romb(slope.numpy(), dx=1 / 256), abs=1e-10)


def test_a_charge_without_income_decays():
    t = torch.linspace(1, 3, 5).double()
    found = charges.damped_charge(t, torch.tensor(2.0).double(), mass=0.5, friction=0.25)
    assert torch.allclose(found, 2 * torch.exp(-(t - 1) / 2))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_account_of_heavy_ball_closes_at_every_step_and_for_every_charge(decay):
    rule = nl.sgd(0.1, 0.8, decay)
    run = nl.descend(rule, rays, [1.0, -0.45], steps=20)
    charge, entries = charges.discrete_entries(rule, nl.scale(), run)
    assert torch.allclose(charge.diff(), entries.sum(0), atol=1e-14)
    rest, memory = charges.heavy_ball_memory(run, [nl.scale()], 0.1, 0.8, decay)
    assert torch.allclose(rest, memory, atol=1e-14)
    assert memory.abs().min() > 1e-8
    blind = nl.descend(rule, bowl, [1.0, -0.45], steps=20)  # a loss without the symmetry
    charge, entries = charges.discrete_entries(rule, nl.scale(), blind)
    assert (charge.diff() - entries.sum(0)).abs().max() > 1e-3


# --- walks of groups --------------------------------------------------------------------------------------------------


def test_even_steps_have_order_2_and_straight_ones_order_1():
    A = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    exact = torch.linalg.matrix_exp(A)
    straight = [torch.linalg.matrix_power(torch.eye(4) + A / n, n) - exact for n in (400, 800)]
    even = [group_walks.even_steps(A, n) - exact for n in (400, 800)]
    assert nl.convergence_order([2, 1], [gap.norm() for gap in straight]) == pytest.approx(1, abs=0.05)
    assert nl.convergence_order([2, 1], [gap.norm() for gap in even]) == pytest.approx(2, abs=0.05)


def test_an_orbit_begins_and_ends_where_the_group_says():
    A = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    points = group_walks.orbit(A, Q, 0.0, torch.pi / 2)
    assert torch.allclose(points[0], Q, atol=1e-14)
    assert torch.allclose(points[-1], torch.stack([-Q[1], Q[0]]), atol=1e-14)


@pytest.mark.parametrize(("kind", "count"), [("rotation", 4), ("scale", 12), ("rescale", 12), ("shear", 8)])
def test_orbits_have_their_starts(kind, count):
    assert len(group_walks.starts_of_orbits(kind)) == count


def test_an_unknown_kind_of_orbit_is_told():
    with pytest.raises(ValueError, match="shear"):
        group_walks.starts_of_orbits("spiral")


def test_gauss_integrates_between_the_ends():
    t, weights = group_walks.gauss_times(0.5, 2.5)
    assert t[0] == 0.5
    assert t[-1] == 2.5
    assert (t.diff() > 0).all()
    assert (weights @ t[1:-1].exp()).item() == pytest.approx(
        torch.tensor([2.5, 0.5]).exp().diff().neg().item(), rel=1e-6
    )
    assert weights.sum().item() == pytest.approx(2, abs=1e-14)
