"""Linearised training, against linear models, closed forms and SciPy's matrix exponential."""

import math

import numpy as np
import pytest
import torch
from grids import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlcompanion.dynamics import (
    damped,
    general,
    gradient_flow,
    integrate,
    linearized_dynamics,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.networks import flat_loss, mlp, ntk, ntk_product

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=G, dtype=torch.float64)
Z = torch.randn(3, 4, generator=G, dtype=torch.float64)
Y = torch.randn(6, 2, generator=G, dtype=torch.float64)
HALF_SUM = lambda u, y: 0.5 * (u - y).square().sum()  # noqa: E731

RULES = {
    "gradient flow": gradient_flow(),
    "Newtonian": newtonian(),
    "underdamped": damped(mass=1.0, friction=0.3),
    "overdamped": damped(mass=0.01, friction=1.0),
    "sgd": sgd(lr=0.1),
    "heavy ball": sgd(lr=0.02, momentum=0.9),
    "Nesterov": nesterov(),
    "general": general(lambda t: 1 + 0.1 * t, lambda t: 0.5 + 0.0 * t),
}


@pytest.mark.parametrize(("name", "mean"), covering(RULES, [False, True]))
def test_exact_for_a_linear_model(name, mean):
    """Its outputs in a flow of the parameters are the kernel's, at training points and elsewhere."""
    rule, net = RULES[name], mlp((4, 2), seed=3)
    loss = nn.functional.mse_loss if mean else HALF_SUM
    f = flat_loss(net, X, Y, loss)
    t0 = 0.5 if name == "Nesterov" else 0.0
    times = torch.linspace(t0, 6, 13, dtype=torch.float64)
    run = integrate(rule, f, f.q0, t_span=(t0, 6), t_eval=times, rtol=1e-11, atol=1e-13)
    settings = {"weight": 2 / Y.numel() if mean else 1.0, "t0": t0}
    u0 = f.outputs(f.q0)
    u = linearized_dynamics(ntk(f, X), u0, Y, times, rule, **settings)
    there = linearized_dynamics(
        ntk(f, X), u0, Y, times, rule, cross=ntk(f, Z, X), u0_cross=f.outputs(f.q0, Z), **settings
    )
    assert u.shape == (13, 6, 2)
    assert there.shape == (13, 3, 2)
    assert (u - torch.stack([f.outputs(q) for q in run.q])).abs().max() < 1e-8
    assert (there - torch.stack([f.outputs(q, Z) for q in run.q])).abs().max() < 1e-8
    wrong = linearized_dynamics(ntk(f, X), u0, Y, times, rule, t0=t0, weight=1.3 * settings["weight"])
    assert (u - wrong).abs().max() > 1e-2


@given(st.floats(0.0, 50.0), st.floats(0.01, 3.0), st.floats(0.0, 3.0), st.floats(0.0, 5.0))
@settings(max_examples=50, deadline=None)
def test_one_damped_mode(curvature, mass, friction, t):
    """Against SciPy's matrix exponential; over-, under- and critically damped."""
    from scipy.linalg import expm

    for mu in (friction, 2 * math.sqrt(mass * curvature)):
        matrix = np.array([[0.0, 1.0], [-curvature / mass, -mu / mass]])
        u = linearized_dynamics([[curvature]], [1.0], [0.0], [t], damped(mass, mu))
        assert u.item() == pytest.approx(expm(matrix * t)[0, 0], rel=1e-7, abs=1e-7)


def test_a_tiny_mass_is_gradient_flow():
    t = torch.linspace(0.01, 3, 7)
    heavy = linearized_dynamics([[2.0]], [1.0], [0.0], t, damped(mass=1e-9, friction=1.0))
    assert (heavy - linearized_dynamics([[2.0]], [1.0], [0.0], t)).abs().max() < 1e-7


def test_nesterov_from_zero_and_the_printed_sign():
    from scipy.special import j1

    t = np.linspace(0, 5, 11)
    u = linearized_dynamics([[9.0]], [0.0], [1.0], t, nesterov())
    with np.errstate(invalid="ignore"):
        assert np.allclose(u[:, 0], np.where(t > 0, 1 - 2 * j1(3 * t) / (3 * t), 0.0), atol=1e-14)
    u = linearized_dynamics([[9.0]], [0.0], [1.0], t, newtonian())
    assert np.allclose(u[:, 0], 1 - np.cos(3 * t), atol=1e-14)
    assert abs(u - torch.from_numpy(1 - np.cosh(3 * t))[:, None]).max() > 1e3


