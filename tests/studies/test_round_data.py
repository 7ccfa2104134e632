"""The studies behind the chapter on data symmetry."""

import math

import pytest
import torch
from torch.func import grad

import nlcompanion as nl
from studies import round_data, turned_digits


def test_derivatives_of_a_path_are_of_order_eight():
    errors = []
    for points in (26, 51):
        t = torch.linspace(0, 2, points, dtype=torch.float64)
        slope = round_data.path_derivative(t, torch.stack([t.sin(), t.exp()], 1))
        inside = round_data.inner(t)
        errors.append(float((slope - torch.stack([inside.cos(), inside.exp()], 1)).abs().max()))
    assert errors[1] < errors[0] / 150 < 1e-10


def test_the_bracket_of_a_path_knows_a_torque():
    """Velocities set to the negative gradient have no moment on a round loss; a bent path has."""
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    spiral = torch.stack([t.exp() * t.cos(), t.exp() * t.sin()], 1)
    velocity = round_data.path_derivative(t, spiral)
    q = round_data.inner(spiral)
    moment = velocity[:, 0] * q[:, 1] - velocity[:, 1] * q[:, 0]
    assert torch.allclose(moment, -q.square().sum(1), rtol=1e-10)


def test_polyhedra_average_up_to_their_degree():
    """Tetrahedron 2, cube 3, icosahedron 5, as designs of Delsarte, Goethals and Seidel; one degree on they fail."""
    for name, order, degree in (("tetrahedron", 12, 2), ("cube", 24, 3), ("icosahedron", 60, 5)):
        rotations = round_data.polyhedral(name)
        assert len(rotations) == order
        kept = [float(round_data.invariant_waves(rotations, d)) for d in range(1, degree + 2)]
        assert kept[:-1] == pytest.approx([0] * degree, abs=1e-12)
        assert kept[-1] == pytest.approx(1)


def test_an_orbit_of_the_icosahedron_is_round_for_polynomials_of_degree_five():
    orbit = round_data.polyhedral("icosahedron") @ torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64)
    r = 0.62**0.5
    a = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64)
    mean = lambda power: float((orbit @ a).pow(power).mean())  # noqa: E731
    size = float(a.norm()) * r
    assert mean(4) == pytest.approx(size**4 / 5, rel=1e-12)  # as the average over the sphere
    assert mean(5) == pytest.approx(0, abs=1e-12)
    assert abs(mean(6) / size**6 - 1 / 7) > 1e-3  # the control


def test_random_rotations_are_rotations():
    R = round_data.random_rotations((5, 4), torch.Generator().manual_seed(0))
    assert R.shape == (5, 4, 3, 3)
    assert torch.allclose(R @ R.mT, torch.eye(3, dtype=torch.float64).expand_as(R), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(5, 4, dtype=torch.float64))


def test_copies_turn_inputs_and_repeat_targets():
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.arange(4.0, dtype=torch.float64)
    f = nl.flat_loss(nl.mlp((3, 2, 1), seed=0), x, y, lambda out, y: (out[:, 0] - y).square().mean())
    R = round_data.polyhedral("tetrahedron")
    copied = round_data.with_copies(f, x, y, R)
    by_hand = torch.stack([f.on(x @ turn.T, y)(f.q0) for turn in R]).mean()
    assert torch.allclose(copied(f.q0), by_hand)


def test_march_is_descend():
    f = lambda q: (q @ q - 1) ** 2 + q[0]  # noqa: E731
    q0, v0 = torch.tensor([0.6, 0.2]).double(), torch.zeros(2).double()
    points = round_data.march(f, q0, v0, lambda n, dt: (1.0, dt**2), 0.1, until=1.5)
    q = q0 - 0.01 * grad(f)(q0)  # from rest the first two points are one
    assert torch.equal(points[:2], q0.expand(2, 2))
    assert torch.allclose(points[2], q)
    assert torch.allclose(points[3], 2 * q - q0 - 0.01 * grad(f)(q))


def test_the_area_of_a_run_is_a_random_walk():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coarse, fine = (
        round_data.root_mean_square(round_data.areas_swept(lr, 8, start=start, runs=256, time=2.0))
        for lr in (0.1, 0.025)
    )
    assert 1.5 < coarse / fine < 2.6  # 2 within five standard errors
    stuck = [
        round_data.root_mean_square(round_data.areas_swept(lr, 8, start=start, runs=64, time=2.0, fresh=False))
        for lr in (0.1, 0.025)
    ]
    assert stuck[0] / stuck[1] < 1.3  # the control: one batch all the time


def test_slopes_and_their_errors():
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 4, 16, 64]
    draws = torch.randn(4, 800, generator=generator, dtype=torch.float64) / torch.tensor(sizes)[:, None] ** 0.5
    slope, error = round_data.slope_with_error(sizes, draws)
    assert abs(slope + 0.5) < 4 * error < 0.1


def test_lemmas_on_traces():
    units = torch.eye(9, dtype=torch.float64).view(9, 3, 3)
    assert len(round_data.blind_to(units)) == 0
    skew = nl.so(3).basis.double()
    blind = round_data.blind_to(skew)
    assert len(blind) == 6
    assert torch.allclose(blind, blind.mT, atol=1e-14)
    assert len(round_data.blind_to(skew[:-1])) == 7


def test_the_oscillator_turns_pictures():
    pictures, G = turned_digits.smooth_pictures()
    assert torch.allclose(pictures.T @ pictures, torch.eye(36, dtype=torch.float64), atol=1e-12)
    assert torch.equal(G, -G.T)
    frequencies = torch.linalg.eigvals(G).imag
    assert torch.allclose(frequencies, frequencies.round(), atol=1e-8)
    images = torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quarter = turned_digits.turned(images @ pictures, G, math.pi / 2)
    assert torch.allclose(quarter, images[:, turned_digits.QUARTER] @ pictures, atol=1e-12)
    eighth = turned_digits.turned(turned_digits.turned(images @ pictures, G, math.pi / 4), G, math.pi / 4)
    assert torch.allclose(eighth, quarter, atol=1e-12)


def test_interpolation_is_no_rotation():
    images = torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quarter = turned_digits.interpolated(images, math.pi / 2)
    assert torch.allclose(quarter, images[:, turned_digits.QUARTER], atol=1e-6)
    twice = turned_digits.interpolated(turned_digits.interpolated(images, math.pi / 4), math.pi / 4)
    assert (twice - quarter).norm() > 0.1 * quarter.norm()


def test_a_share_is_a_cosine():
    G = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64)
    turning = q @ G
    bracket = lambda v: v.T @ q - q.T @ v  # noqa: E731
    assert turned_digits.share_along(bracket(turning), G, turning, q) == pytest.approx(1)
    assert turned_digits.share_along(bracket(q), G, q, q) == pytest.approx(0, abs=1e-15)
