"""Normalisation as an adaptive optimiser: exact solutions, synthetic gradients of known persistence, real networks."""

import copy
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn
from torch.nn.functional import cross_entropy

from nlcompanion import adaptivity as ad
from nlcompanion import damped, descend, digits, flat_loss, integrate, mlp, sgd
from nlcompanion.book.results import read, write
from nlcompanion.datasets import DataError
from nlcompanion.monitoring import RadiusTracker
from nlcompanion.training import TrainConfig, load_sweep
from studies import figure4
from studies import implicit_adaptivity as experiments

F64 = torch.float64
LR, BETA, DECAY = 0.1, 0.9, 5e-3


def times(T, end=20.0):
    return torch.linspace(0, end, T, dtype=F64)


# --- radius_squared: exact where the gradient norm is a broken line -----------------------------------------------


@given(
    st.floats(1e-3, 0.5),
    st.floats(0, 0.97),
    st.sampled_from([0.0, 1e-9, 1e-4, 0.01, 1.0]),
    st.floats(0, 3),
    st.floats(-0.9, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_straight_line_of_gradients_is_exact_at_any_spacing(lr, beta, k, level, slope):
    """The integral of Eq. 17 by Gauss-Legendre quadrature, which is exact here to rounding."""
    rate, push = 4 * k / (1 - beta), 2 * lr * (1 + beta) / (1 - beta) ** 3
    G = lambda t: 1 + level + slope * t  # noqa: E731  positive on [0, 1]
    t = torch.tensor([0.0, 0.01, 0.3, 0.31, 0.9, 1.0], dtype=F64)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    exact = []
    for end in t.tolist():
        s = end * (nodes + 1) / 2
        integral = end / 2 * np.sum(weights * np.exp(-rate * (end - s)) * G(s))
        exact.append(push * integral + math.exp(-rate * end) * 4.0)
    found = ad.radius_squared(t, G(t), 2.0, lr=lr, momentum=beta, weight_decay=k)
    assert torch.allclose(found**2, torch.tensor(exact, dtype=F64), rtol=1e-11)


def test_it_solves_bernoullis_equation():
    """TK Eq. 32 with a smooth gradient norm, by an independent solver; order 2 in the spacing of the samples."""
    m, mu = LR * (1 + BETA) / 2, 1 - BETA
    G = lambda t: 2 + np.sin(3 * t)  # noqa: E731
    slope = lambda t, x: -2 * DECAY / mu * x + 2 * m / (mu**3 * x) * G(t)  # noqa: E731
    truth = solve_ivp(slope, (0, 20), [1.5], method="DOP853", rtol=1e-12, atol=1e-12).y[0, -1]

    def error(T):
        t = times(T)
        found = ad.radius_squared(t, torch.from_numpy(G(t.numpy())), 1.5, lr=LR, momentum=BETA, weight_decay=DECAY)
        return abs(found[-1].item() / truth - 1)

    assert error(4001) < 1e-6
    assert 3.8 < error(501) / error(1001) < 4.2
    without_decay = ad.radius_squared(times(4001), torch.full((4001,), 2.0), 1.5, lr=LR, momentum=BETA)
    assert abs(without_decay[-1].item() / truth - 1) > 0.01


def test_the_longest_runs_neither_overflow_nor_forget():
    T = 200_001
    t = torch.linspace(0, 1e9, T, dtype=F64)  # e^(lambda t) would be e^(2e8)
    found = ad.radius_squared(t, torch.ones(T), 1.0, lr=LR, momentum=BETA, weight_decay=DECAY)
    settled = ad.equilibrium(LR, DECAY, BETA, grad_norm=1.0).radius ** 2
    assert torch.isfinite(found).all()
    assert abs(found[-1].item() / settled - 1) < 1e-12
    undecayed = ad.radius_squared(t, torch.ones(T), 1.0, lr=LR, momentum=BETA)
    assert abs(undecayed[-1].item() ** 2 / (1 + 2 * LR * 1.9 / 0.1**3 * 1e9) - 1) < 1e-12


def test_many_weights_at_once_are_one_after_the_other():
    G = torch.rand(40, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    start, P = torch.arange(1.0, 7).view(3, 2), torch.tensor([0.3, 1.0])
    how = {"lr": LR, "momentum": BETA, "weight_decay": DECAY}
    together = ad.radius_squared(times(40), G, start, **how, persistence=P)
    for i, j in np.ndindex(3, 2):
        alone = ad.radius_squared(times(40), G[:, i, j], start[i, j], **how, persistence=P[j])
        assert torch.allclose(together[:, i, j], alone, rtol=1e-14)
    assert together.shape == G.shape


def test_gain_is_the_integral_term_alone():
    t, G = times(60), torch.rand(60, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    how = {"momentum": BETA, "weight_decay": DECAY}
    low, high = (ad.radius_gain(t, ad.radius_squared(t, G, r0, lr=LR, **how), **how) for r0 in (0.5, 3.0))
    assert torch.allclose(low[1:], high[1:], rtol=1e-12)
    doubled = ad.radius_gain(t, ad.radius_squared(t, G, 3.0, lr=LR, **how, persistence=2.0), **how)
    assert torch.allclose(doubled, 2 * high, rtol=1e-12)
    assert (high[0] == 0).all()
    with pytest.raises(ValueError, match="each time"):
        ad.radius_gain(t, G[:3] + 1, **how)


def test_one_time_is_the_start():
    assert ad.radius_squared([3.0], [1.0], 2.0, lr=0.1).tolist() == [2.0]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"t": [0.0, 1.0, 1.0]}, "increases"),
        ({"t": [0.0, 1.0]}, "2 times"),
        ({"grad_norm_squared": [1.0, -1.0, 1.0]}, "never below 0"),
        ({"grad_norm_squared": [1.0, math.nan, 1.0]}, "not finite"),
        ({"grad_norm_squared": 1.0}, "first dimension"),
        ({"r0_squared": 0.0}, "positive"),
        ({"r0_squared": [1.0, 1.0]}, "broadcast"),
        ({"persistence": -0.1}, "never below 0"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_radius_squared_says_what_is_wrong(change, fact):
    given = {"t": [0.0, 1.0, 2.0], "grad_norm_squared": [1.0, 1.0, 1.0], "r0_squared": 1.0, "lr": 0.1} | change
    with pytest.raises(ValueError, match=fact):
        ad.radius_squared(given.pop("t"), given.pop("grad_norm_squared"), given.pop("r0_squared"), **given)


# --- the exact equations --------------------------------------------------------------------------------------------


def hand(q):  # depends on the direction alone
    return 1.4 + (q[0] ** 3 - q[0] * q[1] * q[2]) / q.norm() ** 3 + 0.5 * q[1] / q.norm()


@pytest.mark.parametrize(("m", "mu", "k"), [(0.5, 0.3, 0.2), (0.1, 1.0, 0.0)])
def test_radius_and_its_square_obey_their_equations_alone(m, mu, k):
    """r is integrated again by its own equation, fed with the angular speed (or the speed) of the full motion."""
    path = integrate(
        damped(m, mu), lambda q: hand(q) + k / 2 * q @ q, [0.6, 0.9, -0.4], [0.2, -0.3, 0.5],
        t_span=(0, 6), t_eval=times(2001, 6.0), rtol=1e-12, atol=1e-14,
    )  # fmt: skip
    r, _, fall, turning = ad.polar(path.q, path.v)
    rate, speed, angular = r * fall, path.v.square().sum(1), turning.norm(dim=1)
    clock = path.t.numpy()

    def of_radius(r, r_dot, turning):
        """TK Eq. 27: m r'' + mu r' = (m |u'|^2 - k) r."""
        return (turning**2 - k / m) * r - mu / m * r_dot

    def of_square(square, square_dot, speed_squared):
        """TK before Eq. 16: m (r^2)'' + mu (r^2)' = 2 m |q'|^2 - 2 k r^2."""
        return 2 * speed_squared - (2 * k * square + mu * square_dot) / m

    def again(acceleration, forcing, start):
        def slope(t, y):
            return [y[1], acceleration(y[0], y[1], np.interp(t, clock, forcing))]

        return solve_ivp(slope, (0, 6), start, rtol=1e-9, atol=1e-11, max_step=0.01).y[0, -1]

    start = [r[0].item(), (rate[0] / r[0]).item()]
    radius = again(of_radius, angular.numpy(), start)
    square = again(of_square, speed.numpy(), [r[0].item() ** 2, 2 * rate[0].item()])
    assert abs(radius / r[-1].item() - 1) < 1e-5  # the forcing is a broken line
    assert abs(square / r[-1].item() ** 2 - 1) < 1e-5
    unforced = again(of_radius, 0 * angular.numpy(), start)
    assert abs(unforced / r[-1].item() - 1) > 0.1


def test_polar_takes_a_motion_apart_and_says_what_it_cannot():
    q, v = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    r, u, dr, du = ad.polar(q, v)
    assert torch.allclose(dr[:, None] * u + r[:, None] * du, v, rtol=1e-13)
    assert (u * du).sum(1).abs().max() < 1e-15
    with pytest.raises(ValueError, match="shape of its point"):
        ad.polar(q, v[:3])
    with pytest.raises(ValueError, match="no direction"):
        ad.polar(0 * q, v)


def batchnorm_net(width=8, seed=0):
    x, y = digits("train").first(200).tensors(flatten=True)
    layers = nn.Sequential(nn.BatchNorm1d(width, eps=1e-300), nn.ReLU())
    return flat_loss(mlp((64, width, 10), layers, seed=seed), x, y, cross_entropy), x, y


def minibatch_run(beta=0.9, k=0.01, lr=0.05, steps=60):
    f, x, y = batchnorm_net()
    batch = lambda n: f.on(x[20 * n % 200 :][:20], y[20 * n % 200 :][:20])  # noqa: E731
    run = descend(sgd(lr, beta, k), None, f.q0, steps=steps, batches=batch)
    weight = run.q[:, f.slices[f.names[0]]].view(steps + 1, 8, 64)
    return weight, weight.diff(dim=0)


@pytest.mark.parametrize(("beta", "k"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01), (0.5, 0.3)])
def test_lengths_follow_from_steps_exactly_on_every_mini_batch(beta, k):
    weight, steps = minibatch_run(beta, k)
    true = weight.square().sum(-1)
    how = {"lr": 0.05, "momentum": beta, "weight_decay": k}
    found = ad.radius_squared_of_steps(steps.square().sum(-1), true[0], **how)
    assert (found / true - 1).abs().max() < 1e-12
    wrong = ad.radius_squared_of_steps(
        steps.square().sum(-1), true[0], lr=0.05, momentum=0.5 * beta, weight_decay=k / 2
    )
    assert (beta, k) == (0, 0) or (wrong / true - 1).abs().max() > 1e-3


# --- equilibrium ----------------------------------------------------------------------------------------------------


def circling(lr, beta, k, *, steps=8000, decoupled=False):
    """A constant slope along a circle: z_(n+1) = z_n e^(i phi) once settled."""
    z = complex(ad.equilibrium(lr, k, beta, grad_norm=1.0, decoupled=decoupled).radius)
    buffer, before = 0j, z
    for _ in range(steps):
        before, buffer = z, beta * buffer + 1j * z / abs(z) ** 2 + (0 if decoupled else k * z)
        z = (1 - lr * k if decoupled else 1) * z - lr * buffer
    return abs(z), abs(z / abs(z) - before / abs(before))


@pytest.mark.parametrize(("lr", "beta", "k"), [(0.1, 0.0, 0.05), (0.1, 0.5, 0.05), (0.1, 0.9, 5e-3), (0.3, 0.9, 0.02)])
def test_equilibrium_of_a_constant_slope_in_closed_form(lr, beta, k):
    """The settled rotation solves a quadratic equation: the chord of TK Eq. 29 is exact, Eq. 30 is so to order lr k."""
    radius, chord = circling(lr, beta, k)
    expected = ad.equilibrium(lr, k, beta, grad_norm=1.0)
    s = 2 * lr * k / (1 + beta)
    assert abs(chord / expected.angular_update - 1) < 1e-9
    assert abs(radius**4 * (1 - s / 4) / expected.radius**4 - 1) < 1e-9
    assert abs(radius**4 / ad.equilibrium(lr, k, beta, grad_norm=1.0, persistence=0.9).radius ** 4 - 1) > 0.1
    if beta:  # decay that bypasses the momentum has another angle
        assert abs(chord / ad.angular_update(lr, k, beta, decoupled=True) - 1) > 0.1


def test_decoupled_decay_has_its_own_angle_and_radius():
    for k in (5e-3, 2.5e-3):
        radius, chord = circling(0.1, 0.9, k, decoupled=True, steps=40_000)
        expected = ad.equilibrium(0.1, k, 0.9, grad_norm=1.0, decoupled=True)
        assert abs(chord / expected.angular_update - 1) < 0.5 * 0.1 * k
        assert abs(radius / expected.radius - 1) < 0.1 * k / (1 - 0.9)
        assert abs(chord / ad.angular_update(0.1, k, 0.9) - 1) > 0.5


def test_equilibrium_is_consistent():
    e = ad.equilibrium(LR, DECAY, BETA, grad_norm=3.0, persistence=0.4)
    m, mu = LR * (1 + BETA) / 2, 1 - BETA
    assert e.angular_speed == pytest.approx(math.sqrt(DECAY / m), rel=1e-14)
    assert e.radius**2 * e.drive == pytest.approx(3.0, rel=1e-14)
    assert e.drive == pytest.approx(math.sqrt(DECAY * mu**2 / (m * 0.4)), rel=1e-14)
    assert e.time_constant == pytest.approx(LR * e.time_constant_steps, rel=1e-14)
    settled = ad.radius_squared([0.0, 1e4], [9.0, 9.0], 1.0, lr=LR, momentum=BETA, weight_decay=DECAY, persistence=0.4)
    assert settled[-1].item() == pytest.approx(e.radius**2, rel=1e-12)
    decoupled = ad.equilibrium(LR, DECAY, BETA, grad_norm=3.0, decoupled=True)
    assert vars(decoupled) == pytest.approx(vars(ad.equilibrium(LR, (1 - BETA) * DECAY, BETA, grad_norm=3.0)))


def test_no_decay_no_equilibrium():
    with pytest.raises(ValueError, match="grows for ever"):
        ad.angular_update(0.1, 0.0)
    with pytest.raises(ValueError, match="grows for ever"):
        ad.equilibrium(0.1, 0.0, grad_norm=1.0)


def adamw_turn(lr, decay, betas, *, rho=0.0, n=200, steps=3000, seed=0):
    """torch.optim.AdamW on a scale-invariant weight with synthetic gradients; rms turn of the last two thirds."""
    rng = torch.Generator().manual_seed(seed)
    q = torch.randn(n, generator=rng, dtype=F64)
    settled = lr * n / 2 / decay * (1 + betas[0] * rho) / (1 - betas[0] * rho)
    q = nn.Parameter(q / q.norm() * math.sqrt(settled))
    tool = torch.optim.AdamW([q], lr=lr, weight_decay=decay, betas=betas, eps=1e-12)
    z, turns = torch.randn(n, generator=rng, dtype=F64), []
    for _ in range(steps):
        z = rho * z + math.sqrt(1 - rho**2) * torch.randn(n, generator=rng, dtype=F64)
        u = q.detach() / q.detach().norm()
        q.grad = (z - u * (u @ z)) / q.detach().norm()
        tool.step()
        turns.append((q.detach() / q.detach().norm() - u).square().sum())
    return torch.stack(turns)[steps // 3 :].mean().sqrt().item()


@pytest.mark.parametrize(("beta", "rho", "tolerance"), [(0.0, 0.0, 0.01), (0.9, 0.0, 0.01), (0.9, 0.9, 0.02)])
def test_adamw_turns_as_decoupled_decay_says(beta, rho, tolerance):
    measured = adamw_turn(1e-3, 1.0, (beta, 0.999), rho=rho)
    assert abs(measured / ad.angular_update(1e-3, 1.0, beta, decoupled=True) - 1) < tolerance
    if beta:
        assert abs(measured / ad.angular_update(1e-3, 1.0, beta) - 1) > 0.5


# --- persistence ----------------------------------------------------------------------------------------------------


def ar1(rho, steps, n=400, seed=0):
    """Gradients with autocorrelation rho^l."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, n, generator=rng, dtype=F64)
    for i in range(1, steps):
        noise[i] = rho * noise[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return noise


def ar1_factor(rho, beta):
    return (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_persistence_of_autoregressive_gradients(rho, beta):
    found = ad.gradient_persistence(ar1(rho, 3000), beta)
    exact = ar1_factor(rho, beta)
    assert abs(found.factor / exact - 1) < 0.02
    assert (found.autocorrelation - rho ** torch.arange(len(found.autocorrelation))).abs().max() < 0.03
    average = ad.momentum_average(ar1(rho, 3000), beta)[100:]
    assert abs(average.square().mean() / exact - 1) < 0.02  # the same number without lags


@pytest.mark.parametrize(
    "rho", [pytest.param(0.0, marks=pytest.mark.slow), 0.8, pytest.param(0.97, marks=pytest.mark.slow)]
)
def test_the_length_of_a_weight_under_such_gradients(rho):
    """Heavy ball on weights whose gradient is AR(1) noise in the tangent plane: r^4 settles where P says, to 2%."""
    beta, lr, k, steps, copies, n = 0.9, 0.05, 2e-4, 4000, 50, 100
    z = ar1(rho, steps, n=copies * n).view(steps, copies, n)
    settled = ad.equilibrium(lr, k, beta, grad_norm=math.sqrt(n - 1), persistence=ar1_factor(rho, beta))
    q = torch.zeros(copies, n, dtype=F64)
    q[:, 0] = settled.radius
    trackers = RadiusTracker(q, lr=lr, momentum=beta, weight_decay=k, keep=1, window=steps)
    buffer, fourth, turns = torch.zeros_like(q), [], []
    for i in range(steps):
        r = q.norm(dim=1, keepdim=True)
        g = (z[i] - q * (q * z[i]).sum(1, keepdim=True) / r**2) / r
        trackers.update(q, g)
        buffer = beta * buffer + g + k * q
        p = q - lr * buffer
        turns.append((p / p.norm(dim=1, keepdim=True) - q / r).square().sum(1).mean())
        q = p
        fourth.append(q.square().sum(1).square().mean())
    late = slice(steps // 4, None)
    assert abs(torch.stack(fourth)[late].mean() / settled.radius**4 - 1) < 0.02
    assert abs(torch.stack(turns)[late].mean().sqrt() / settled.angular_update - 1) < 0.02  # Eq. 29: any regime
    assert abs(trackers.persistence.mean() / ar1_factor(rho, beta) - 1) < 0.02
    true = q.square().sum(1)
    assert (trackers.averaged / true - 1).abs().max() < 0.03
    persistent = (trackers.persistent / true).square().mean()  # Eq. 17 as printed, in r^4
    left = math.exp(-steps / settled.time_constant_steps)  # of the start, which was right
    assert abs(persistent / ((1 - left) / ar1_factor(rho, beta) + left) - 1) < 0.03
    assert (trackers.reach < 0.2).all()


def test_regimes_by_name():
    def made(factor):
        return ad.Persistence(torch.ones(1), factor, 0.9, 10)

    assert [made(P).regime for P in (1.0, 0.8, 0.4, 0.06, 0.04, 0.02)] == [
        "persistent", "persistent", "between", "white", "white", "between",
    ]  # fmt: skip
    assert ad.gradient_persistence(ar1(0.0, 100), 0.0).regime == "persistent"  # without momentum there is one regime


def test_persistence_looks_at_its_window_only():
    g = torch.cat([ar1(0.0, 2000), torch.ones(400, 400, dtype=F64)])
    assert ad.gradient_persistence(g, 0.9, window=300).regime == "persistent"
    assert ad.gradient_persistence(g[:2000], 0.9, window=1500).regime == "white"


@pytest.mark.parametrize(
    ("gradients", "options", "fact"),
    [
        (torch.ones(5, 2), {"window": 6}, "reach back"),
        (torch.ones(5, 2), {"lags": 5}, "reach back"),
        (torch.zeros(200, 2), {}, "vanishes"),
        (torch.ones(5, 2), {}, r"5 gradients reach back 1 steps, where momentum 0\.9 still has 0\.81"),
        (torch.ones(0, 2), {}, "holds no number"),
        (torch.full((5, 2), math.inf), {}, "not finite"),
    ],
)
def test_gradient_persistence_says_what_is_wrong(gradients, options, fact):
    with pytest.raises(ValueError, match=fact):
        ad.gradient_persistence(gradients, 0.9, **options)


def test_a_memory_longer_than_the_run_is_not_cut_in_silence():
    """Of a lasting gradient P is 1; lags that end within the momentum's memory make it 0.1."""
    still = torch.ones(40, 3, dtype=F64)
    with pytest.raises(ValueError, match=r"record 2752 steps or more, or give lags="):
        ad.gradient_persistence(still, 0.99)
    assert ad.gradient_persistence(still, 0.99, lags=10).factor == pytest.approx(0.1002, abs=1e-4)
    assert ad.gradient_persistence(still, 0.5).factor == pytest.approx(1, abs=2e-3)
    for options in ({"lags": 2.5}, {"window": True}):
        with pytest.raises(TypeError, match="an integer"):
            ad.gradient_persistence(still, 0.5, **options)


def test_an_equilibrium_is_one_weights():
    for options, name in (({"grad_norm": torch.ones(3)}, "grad_norm"), ({"persistence": [1.0, 2.0]}, "persistence")):
        with pytest.raises(ValueError, match=rf"{name} has shape .* call it for each"):
            ad.equilibrium(0.1, 0.1, 0.9, **options)


# --- RMSProp --------------------------------------------------------------------------------------------------------


def test_rmsprop_follows_its_recursion_with_order_one():
    G = lambda t: 2 + torch.sin(5 * t)  # noqa: E731
    errors = []
    for forget in (0.08, 0.04, 0.02, 0.01):  # 1 - rho at a fixed memory (1 - rho) / lr = 1
        t = torch.arange(0, 3, forget, dtype=F64)
        discrete, now = [], torch.tensor(0.5)
        for g in G(t):
            discrete.append(now)
            now = (1 - forget) * now + forget * g
        smooth = ad.rmsprop_accumulator(t, G(t), 0.5, lr=forget, rho=1 - forget)
        errors.append((torch.stack(discrete) - smooth).abs().max().item())
    slope = np.polyfit(np.log([0.08, 0.04, 0.02, 0.01]), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.1
    with pytest.raises(ValueError, match="rho"):
        ad.rmsprop_accumulator([0.0], [1.0], 0.0, lr=0.1, rho=1.0)


@pytest.mark.parametrize("P", [1.0, 0.3])
def test_the_twin_has_the_same_kernel_and_another_amplitude(P):
    twin = ad.rmsprop_twin(LR, DECAY, BETA, persistence=P)
    G = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=F64)
    r2 = ad.radius_squared(times(300), G, 3.0, lr=LR, momentum=BETA, weight_decay=DECAY, persistence=P)
    accumulator = ad.rmsprop_accumulator(times(300), G, 9.0 / twin.amplitude, lr=LR, rho=twin.rho)
    assert torch.allclose(r2**2, twin.amplitude * accumulator, rtol=1e-12)
    assert not torch.allclose(r2**2, accumulator, rtol=0.1)
    assert twin.lr == pytest.approx(ad.angular_update(LR, DECAY, BETA) / math.sqrt(P), rel=1e-14)
    # its step is the direction's: lr / ((1 - beta) r^2) per unit of gradient
    assert twin.lr / accumulator[-1].sqrt() == pytest.approx(LR / (1 - BETA) / r2[-1].item(), rel=1e-12)


def test_a_twin_needs_a_memory():
    with pytest.raises(ValueError, match="within one step"):
        ad.rmsprop_twin(1.0, 0.3)
    with pytest.raises(ValueError, match="grows for ever"):
        ad.rmsprop_twin(0.1, 0.0)


# --- TK Fig. 4: the study, what is stored of it, and the cell that draws it ----------------------------------------


def small_study(**base):
    """Two values and two seeds of the study; at the second rate all runs diverge."""
    short = TrainConfig(subset=64, batch_size=32, epochs=2, lr_drops=(), width=0.5, **base)
    return experiments.figure4({"a": ("lr", (0.01, 1e30), short)}, seeds=(0, 1))


def test_figure_4_counts_what_diverged_and_leaves_it_out_of_the_means(monkeypatch, tmp_path):
    monkeypatch.setenv(experiments.RUNS, str(tmp_path))
    study = small_study()
    free, constrained = (study["curves"]["a"][kind] for kind in experiments.NORMS)
    assert free["diverged"] == constrained["diverged"] == [0, 2]
    assert free["accuracy_mean"][1] is None
    assert study["curves"]["a_loss"]["free"]["loss_mean"][1] == ()
    runs = load_sweep(tmp_path).where(lr=0.01)
    ends = {held: [run.run.accuracy for run in runs.where(constrain_norm=held)] for held in (False, True)}
    assert free["accuracy_mean"][0] == pytest.approx(np.mean(ends[False]), rel=1e-12)
    assert free["accuracy_sem"][0] == pytest.approx(np.std(ends[False], ddof=1) / math.sqrt(2), rel=1e-9, abs=1e-15)
    numbers = study["numbers"]["a"]
    assert numbers["accuracy_gap"] == [pytest.approx(np.mean(ends[False]) - np.mean(ends[True]), abs=1e-12), None]
    assert numbers["loss_change_free"] == [0.0, None]
    assert constrained["growth_mean"][0] == pytest.approx(1, abs=1e-6)
    assert free["growth_mean"][0] > 1 + 1e-4
    assert study["numbers"]["runs"]["count"] == 8
    again = small_study()  # from the folder
    assert again["curves"] == study["curves"]
    assert write("small", {"name": "small", "title": "", **study, "provenance": {}}, tmp_path).exists()


def test_the_paper_s_own_study_is_not_begun_by_accident(monkeypatch, tmp_path):
    monkeypatch.delenv(experiments.RUNS, raising=False)
    with pytest.raises(DataError, match=f"168 runs .*{experiments.RUNS}"):
        experiments.tk_fig4_tiny_imagenet()
    monkeypatch.setenv(experiments.RUNS, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="GPU"):
        experiments.tk_fig4_tiny_imagenet()
    panels = experiments.tiny_imagenet_panels()
    assert {base.model for _, _, base in panels.values()} == {"vgg11"}
    assert [base.lr_drops for _, _, base in panels.values()] == [(), (30, 60, 80), (30, 60, 80)]
    assert {(b.batch_size, b.momentum, b.weight_decay, b.epochs) for _, _, b in panels.values()} == {
        (128, 0.9, 1e-4, 100)
    }


def test_what_the_chapter_says_of_the_stored_study():
    stored = read("tk_fig4_digits")
    growth = dict(zip(stored["curves"]["b"]["momentum"], stored["curves"]["b"]["free"]["growth_mean"], strict=True))
    assert 65 < growth[0.98] < 75
    assert 4.5 < growth[0.9] < 5.5
    large, a = slice(3, 6), stored["numbers"]["a"]
    assert min(a["accuracy_gap"][large]) > 0.2
    assert [round(100 * gap) for gap in a["recalibrated_gap"][large]] == [5, 8, 13]
    ends = [stored["curves"]["a"][kind]["loss_mean"][large] for kind in ("constrained", "free")]
    assert min(x / y for x, y in zip(*ends, strict=True)) > 15
    assert max(map(abs, stored["numbers"]["b"]["accuracy_gap"][:4])) < 0.003
    assert 0 < stored["numbers"]["c"]["accuracy_change_free"][-1] < 0.01
    for panel in ("a", "b", "b_constant", "c"):
        assert stored["curves"][panel]["free"]["diverged"] == stored["curves"][panel]["constrained"]["diverged"]
        assert not any(stored["curves"][panel]["free"]["diverged"])
    gains = [figure4.change(stored, "c", "accuracy", kind) for kind in ("free", "constrained")]
    assert [f"{100 * gain.mean[-1]:.1f} ± {100 * gain.error[-1]:.1f}" for gain in gains] == ["0.7 ± 0.2", "0.5 ± 0.3"]
    assert len(stored["settings"]["seeds"]) == 6


def test_figure_4_is_drawn_of_tiny_imagenet_too():
    """A made-up result: without the panel at a constant rate, with diverged runs."""
    stored = read("tk_fig4_digits")
    tiny = copy.deepcopy(stored) | {"name": "tk_fig4_tiny_imagenet"}
    for part in (tiny["curves"], tiny["numbers"], tiny["settings"]["varied"], tiny["settings"]["base"]):
        part.pop("b_constant")
    del tiny["curves"]["b_constant_loss"]
    lost = tiny["curves"]["a"]["constrained"]
    lost["accuracy_mean"] = [0.01 * i for i in range(5)] + [None]  # far below the digits'
    lost["accuracy_sem"][5] = lost["recalibrated_mean"][5] = None
    lost["diverged"][5] = 4
    tiny["curves"]["a_loss"]["constrained"]["loss_mean"][4] = []
    drawn = {}
    for name, contents in {"digits": [stored], "both": [stored, tiny]}.items():
        plt.close("all")
        for content in contents:
            figure4.draw(content)
        drawn[name] = [plt.figure(i) for i in plt.get_fignums()]
    assert len(drawn["digits"]) == 1
    digits_axes, tiny_axes = (figure.axes for figure in drawn["both"])
    assert [len(digits_axes), len(tiny_axes)] == [8, 6]
    assert [axis.get_title(loc="left") for axis in tiny_axes[:3]] == ["A: step size", "B: rate drops", "C: decay"]
    low, high = tiny_axes[0].get_ylim()
    assert low < 0.0
    assert high > 0.04
    triangles = [
        line for line in tiny_axes[0].lines if line.get_marker() == "v" and not np.isnan(line.get_ydata()).all()
    ]
    assert len(triangles) == 1
    plt.close("all")
