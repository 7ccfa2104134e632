"""The calculus of a Lagrangian, against motions known in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlcompanion._arguments import as_point
from nlcompanion.mechanics import (
    acceleration,
    action,
    along,
    discrete_action,
    energy,
    euler_lagrange,
    first_variation,
    generalized_momentum,
    lift,
    stationary_path,
    variational_derivative,
)
from nlcompanion.mechanics.lagrangian import acceleration_of_numbers

number = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 6))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def oscillator(t, q, v):
    return 0.5 * v @ v - 0.5 * q @ q


def pendulum(t, q, v):
    return 0.5 * v @ v + torch.cos(q).sum()


def magnet(t, q, v):
    """A charge in a uniform magnetic field: momentum is not mass times velocity."""
    return 0.5 * v @ v + 0.5 * (q[0] * v[1] - q[1] * v[0])


# --- derivatives at a point ---------------------------------------------------------------------------------------


@given(st.tuples(number, number), st.tuples(number, number), st.floats(0.1, 5), st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_acceleration_of_a_damped_particle(q, v, mass, friction):
    L = lambda t, q, v: torch.exp(friction / mass * t) * (mass / 2 * v @ v - (q**4).sum() / 4)  # noqa: E731
    a = acceleration(L)(0.7, vector(*q), vector(*v))
    expected = (-friction * vector(*v) - vector(*q) ** 3) / mass
    assert torch.allclose(a, expected, rtol=1e-12, atol=1e-12)


def test_velocity_dependent_forces():
    a = acceleration(magnet)(0.0, vector(1, 2), vector(3, -4))
    assert torch.allclose(a, vector(-4, -3))  # a = v x B, at right angles to v
    assert torch.allclose(generalized_momentum(magnet)(0.0, vector(1, 2), vector(3, -4)), vector(2, -3.5))


def test_relativistic_mass():
    L = lambda t, q, v: -torch.sqrt(1 - v @ v) - 0.5 * q @ q  # noqa: E731
    q, v = vector(0.3), vector(0.6)
    assert torch.allclose(acceleration(L)(0.0, q, v), -q * (1 - v @ v) ** 1.5, rtol=1e-13)


def polar(t, x):
    return x[0] * torch.stack([torch.cos(x[1]), torch.sin(x[1])])


LAGRANGIANS = {
    "magnet": magnet,
    "friction, a force that depends on time": lambda t, q, v: t.exp() * (0.7 * v @ v - t * (q**4).sum()),
    "a jvp inside": lambda t, q, v: pendulum(*lift(polar)(t, q, v)),
    "a gradient inside": lambda t, q, v: 0.5 * v @ v - torch.func.grad(lambda x: (x**3).sum())(q) @ v.sin(),
    "free": lambda t, q, v: 0.5 * v @ v,
}


@pytest.mark.parametrize("name", LAGRANGIANS)
@given(st.tuples(number, number), st.tuples(number, number))
@settings(max_examples=10, deadline=None)
def test_a_solvers_acceleration_is_the_same(name, q, v):
    """By plain autograd; that at a moved place is the control."""
    L, place = LAGRANGIANS[name], vector(*q) + vector(4, 0)  # polar coordinates need a radius
    expected = acceleration(L)(0.3, place, vector(*v))
    assert torch.allclose(acceleration_of_numbers(L)(0.3, place, vector(*v)), expected, rtol=1e-9, atol=1e-9)
    if name != "free":
        moved = acceleration_of_numbers(L)(0.3, place + vector(0.1, 0.2), vector(*v) + vector(0.3, 0.1))
        assert not torch.allclose(moved, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", [acceleration, acceleration_of_numbers])
@pytest.mark.parametrize("L", [lambda t, q, v: q.sum() * t, lambda t, q, v: v.sum(), lambda t, q, v: torch.zeros(())])
def test_without_mass_there_is_no_acceleration(solver, L):
    with pytest.raises(ValueError, match=r"mass matrix d2L/dv2 is singular at t = 0\.5"):
        solver(L)(0.5, vector(1, 2), vector(3, 4))


def test_energy_is_kinetic_plus_potential_and_the_control_is_not():
    q, v = vector(1, 2), vector(3, 4)
    assert energy(oscillator)(0.0, q, v).item() == pytest.approx(15.0, rel=1e-15)
    assert energy(oscillator)(0.0, q, v).item() != pytest.approx(oscillator(0.0, q, v).item())


def test_singular_mass_matrix_is_named():
    with pytest.raises(ValueError, match="singular at t = 0"):
        acceleration(lambda t, q, v: 0.5 * v[0] ** 2 - q @ q)(0.0, vector(1, 1), vector(0, 0))


@pytest.mark.parametrize("f", [generalized_momentum, acceleration, energy])
def test_a_lagrangian_must_be_scalar(f):
    with pytest.raises(TypeError, match="scalar"):
        f(lambda t, q, v: v)(0.0, vector(1.0, 2.0), vector(1.0, 2.0))


# --- along a path -------------------------------------------------------------------------------------------------


@given(number, number, st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_residual_vanishes_on_motions_only(a, b, t):
    motion = lambda t: torch.stack([a * torch.cos(t) + b * torch.sin(t)])  # noqa: E731
    assert euler_lagrange(oscillator, motion)(t).abs().item() < 1e-13
    wrong = lambda t: motion(t) + 0.1 * t**2  # noqa: E731
    expected = 0.2 + 0.1 * t**2
    assert euler_lagrange(oscillator, wrong)(t).item() == pytest.approx(expected, rel=1e-10)


def test_residual_with_explicit_time():
    L = lambda t, q, v: t**3 * (0.5 * v @ v - 0.5 * q @ q)  # noqa: E731
    path = lambda t: torch.stack([t**2])  # noqa: E731
    # d/dt (t^3 2t) + t^3 t^2
    assert euler_lagrange(L, path)(1.5).item() == pytest.approx(8 * 1.5**3 + 1.5**5, rel=1e-13)


def test_action_of_an_oscillator():
    motion = lambda t: torch.stack([torch.cos(t)])  # noqa: E731
    exact = -math.sin(2 * 1.3) / 4  # the integral of (sin^2 - cos^2) / 2
    assert action(oscillator, motion, (0.0, 1.3)) == pytest.approx(exact, rel=1e-11)


def test_lift_gives_the_same_motion_in_polar_coordinates():
    plane = lambda t, x: torch.stack([x[0] * torch.cos(x[1]), x[0] * torch.sin(x[1])])  # noqa: E731
    polar = lambda t, x, u: oscillator(*lift(plane)(t, x, u))  # noqa: E731
    x, u = vector(1.3, 0.4), vector(-0.2, 0.7)
    radial, angular = acceleration(polar)(0.0, x, u)
    assert radial.item() == pytest.approx((x[0] * u[1] ** 2 - x[0]).item(), rel=1e-12)
    assert angular.item() == pytest.approx((-2 * u[0] * u[1] / x[0]).item(), rel=1e-12)


def test_lift_of_a_moving_frame():
    t, Q, V = lift(lambda t, q: q + t**2)(2.0, vector(1.0), vector(3.0))
    assert (t.item(), Q.item(), V.item()) == (2.0, 5.0, 7.0)


@given(number, number, number)
@settings(max_examples=3, deadline=None)
def test_first_variation_is_the_slope_of_the_action(a, b, c):
    """The action of a quartic potential is a quartic in the deformation: a five-point difference is exact."""
    L = lambda t, q, v: torch.exp(0.3 * t) * (0.5 * v @ v - (q**4).sum() / 4)  # noqa: E731
    path = lambda t: torch.stack([torch.sin(2 * t) + a])  # noqa: E731
    bump = lambda t: torch.stack([b * torch.cos(t) + c * t])  # noqa: E731
    S = lambda e: action(L, lambda t: path(t) + e * bump(t), (0.0, 1.0))  # noqa: E731
    slope = (8 * (S(1) - S(-1)) - S(2) + S(-2)) / 12
    varied = first_variation(L, path, bump, (0.0, 1.0))
    assert varied == pytest.approx(slope, rel=1e-9, abs=1e-9)
    ends = [generalized_momentum(L)(*along(path)(t)) @ bump(torch.tensor(t).double()) for t in (0.0, 1.0)]
    x, weights = np.polynomial.legendre.leggauss(12)  # to rounding, of motions as slow as these
    times = torch.from_numpy((1 + x) / 2)
    forces = [(euler_lagrange(L, path)(t) @ bump(t)).item() for t in times]
    inside = -weights @ forces / 2
    assert varied == pytest.approx((ends[1] - ends[0]).item() + inside, rel=1e-9, abs=1e-9)


# --- discretised paths --------------------------------------------------------------------------------------------


def _slope(values, steps):
    return math.log(values[0] / values[-1]) / math.log(steps[-1] / steps[0])


def test_discrete_action_by_hand():
    """Two pieces with velocities 4 and -2; GU Eq. 8 takes time and place at left ends; or both at middles."""
    t, q = torch.tensor([0, 0.5, 1]).double(), torch.tensor([[1.0], [3.0], [2.0]]).double()
    L = lambda t, q, v: t * v[0] + q[0]  # noqa: E731
    assert discrete_action(L, t, q).item() == 0.5 * ((0 * 4 + 1) + (0.5 * -2 + 3))
    assert discrete_action(L, t, q, midpoint=True).item() == 0.5 * ((0.25 * 4 + 2) + (0.75 * -2 + 2.5))


def test_discrete_action_and_its_derivative_converge_with_order_one():
    path = lambda t: torch.sin(2 * t)[..., None] + 0.3 * t[..., None] ** 2  # noqa: E731
    exact = action(pendulum, path, (0.0, 1.0))
    residual = euler_lagrange(pendulum, path)(0.5)
    errors, middle_errors, derivative_errors, sizes = [], [], [], (64, 128, 256, 512)
    for n in sizes:
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        errors.append(abs(discrete_action(pendulum, t, path(t)).item() - exact))
        middle_errors.append(abs(discrete_action(pendulum, t, path(t), midpoint=True).item() - exact))
        middle = variational_derivative(pendulum, t, path(t))[n // 2 - 1]
        derivative_errors.append((middle + residual).abs().item())
    assert _slope(errors, sizes) == pytest.approx(1, abs=0.1)
    assert _slope(middle_errors, sizes) == pytest.approx(2, abs=0.1)
    assert derivative_errors[-1] < 1e-4  # here even order 2: the leading term is odd about the node


def test_variational_derivative_with_explicit_time_is_order_one():
    L = lambda t, q, v: t**3 * (0.5 * v @ v - 0.5 * q @ q)  # noqa: E731
    path = lambda t: torch.sin(2 * t)[..., None]  # noqa: E731
    sizes, errors = (64, 128, 256, 512), []
    for n in sizes:
        t = torch.linspace(1, 2, n + 1, dtype=torch.float64)
        middle = variational_derivative(L, t, path(t))[n // 2 - 1]
        errors.append((middle + euler_lagrange(L, path)(1.5)).abs().item())
    assert _slope(errors, sizes) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("method", ["newton", "minimize"])
def test_stationary_path_is_the_motion(method):
    span, ends = (0.0, 2.0), (0.3, 1.0)
    found = stationary_path(oscillator, [ends[0]], [ends[1]], span, segments=400, method=method)
    b = (ends[1] - ends[0] * math.cos(2)) / math.sin(2)
    exact = ends[0] * torch.cos(found.t) + b * torch.sin(found.t)
    assert (found.q[:, 0] - exact).abs().max() < 1e-5
    assert found.index == 0


@pytest.mark.parametrize(
    ("L", "span", "motion"),
    [
        (oscillator, (0.0, 2.0), lambda t: torch.sin(t) / math.sin(2)),
        (lambda t, q, v: t * 0.5 * v @ v, (1.0, 3.0), lambda t: torch.log(t) / math.log(3)),  # a mass that grows
    ],
)
def test_stationary_path_is_order_two(L, span, motion):
    errors, sizes = [], (20, 40, 80)
    for n in sizes:
        found = stationary_path(L, [0.0], [1.0], span, segments=n)
        errors.append((found.q[:, 0] - motion(found.t)).abs().max().item())
    assert _slope(errors, sizes) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("T", "index"), [(3.0, 0), (3.3, 1), (6.2, 1), (6.4, 2), (9.6, 3)])
def test_morse_index_counts_conjugate_points(T, index):
    assert stationary_path(oscillator, [0.0], [1.0], (0.0, T), segments=200).index == index


def test_beyond_the_conjugate_point_there_is_no_minimum():
    with pytest.raises(RuntimeError, match="no minimum"):
        stationary_path(oscillator, [0.0], [1.0], (0.0, 4.0), method="minimize")


def test_coupled_coordinates_and_anharmonic_forces():
    L = lambda t, q, v: 0.5 * v @ v + 0.4 * (q[0] * v[1] - q[1] * v[0]) - (q**4).sum() / 4  # noqa: E731
    found = stationary_path(L, [1.0, 0.0], [0.0, 1.0], (0.0, 1.0), segments=200)
    h = (found.t[1] - found.t[0]).item()
    v = (found.q[2:] - found.q[:-2]) / (2 * h)
    a = (found.q[2:] - 2 * found.q[1:-1] + found.q[:-2]) / h**2
    solved = torch.stack([acceleration(L)(t, q, u) for t, q, u in zip(found.t[1:-1], found.q[1:-1], v, strict=True)])
    assert (a - solved).abs().max() < 1e-3


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_bad_spans(span):
    with pytest.raises(ValueError, match="no interval"):
        action(oscillator, lambda t: torch.stack([t]), span)


def test_bad_nodes():
    t = torch.linspace(0, 1, 5).double()
    with pytest.raises(ValueError, match="shape"):
        discrete_action(oscillator, t, t)
    with pytest.raises(ValueError, match="evenly"):
        discrete_action(oscillator, t**2, t[:, None])
    with pytest.raises(ValueError, match="both ends"):
        stationary_path(oscillator, [0.0], [1.0, 2.0], (0, 1))
    with pytest.raises(ValueError, match="unknown"):
        stationary_path(oscillator, [0.0], [1.0], (0, 1), method="guess")
    with pytest.raises(ValueError, match="inner node"):
        stationary_path(oscillator, [0.0], [1.0], (0, 1), segments=1)
    with pytest.raises(ValueError, match="guess has shape"):
        stationary_path(oscillator, [0.0], [1.0], (0, 1), guess=t[:, None])


@given(st.integers(0, 3), st.sampled_from(["nan", "shape", "dtype", "text"]))
@settings(max_examples=20, deadline=None)
def test_points_are_checked(extra, fault):
    good = torch.arange(1.0 + extra)
    bad = {
        "nan": torch.full((1 + extra,), math.nan),
        "shape": good.reshape(1, -1),
        "dtype": good.to(torch.int64),
        "text": ["one"] * (1 + extra),
    }[fault]
    assert as_point("q0", good).dtype == torch.float64
    with pytest.raises((TypeError, ValueError), match="q0"):
        as_point("q0", bad)