@pytest.mark.parametrize("name", RULES)
def test_a_flat_mode_does_not_move_under_its_gradient(name):
    H = torch.tensor([[2.0, 2.0], [2.0, 2.0]], dtype=torch.float64)  # eigenvalues 4 and 0
    t0 = 0.5 if name == "Nesterov" else 0.0
    u = linearized_dynamics(H, [1.0, -1.0], [0.0, 0.0], [t0, 2.0], RULES[name], t0=t0)
    assert (u - torch.tensor([1.0, -1.0])).abs().max() < 1e-12
    u = linearized_dynamics(H, [1.0, 1.0], [0.0, 0.0], [t0, 2.0], RULES[name], t0=t0)
    assert (u[-1] - 1).abs().max() > 0.1


def test_kernels_that_no_network_has():
    with pytest.raises(ValueError, match="negative eigenvalue, -1"):
        linearized_dynamics([[1.0, 2.0], [2.0, 1.0]], [1.0, 1.0], [0.0, 0.0], [1.0])
    for weight in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="weight must be positive"):
            linearized_dynamics([[1.0]], [1.0], [0.0], [1.0], weight=weight)
    for H, u in ((math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="not finite"):
            linearized_dynamics([[H]], [u], [0.0], [1.0])
    with pytest.raises(ValueError, match="without cross="):
        linearized_dynamics([[1.0]], [1.0], [0.0], [1.0], u0_cross=[1.0])
    rank_one = torch.ones(40, 40) + 1e-6 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    u = linearized_dynamics((rank_one + rank_one.T) / 2, torch.ones(40), torch.zeros(40), [1.0])  # rounding may
    assert torch.isfinite(u).all()


def test_times_in_any_order():
    for rule in (newtonian(), RULES["general"]):
        u = linearized_dynamics([[2.0]], [1.0], [0.0], [0.0, 3.0, 1.0, 3.0], rule)
        assert u[1] == u[3] != u[2]
        assert u[0] == 1.0


def test_what_linearised_dynamics_refuses():
    H, u = torch.eye(2), torch.zeros(2)
    with pytest.raises(ValueError, match="has weight decay"):
        linearized_dynamics(H, u, u, [1.0], sgd(lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="has a metric"):
        linearized_dynamics(H, u, u, [1.0], natural_gradient(lambda q: q.exp().sum(), 1.0, 1.0))
    with pytest.raises(TypeError, match="must be a LearningRule"):
        linearized_dynamics(H, u, u, [1.0], "newtonian")
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 2\), .* need \(3, 3\)"):
        linearized_dynamics(H, torch.zeros(3), torch.zeros(3), [1.0])
    with pytest.raises(ValueError, match="not symmetric"):
        linearized_dynamics(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), u, u, [1.0])
    with pytest.raises(ValueError, match="none before t0 = 1"):
        linearized_dynamics(H, u, u, [0.5], t0=1.0)
    with pytest.raises(ValueError, match="pass u0_cross="):
        linearized_dynamics(H, u, u, [0.5], cross=H)
    with pytest.raises(ValueError, match=r"u0 has shape \(2,\) and y \(1,\)"):
        linearized_dynamics(H, u, torch.zeros(1), [0.5])


# --- a kernel of which there is only a map -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_a_map_predicts_what_its_matrix_does(name):
    rule, f = RULES[name], flat_loss(mlp((4, 30, 2), "tanh", seed=3), X, Y, HALF_SUM)
    t0 = 0.5 if name == "Nesterov" else 0.0
    times = torch.linspace(t0, 6, 13, dtype=torch.float64)
    u0, elsewhere = f.outputs(f.q0), {"u0_cross": f.outputs(f.q0, Z)}
    H, K = (ntk_product(f, *points) for points in ((X,), (Z, X)))
    for cross, known in (({}, {}), ({"cross": K, **elsewhere}, {"cross": ntk(f, Z, X), **elsewhere})):
        predicted = linearized_dynamics(H, u0, Y, times, rule, t0=t0, weight=0.7, **cross)
        exact = linearized_dynamics(ntk(f, X), u0, Y, times, rule, t0=t0, weight=0.7, **known)
        assert (predicted - exact).abs().max() < 1e-8
    careless = linearized_dynamics(H, u0, Y, times, rule, t0=t0)  # the control: another weight
    exact = linearized_dynamics(ntk(f, X), u0, Y, times, rule, t0=t0, weight=0.7)
    assert (careless - exact).abs().max() > 1e-3


def test_a_map_of_many_points_is_asked_few_times():
    """A spectrum that falls off, as kernels' do, over 2,000 points: some thirty products stand for all modes."""
    n, g, calls, asked = 2000, torch.Generator().manual_seed(0), [], []
    curvature = 1.0 / torch.arange(1, n + 1, dtype=torch.float64) ** 2
    start = torch.randn(n, generator=g, dtype=torch.float64)

    def product(r):
        calls.append(r)
        return curvature * r

    t = torch.tensor([0.0, 1.0, 10.0, 100.0], dtype=torch.float64)
    for tolerance, within in ((1e-10, 1e-9), (1e-4, 1e-3)):
        calls.clear()
        u = linearized_dynamics(product, start, torch.zeros(n), t, newtonian(), tolerance=tolerance)
        exact = torch.cos(curvature.sqrt() * t[:, None]) * start
        assert (u - exact).norm(dim=1).max() < within * start.norm()
        asked.append(len(calls))
    assert asked[1] < asked[0] < 150  # a loose tolerance ends earlier


def test_a_map_is_asked_as_often_whatever_the_size_of_the_residual():
    """The tolerance is a share of it."""
    curvature = 1.0 / torch.arange(1, 301, dtype=torch.float64) ** 2
    start, zero, t = torch.ones(300).double(), torch.zeros(300).double(), torch.tensor([0.0, 10.0, 100.0]).double()
    exact = torch.cos(curvature.sqrt() * t[:, None]) * start
    asked = []
    for size in (1.0, 1e-6, 1e6):
        calls = []

        def product(r, calls=calls):
            calls.append(r)
            return curvature * r

        u = linearized_dynamics(product, size * start, zero, t, newtonian(), tolerance=1e-8)
        assert (u / size - exact).norm(dim=1).max() < 1e-6 * start.norm()
        asked.append(len(calls))
    assert asked[0] == asked[1] == asked[2] < 100


def test_a_map_from_a_start_that_lies_in_few_modes():
    curvature = torch.tensor([4.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    H = lambda r: curvature * r  # noqa: E731
    zero, t = torch.zeros(4), [0.0, 1.0, 2.0]
    assert (linearized_dynamics(H, zero, zero, t) == 0).all()
    u = linearized_dynamics(H, [1.0, 0.0, 0.0, 0.0], zero, t)  # the first mode alone
    assert torch.allclose(u[:, 0], torch.exp(-4 * torch.tensor(t).double()))
    u = linearized_dynamics(H, [1.0, 0.0, 1.0, 1.0], zero, t, newtonian())
    assert torch.allclose(u[:, 2], torch.ones(3).double())  # flat modes stay
    assert torch.allclose(u[:, 0], torch.cos(2 * torch.tensor(t).double()))


def test_maps_that_are_no_kernel():
    u = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lopsided = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(ValueError, match="not symmetric"):
        linearized_dynamics(lambda r: lopsided @ r, u, 0 * u, [1.0])
    with pytest.raises(ValueError, match="negative eigenvalue, -1"):
        linearized_dynamics(lambda r: -r, u, 0 * u, [1.0])
    with pytest.raises(ValueError, match=r"kernel\(r\) has shape \(3,\) for residuals of shape \(5,\)"):
        linearized_dynamics(lambda r: r[:3], u, 0 * u, [1.0])
    with pytest.raises(ValueError, match=r"kernel\(r\) holds a value that is not finite"):
        linearized_dynamics(lambda r: r / 0, u, 0 * u, [1.0])
    with pytest.raises(ValueError, match=r"cross\(r\) gives 5 numbers and u0_cross holds 2"):
        linearized_dynamics(lambda r: r, u, 0 * u, [1.0], cross=lambda r: r, u0_cross=u[:2])
