"""Noether's laws along motions, by quadrature beside the integration: no acceleration comes from the law it tests."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from grids import covering
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.interpolate import make_interp_spline
from torch import nn
from torch.func import grad, jvp

from nlcompanion.dynamics import (
    bregman,
    bregman_momentum,
    damped,
    descend,
    general,
    gradient_flow,
    integrate,
    kinetic_energy,
    lagrangian,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.mechanics import acceleration, energy, generalized_momentum, lift
from nlcompanion.networks import flat_loss, mlp
from nlcompanion.noether import (
    find_conserved_quantities,
    noether_charge,
    noether_learning_dynamics,
    rund_trautmann,
    spacetime_generators,
    transformed,
)
from nlcompanion.symmetries import (
    Symmetry,
    generator,
    gl,
    invariance_defect,
    kinetic_symmetry_breaking,
    linear_action,
    linear_pair,
    rescale,
    rotation,
    scale,
    so,
    translation,
)

number = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 4))


def vectors(n):
    return st.lists(number, min_size=n, max_size=n).map(lambda x: torch.tensor(x, dtype=torch.float64))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- rules, losses and quadrature ---------------------------------------------------------------------------------

ENTROPY = lambda q: (q * q.log()).sum()  # noqa: E731
COSH = lambda q: torch.cosh(q).sum()  # noqa: E731
QUARTIC = lambda q: (q**4).sum() / 4  # noqa: E731
FROM_ENTROPY = lambda Y: torch.exp(Y - 1)  # noqa: E731
FROM_QUARTIC = lambda Y: Y.sign() * Y.abs() ** (1 / 3)  # noqa: E731

# TK's Table 1 with its four rows, GU's general dynamics, and schedules that move with curved metrics besides.
# Motions with the quartic are short: where a component of q + exp(-alpha) v crosses 0, the motion has a kink.
RULES = {
    "nesterov": (nesterov(), (0.5, 2.5)),
    "damped": (damped(0.7, 1.1), (0.0, 2.0)),
    "natural gradient, entropy": (natural_gradient(ENTROPY, 0.3, 1.0, grad_h_inverse=FROM_ENTROPY), (0.0, 1.0)),
    "natural gradient, cosh": (natural_gradient(COSH, 0.3, 1.0, grad_h_inverse=torch.asinh), (0.0, 1.0)),
    "natural gradient, quartic": (natural_gradient(QUARTIC, 0.3, 1.0, grad_h_inverse=FROM_QUARTIC), (0.0, 0.1)),
    "sgd": (sgd(0.2, 0.5), (0.0, 1.5)),
    "newtonian": (newtonian(), (0.0, 2.0)),
    "general": (general(lambda t: 1 + t**2, lambda t: 2 + torch.sin(t)), (0.0, 2.0)),
    "accelerated mirror descent": (
        bregman(
            lambda t: math.log(2) - t.log(),
            lambda t: 2 * t.log() - math.log(4),
            lambda t: 2 * t.log(),
            ENTROPY,
            grad_h_inverse=FROM_ENTROPY,
        ),
        (1.0, 1.8),
    ),
    "cubic schedule, cosh": (
        bregman(
            lambda t: math.log(3) - t.log(),
            lambda t: 3 * t.log() - 2.0,
            lambda t: 3 * t.log(),
            COSH,
            grad_h_inverse=torch.asinh,
        ),
        (1.0, 1.8),
    ),
}
START, SPEED = vector(1.0, 0.7, 1.3), vector(0.3, -0.2, 0.1)
N_HAT = vector(1.0, 2.0, -0.5)


def tangled(q):
    """No symmetry whatever."""
    return 0.5 * (q[0] - 2 * q[1]) ** 2 + 0.25 * (q**4).sum() + 0.1 * q[0] + torch.sin(q[1] * q[2])


def scale_free(q):
    return (q[0] ** 2 + 3 * q[1] ** 2 - q[2] * q[0]) / (q @ q) + q[0] * q[1] * q[2] / (q @ q) ** 1.5


# a loss and its symmetry
PAIRS = {
    "translation": (lambda q: tangled(q - N_HAT * (N_HAT @ q) / (N_HAT @ N_HAT)), translation(N_HAT)),
    "rotation": (
        lambda q: (q[0] ** 2 + q[1] ** 2 - 1) ** 2 + torch.cos(q[2]) * (q[0] ** 2 + q[1] ** 2),
        rotation(plane=(0, 1)),
    ),
    "scale": (scale_free, scale()),
}


def nodes(span, panels=8, order=12):
    """Gauss-Legendre times and weights, ends added with weight 0."""
    x, w = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(*span, panels + 1)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    t = np.concatenate([[span[0]], (middle[:, None] + half[:, None] * x).ravel(), [span[1]]])
    return t, torch.from_numpy(np.concatenate([[0.0], (half[:, None] * w).ravel(), [0.0]]))


def motion(rule, f, span, q0=START, v0=SPEED, panels=8):
    t, weights = nodes(span, panels)
    v0 = None if rule.massless else v0
    return integrate(rule, f, q0, v0, t_span=span, t_eval=t, rtol=1e-12, atol=1e-14), weights


def imbalance(terms, weights, rate=None):
    """How far the charge's change is from the integral of what is said to drive it."""
    rate = terms.predicted_rate if rate is None else rate
    return abs((terms.charge[-1] - terms.charge[0] - weights @ rate).item())


# --- Noether's learning dynamics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "loss"), covering(RULES, PAIRS))
def test_the_charge_moves_by_the_integral_of_the_terms(name, loss):
    """TK Eq. 11 without the potential's term, since the loss has the symmetry; each term that is not 0 is needed."""
    (rule, span), (f, symmetry) = RULES[name], PAIRS[loss]
    run, weights = motion(rule, f, span)
    terms = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
    assert imbalance(terms, weights) < 1e-10
    assert terms.charge_rate is None
    assert not terms.potential.any()
    for part in (terms.damping, terms.kinetic_asymmetry, terms.metric):
        if abs(weights @ part) > 1e-6:
            assert imbalance(terms, weights, terms.predicted_rate - part) > 1e-7
    # neither may the metric's term be needed nowhere, nor a symmetry be unbroken by a curved metric
    assert bool((terms.metric.abs() > 1e-3).any()) is not rule.is_euclidean


@pytest.mark.parametrize("name", RULES)
def test_a_loss_without_the_symmetry_moves_the_charge_by_its_torque(name):
    rule, span = RULES[name]
    run, weights = motion(rule, tangled, span)
    for _, symmetry in PAIRS.values():
        with_torque = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v, f=tangled)
        assert imbalance(with_torque, weights) < 1e-10
        without = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
        assert imbalance(without, weights) > 1e-4


def test_weight_decay_pulls_along_the_symmetry_even_of_an_invariant_loss():
    rule, (f, symmetry) = sgd(0.2, 0.5, weight_decay=0.3), PAIRS["scale"]
    run, weights = motion(rule, f, (0.0, 1.5))
    terms = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
    assert imbalance(terms, weights) < 1e-10
    assert torch.allclose(terms.potential, -0.3 * run.q.square().sum(1), rtol=1e-13)
    forgotten = noether_learning_dynamics(replace(rule, weight_decay=0.0), symmetry, run.t, run.q, run.v)
    assert imbalance(forgotten, weights) > 1e-2
    spelled_out = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v, f=f)
    assert torch.allclose(spelled_out.potential, terms.potential, atol=1e-14)


@pytest.mark.parametrize("name", ["damped", "natural gradient, cosh", "nesterov"])
def test_the_supplement_prints_gamma_where_its_rate_is_meant(name):
    (rule, span), (f, symmetry) = RULES[name], PAIRS["scale"]
    run, weights = motion(rule, f, span)
    terms = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
    gamma = torch.stack([rule.gamma(t) for t in run.t])
    misprinted = terms.predicted_rate + terms.damping - gamma * terms.charge
    assert imbalance(terms, weights, misprinted) > 1e-2
    assert imbalance(terms, weights) < 1e-10


matrix_3 = st.lists(number, min_size=9, max_size=9).map(lambda x: torch.tensor(x, dtype=torch.float64).view(3, 3))


@given(matrix_3, matrix_3, vectors(3), st.sampled_from(["damped", "nesterov", "natural gradient, cosh", "general"]))
@settings(max_examples=12, deadline=None)
def test_drawn_generators_and_potentials(A, B, c, name):
    """Any linear action and any polynomial well, symmetric or not, for the loss's term in full."""
    assume(A.abs().max() > 0.1)
    rule, (t0, _) = RULES[name]
    well = lambda q: 0.25 * (q @ q) ** 2 + 0.1 * q @ (B @ q) + 0.3 * (c * q**3).sum()  # noqa: E731
    run, weights = motion(rule, well, (t0, t0 + 0.5))
    terms = noether_learning_dynamics(rule, linear_action(A), run.t, run.q, run.v, f=well)
    assert imbalance(terms, weights) < 1e-10 * (1 + A.norm())
    without = noether_learning_dynamics(rule, linear_action(A), run.t, run.q, run.v)
    torque = abs(weights @ terms.potential).item()
    assert imbalance(without, weights) == pytest.approx(torque, abs=1e-10 * (1 + A.norm().item()))


@pytest.mark.parametrize("name", ["damped", "nesterov", "natural gradient, cosh", "accelerated mirror descent"])
def test_the_rate_of_the_charge_is_measured_along_any_path(name):
    """charge_rate differentiates the charge itself: held against a difference quotient on a path that is no motion."""
    rule, (t, _) = RULES[name]
    t, symmetry, h = t + 0.3, linear_action(torch.tensor([[0.3, 1, 0], [-0.4, 0.2, 0.5], [0.1, 0, 1]])), 1e-4
    path = lambda t: vector(1.0 + 0.1 * math.sin(t), 0.8 + 0.2 * t - 0.1 * t**2, 1.2 - 0.1 * t)  # noqa: E731
    speed = lambda t: vector(0.1 * math.cos(t), 0.2 - 0.2 * t, -0.1)  # noqa: E731
    a = vector(-0.1 * math.sin(t), -0.2, 0.0)
    C = lambda t: noether_charge(rule, symmetry, t, path(t), speed(t))  # noqa: E731
    differenced = (8 * (C(t + h) - C(t - h)) - C(t + 2 * h) + C(t - 2 * h)) / (12 * h)
    terms = noether_learning_dynamics(rule, symmetry, t, path(t), speed(t), a, tangled)
    assert terms.charge_rate.item() == pytest.approx(differenced.item(), rel=1e-9)
    assert abs(terms.residual) > 1e-3  # no motion, so no law
    assert torch.allclose(terms.residual, terms.charge_rate - terms.predicted_rate)


@pytest.mark.parametrize("name", ["damped", "natural gradient, cosh"])
def test_the_residual_vanishes_for_a_measured_acceleration(name):
    """The acceleration is the slope of a spline through the velocities that the solver returned."""
    (rule, _), (f, symmetry) = RULES[name], PAIRS["scale"]
    t = np.linspace(0, 1, 201)
    run = integrate(rule, f, START, SPEED, t_span=(0, 1), t_eval=t, rtol=1e-12, atol=1e-14)
    a = torch.from_numpy(make_interp_spline(t, run.v.numpy(), k=7).derivative()(t))
    terms = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v, a)
    assert terms.residual[10:-10].abs().max() < 1e-8
    assert noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v, 1.01 * a).residual.abs().max() > 1e-4


@pytest.mark.parametrize("name", RULES)
def test_asymmetry_and_metric_together_are_the_broken_kinetic_energy(name):
    """One mechanism: the terms by hand, and the lift of the action differentiated in one go."""
    rule, (t, _) = RULES[name]
    for _, symmetry in PAIRS.values():
        terms = noether_learning_dynamics(rule, symmetry, t + 0.2, START, SPEED)
        broken = kinetic_symmetry_breaking(rule, symmetry, t + 0.2, START, SPEED)
        size = terms.kinetic_asymmetry.abs() + terms.metric.abs() + 1e-3
        assert abs(terms.kinetic_asymmetry + terms.metric - broken) < 1e-12 * size


LIFTED = ["damped", "nesterov", "natural gradient, entropy", "natural gradient, cosh"]


@pytest.mark.parametrize(("name", "loss"), covering(LIFTED, PAIRS))
def test_noether_with_the_lagrangian_itself(name, loss):
    """TK Eqs. 8, 9 and 23, e^gamma included: by lifting L, then by lifting T."""
    (rule, (t0, t1)), (f, symmetry) = RULES[name], PAIRS[loss]
    run, weights = motion(rule, f, (t0, (3 * t0 + t1) / 4), panels=2)
    L, T, xi = lagrangian(rule, f), kinetic_energy(rule), generator(symmetry)
    one = torch.ones((), dtype=torch.float64)

    def broken(F, t, q, v):
        return jvp(lambda s: F(*lift(lambda t, q: symmetry(q, s))(t, q, v)), (one - 1,), (one,))[1]

    points = list(zip(run.t, run.q, run.v, strict=True))
    charge = torch.stack([generalized_momentum(L)(*x) @ xi(x[1]) for x in points])
    of_L = weights @ torch.stack([broken(L, *x) for x in points])
    of_T = weights @ torch.stack([torch.exp(rule.gamma(x[0])) * broken(T, *x) for x in points])
    change = charge[-1] - charge[0]
    assert abs(change - of_L) < 1e-10
    assert abs(change - of_T) < 1e-10
    if abs(change) > 1e-6:
        assert abs(change - 1.001 * of_T) > 1e-10


@pytest.mark.parametrize("name", RULES)
def test_bregman_momentum_and_the_derivatives_of_kinetic_energy(name):
    """TK Eqs. 10 and 24."""
    rule, (t, _) = RULES[name]
    t = torch.tensor(t + 0.2).double()
    alpha, gamma = rule.rates(t)[0], rule.gamma(t)
    delta = bregman_momentum(rule)(t, START, SPEED)
    assert torch.allclose(delta, torch.exp(-gamma) * generalized_momentum(lagrangian(rule, tangled))(t, START, SPEED))
    by_q, by_v = grad(kinetic_energy(rule), argnums=(1, 2))(t, START, SPEED)
    assert torch.allclose(by_v, delta, rtol=1e-13)
    expected = math.exp(alpha) * delta - jvp(grad(rule.h), (START,), (SPEED,))[1]
    assert torch.allclose(by_q, expected, atol=1e-13)


def test_fourth_term_is_absent_without_curvature_and_only_there():
    flat = natural_gradient(lambda q: 0.5 * q @ q + 3 * q[0], 0.3, 1.0)
    assert noether_learning_dynamics(flat, scale(), 0.0, START, SPEED).metric.abs() < 1e-14
    assert noether_learning_dynamics(damped(0.3, 1.0), scale(), 0.0, START, SPEED).metric == 0


# --- damping and its limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [0.2, 1.0, 5.0])
def test_unbroken_charges_decay_from_their_start(mass):
    """TK below Eq. 12, whose printed decay lacks charge(0); from nearly conserved to over-damped (TK Fig. 3)."""
    rule, (f, symmetry) = damped(mass, 1.0), PAIRS["rotation"]
    run, weights = motion(rule, f, (0.0, 2.0))
    terms = noether_learning_dynamics(rule, symmetry, run.t, run.q, run.v)
    decay = torch.exp(-run.t / mass)
    assert (terms.charge - terms.charge[0] * decay).abs().max() < 1e-10
    assert (terms.charge - decay).abs().max() > 0.1
    assert imbalance(terms, weights) < 1e-10  # TK Eq. 12


def test_long_runs_never_form_e_to_the_gamma():
    rule, (f, symmetry) = sgd(0.1, 0.9), PAIRS["rotation"]
    late = 1e5  # gamma is 1e5 there, its exponential infinite
    here = noether_learning_dynamics(rule, symmetry, late, START, SPEED, f=f)
    there = noether_learning_dynamics(rule, symmetry, 0.0, START, SPEED, f=f)
    assert not torch.isfinite(torch.exp(rule.gamma(torch.tensor(late))))
    assert torch.isfinite(here.predicted_rate)
    assert torch.equal(here.predicted_rate, there.predicted_rate)


@pytest.mark.parametrize("metric", ["euclidean", "cosh"])
def test_over_damped_limit(metric):
    """TK Eq. 13: <hess h qdot, xi> vanishes with order 1 in m; the charge, m times it, trivially with order 2."""
    f, symmetry = PAIRS["scale"]
    contents, charges = [], []
    for mass in (8e-3, 4e-3, 2e-3):  # twenty relaxation times and more
        h = {"euclidean": None, "cosh": COSH}[metric]
        rule = natural_gradient(h, mass, 1.0, grad_h_inverse=torch.asinh) if h else damped(mass, 1.0)
        run = integrate(rule, f, START, t_span=(0.0, 0.15), rtol=1e-9, atol=1e-12)
        q, v = run.q[-1], run.v[-1]
        contents.append((jvp(grad(rule.h), (q,), (v,))[1] @ generator(symmetry)(q)).item())
        charges.append(noether_charge(rule, symmetry, 0.15, q, v).item())
    order = lambda x: math.log(abs(x[0] / x[-1])) / math.log(4)  # noqa: E731
    assert order(contents) == pytest.approx(1, abs=0.1)
    assert order(charges) == pytest.approx(2, abs=0.1)


def test_over_damped_limit_needs_the_symmetry():
    rule = damped(1e-3, 1.0)
    run = integrate(rule, tangled, START, t_span=(0.0, 0.3), rtol=1e-8)
    assert abs(run.v[-1] @ run.q[-1]) > 0.01


# --- discrete algorithms ------------------------------------------------------------------------------------------


def batches_of(symmetric):
    """Mini-batches that share a rotation symmetry in the plane (0, 1), and a scale symmetry if asked."""

    def batch(n):
        a, b = math.sin(1.0 + n), math.cos(3.0 * n)
        if symmetric == "rotation":
            return lambda q: (1 + a) * (q[0] ** 2 + q[1] ** 2 - 1) ** 2 + b * q[2] * (q[0] ** 2 + q[1] ** 2)
        return lambda q: (a * q[0] ** 2 + b * q[0] * q[1] + q[2] ** 2) / (q @ q)

    return batch


@pytest.mark.parametrize("loss", ["rotation", "scale"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_heavy_ball_has_an_exact_learning_dynamics_of_its_own(loss, decay):
    """C_n = <d_n, xi(q_n)> obeys C_n - beta C_(n-1) = beta <d_(n-1), xi(d_(n-1))> - eta k <q_n, xi(q_n)>, exactly."""
    lr, beta = 0.05, 0.9
    symmetry = PAIRS[loss][1]
    run = descend(sgd(lr, beta, decay), None, START, steps=60, batches=batches_of(loss))
    q, d = run.q, run.v * lr
    xi = generator(symmetry)
    along = lambda x, y: torch.stack([a @ xi(b) for a, b in zip(x, y, strict=True)])  # noqa: E731
    C = along(d, q)
    broken, pull = along(d, d), along(q, q)
    left = C[1:] - beta * C[:-1]
    right = beta * broken[:-1] - lr * decay * pull[1:]
    assert (left - right).abs().max() < 1e-12 * C.abs().max().clamp(min=1e-3)
    assert (left + (1 - beta) * C[:-1]).abs().max() > 1e-3 * C.abs().max()  # the charge does move
    if loss == "rotation":  # nothing breaks it: the discrete charge falls by exactly beta a step
        assert (C[1:] - beta * C[:-1]).abs().max() < 1e-12
    wrong = descend(sgd(lr, beta, decay), None, START, steps=60, batches=lambda n: tangled)
    C_wrong = along(wrong.v * lr, wrong.q)
    excess = C_wrong[1:] - beta * C_wrong[:-1] - beta * along(wrong.v * lr, wrong.v * lr)[:-1]
    assert (excess + lr * decay * along(wrong.q, wrong.q)[1:]).abs().max() > 1e-4


def test_heavy_ball_identity_of_quadratic_charges():
    """C = <q, A q> with symmetric A: its steps remember, by beta, and gain Q(d_n) + beta Q(d_(n-1))."""
    lr, beta = 0.05, 0.9
    A = torch.eye(3).double()
    run = descend(sgd(lr, beta), None, START, steps=60, batches=batches_of("scale"))
    q, d = run.q, (run.v * lr)[:-1]
    C, Q = ((x @ A * x).sum(1) for x in (q, d))
    left = C[2:] - C[1:-1] - beta * (C[1:-1] - C[:-2])
    assert (left - Q[1:] - beta * Q[:-1]).abs().max() < 1e-12
    assert (left - Q[1:]).abs().max() > 1e-6


# --- generators of time -------------------------------------------------------------------------------------------


def spring(t, q, v):
    return 0.5 * v @ v - 0.25 * (q @ q) ** 2 + 0.3 * torch.sin(t) * q[0] + 0.1 * (q[0] * v[-1] - q[-1] * v[0])


def explicit(L, xi, tau):
    """GU Eq. 11 as printed, term by term."""

    def left(t, q, v):
        by_t, by_q, by_v = grad(L, argnums=(0, 1, 2))(t, q, v)
        one = torch.ones_like(t)
        x, x_dot = jvp(xi, (t, q), (one, v))
        s, s_dot = jvp(tau, (t, q), (one, v))
        return by_q @ x + by_v @ x_dot + by_t * s + (L(t, q, v) - v @ by_v) * s_dot

    return left


@given(vectors(3), vectors(3), st.floats(0.1, 2), vectors(4), matrix_3)
@settings(max_examples=20, deadline=None)
def test_lifting_time_and_space_together_is_the_rund_trautmann_identity(q, v, t, c, A):
    t = torch.tensor(t).double()
    xi = lambda t, q: A @ q + c[0] * t * q[0] * q + torch.sin(c[1] * t) * q.flip(0)  # noqa: E731
    tau = lambda t, q: c[2] * t**2 + c[3] * q[1] + 1  # noqa: E731
    identity, charge = rund_trautmann(spring, xi, tau)
    expected = explicit(spring, xi, tau)(t, q, v)
    assert identity(t, q, v).item() == pytest.approx(expected.item(), rel=1e-11, abs=1e-10)
    p = generalized_momentum(spring)(t, q, v)
    by_hand = p @ xi(t, q) + (spring(t, q, v) - v @ p) * tau(t, q)
    assert charge(t, q, v).item() == pytest.approx(by_hand.item(), rel=1e-12, abs=1e-12)


def conservation(L, charge, span, q0, v0):
    """Drift and size of a charge along a motion of L."""
    run = integrate(L, None, q0, v0, t_span=span, t_eval=np.linspace(*span, 21), rtol=1e-12, atol=1e-14)
    values = charge(run.t, run.q, run.v)
    return (values - values[0]).abs().max().item(), values.abs().max().item()


def oscillator(t, q, v):
    return 0.5 * v @ v - 0.25 * (q**4).sum() - q[0] * q[1]


def test_energy_from_time_translation_has_the_opposite_sign():
    identity, charge = rund_trautmann(oscillator, tau=lambda t, q: 1.0)
    q, v = START[:2], SPEED[:2]
    assert identity(0.3, q, v) == 0
    assert charge(0.3, q, v).item() == pytest.approx(-energy(oscillator)(0.3, q, v).item(), rel=1e-15)
    assert charge(0.3, q, v).item() != pytest.approx(energy(oscillator)(0.3, q, v).item())
    drift, size = conservation(oscillator, charge, (0.0, 2.0), q, v)
    assert drift < 1e-10 < size
    driven = lambda t, q, v: oscillator(t, q, v) + torch.sin(t) * q[0]  # noqa: E731
    identity, charge = rund_trautmann(driven, tau=lambda t, q: 1.0)
    assert identity(0.3, q, v).item() == pytest.approx(math.cos(0.3) * q[0].item(), rel=1e-13)
    assert conservation(driven, charge, (0.0, 2.0), q, v)[0] > 0.1


def inverse_square(t, q, v):
    return 0.5 * v @ v - 0.7 / (q @ q)


CONFORMAL = {
    # transformation, gauge K(t, q)
    "time translation": (lambda t, q, s: (t + s, q), None),
    "dilation": (lambda t, q, s: (torch.exp(2 * s) * t, torch.exp(s) * q), None),
    "special": (lambda t, q, s: (t / (1 - s * t), q / (1 - s * t)), lambda t, q: q @ q / 2),
}


@pytest.mark.parametrize("name", CONFORMAL)
def test_conformal_symmetry_of_the_inverse_square_potential(name):
    transformation, gauge = CONFORMAL[name]
    xi, tau = spacetime_generators(transformation)
    q, v, t = vector(1.2, 0.5), vector(-0.4, 0.3), torch.tensor(0.6).double()
    expected = {"time translation": (0, 1), "dilation": (q, 2 * t), "special": (t * q, t**2)}[name]
    assert torch.allclose(xi(t, q), expected[0] * torch.ones(2).double())
    assert tau(t, q) == expected[1]
    identity, charge = rund_trautmann(inverse_square, xi, tau, gauge=gauge)
    assert abs(identity(t, q, v)) < 1e-14
    drift, size = conservation(inverse_square, charge, (0.2, 3.0), q, v)
    assert drift < 1e-10 < size
    if gauge:  # without its gauge term the special one is no law: it changes L by d/dt |q|^2 / 2
        identity, charge = rund_trautmann(inverse_square, xi, tau)
        assert identity(t, q, v).item() == pytest.approx((q @ v).item(), rel=1e-13)
        assert conservation(inverse_square, charge, (0.2, 3.0), q, v)[0] > 0.1
    else:  # at finite s as well
        moved = transformed(inverse_square, transformation)(t, q, v, 0.4)
        assert moved.item() == pytest.approx(inverse_square(t, q, v).item(), rel=1e-13)
    harmonic = lambda t, q, v: 0.5 * v @ v - 0.7 * q @ q  # noqa: E731
    if name != "time translation":
        assert abs(rund_trautmann(harmonic, xi, tau, gauge=gauge).identity(t, q, v)) > 0.1


def test_nesterov_conserves_a_virial_on_losses_homogeneous_of_degree_4():
    """t -> e^s t, q -> e^-s q leaves t^3 (|v|^2 / 2 - f) dt alone: a law of NAGF that neither paper has."""
    f = lambda q: (q @ q) ** 2 / 4 + q[0] * q[1] ** 3  # noqa: E731
    xi, tau = spacetime_generators(lambda t, q, s: (torch.exp(s) * t, torch.exp(-s) * q))
    L = lagrangian(nesterov(), f)
    identity, charge = rund_trautmann(L, xi, tau)
    q, v, t = vector(1.0, 0.4), vector(-0.2, 0.1), torch.tensor(0.7).double()
    assert abs(identity(t, q, v)) < 1e-14
    by_hand = -(t**3 * (q @ v) + t**4 * (v @ v / 2 + f(q))) / 2  # TK's gauge has a factor of 1/2
    assert charge(t, q, v).item() == pytest.approx(by_hand.item(), rel=1e-13)
    t_eval = np.linspace(0.5, 3, 11)
    for loss, conserved in ((f, True), (lambda q: f(q) + q[0] ** 2, False)):
        run = integrate(nesterov(), loss, q, v, t_span=(0.5, 3), t_eval=t_eval, rtol=1e-12, atol=1e-14)
        values = rund_trautmann(lagrangian(nesterov(), loss), xi, tau).charge(run.t, run.q, run.v)
        assert bool((values - values[0]).abs().max() < 1e-10) is conserved


# --- Algorithm 1 --------------------------------------------------------------------------------------------------

CENTRAL = lambda q: (q @ q - 1) ** 2  # noqa: E731


def drift(found, rule, f, span, q0, v0=SPEED, *, t_ref=None, panels=4):
    run = motion(rule, f, span, q0, v0, panels)[0]
    values = found.integrated(run.t, run.q, run.v, t_ref=t_ref)
    return (values - values[0]).abs().max().item(), values.abs().max().item()


@pytest.mark.parametrize("name", ["newtonian", "nesterov", "damped", "sgd", "general"])
def test_angular_momentum_of_every_rule_with_mass(name):
    rule, span = RULES[name]
    found = find_conserved_quantities(rule, CENTRAL, so(3), START)
    assert len(found.conserved) == 3
    for law in found:
        assert law.is_symmetry
        assert law.defect < 1e-13
        moved, size = drift(law, rule, CENTRAL, span, START, t_ref=span[1])
        assert moved < 1e-10 < size
    weight = {"newtonian": 1.0, "nesterov": 1.5**3 / 2, "damped": 0.7 * math.exp(1.5 * 1.1 / 0.7)}
    if name in weight:  # GU Eqs. 45, 46: constant, times t^3 (up to TK's factor 1/2), times e^(mu t / m)
        M = found.matrix(1.5, START, SPEED) * torch.exp(found[0].log_weight(1.5))
        by_hand = weight[name] * (START.outer(SPEED) - SPEED.outer(START))
        assert torch.allclose(M, by_hand, rtol=1e-12)


def test_conserved_quantities_of_long_runs_do_not_overflow():
    rule = sgd(0.1, 0.9)
    law = find_conserved_quantities(rule, CENTRAL, [rotation(plane=(0, 1))], START)[0]
    run = integrate(rule, CENTRAL, START, SPEED, t_span=(0, 3.0), t_eval=[0.0, 3.0], rtol=1e-12, atol=1e-16)
    last = law.integrated(run.t, run.q, run.v, t_ref=3.0)
    assert last[0].item() == pytest.approx(last[1].item(), abs=1e-10)
    far = 1e5
    assert not torch.isfinite(law.integrated(far, START, SPEED))
    assert torch.isfinite(law.integrated(far, START, SPEED, t_ref=far))


def test_what_breaks_the_kinetic_energy_is_a_balance_only():
    for rule in (newtonian(), damped(0.7, 1.1), RULES["natural gradient, cosh"][0]):
        found = find_conserved_quantities(rule, scale_free, [scale()], START)[0]
        assert found.is_symmetry
        assert not found.is_total_derivative
        assert "kinetic energy breaks it" in found.statement
        with pytest.raises(ValueError, match="follow its charge with noether_learning_dynamics"):
            found.integrated(0.0, START, SPEED)


def test_curved_metrics_keep_their_own_symmetries_only():
    radial = natural_gradient(lambda q: (q @ q) ** 2 / 4 + q @ q / 2, 0.3, 1.0)
    law = find_conserved_quantities(radial, CENTRAL, [rotation(plane=(0, 2))], START)[0]
    moved, size = drift(law, radial, CENTRAL, (0.0, 0.3), START, panels=1)
    assert moved < 1e-10 < size
    separable = find_conserved_quantities(RULES["natural gradient, cosh"][0], CENTRAL, [rotation(plane=(0, 2))], START)
    assert not separable[0].is_total_derivative
    assert separable[0].is_symmetry


def test_translations_and_weight_decay():
    f, symmetry = PAIRS["translation"]
    for rule, conserved in ((sgd(0.2, 0.5), True), (sgd(0.2, 0.5, 0.1), False)):
        law = find_conserved_quantities(rule, f, [symmetry], START)[0]
        assert law.is_total_derivative is conserved
        if conserved:
            assert drift(law, rule, f, (0.0, 1.0), START)[0] < 1e-10
        else:
            assert "weight decay pulls" in law.statement
    rotating = find_conserved_quantities(sgd(0.2, 0.5, 0.1), CENTRAL, [rotation(plane=(0, 1))], START)[0]
    assert drift(rotating, sgd(0.2, 0.5, 0.1), CENTRAL, (0.0, 1.0), START)[0] < 1e-10  # decay has no torque


@pytest.mark.parametrize("k", [0.0, 0.2])
def test_gradient_flow_conserves_what_gradients_generate(k):
    """Quadratic forms, linear forms, and beyond: the imaginary part of z^3 where the loss is the real one."""
    flow = replace(gradient_flow(), weight_decay=k)
    cubic = lambda q: (q[0] ** 3 - 3 * q[0] * q[1] ** 2) / 6  # noqa: E731
    conjugate = Symmetry(lambda q, s: q + s * torch.stack([6 * q[0] * q[1], 3 * q[0] ** 2 - 3 * q[1] ** 2]), "Im z^3")
    saddle = lambda q: (q[0] * q[1] - 1) ** 2  # noqa: E731
    line = lambda q: torch.sin(q[0] - 2 * q[1])  # noqa: E731
    cases = (
        (cubic, conjugate, lambda q: 3 * q[0] ** 2 * q[1] - q[1] ** 3, 3),
        (saddle, rescale([0], [1]), lambda q: (q[0] ** 2 - q[1] ** 2) / 2, 2),
        (line, translation([2.0, 1.0]), lambda q: 2 * q[0] + q[1], 1),
    )
    start = vector(0.6, 0.8)
    for f, symmetry, form, degree in cases:
        law = find_conserved_quantities(flow, f, symmetry, start)[0]
        assert law.is_total_derivative
        assert law.charge(0.0, start).item() == pytest.approx(form(start).item(), rel=1e-13)
        assert law.log_weight(2.0) == pytest.approx(2 * degree * k)
        moved, size = drift(law, flow, f, (0.0, 1.0), start, None)
        assert moved < 1e-10 < size
    turning = find_conserved_quantities(flow, lambda q: (q @ q - 1) ** 2, rotation(plane=(0, 1)), start)[0]
    assert not turning.is_total_derivative
    assert "not a gradient" in turning.statement


def test_generators_that_are_gradients_but_not_homogeneous():
    """A hyperbola around another centre: its quadratic form comes from a line integral."""
    f = lambda q: ((q[0] - 1) * (q[1] + 2) - 0.5) ** 2  # noqa: E731
    shifted = Symmetry(lambda q, s: q + s * torch.stack([q[0] - 1, -(q[1] + 2)]), "shifted")
    start = vector(0.6, 0.8)
    law = find_conserved_quantities(gradient_flow(), f, [shifted], start)[0]
    form = lambda q: ((q[0] - 1) ** 2 - (q[1] + 2) ** 2) / 2  # noqa: E731
    there = vector(-0.3, 1.7)
    difference = law.charge(0.0, there) - law.charge(0.0, start)
    assert difference.item() == pytest.approx((form(there) - form(start)).item(), rel=1e-13)
    assert drift(law, gradient_flow(), f, (0.0, 0.5), start)[0] < 1e-10
    decaying = replace(gradient_flow(), weight_decay=0.1)
    assert "different degree" in find_conserved_quantities(decaying, f, [shifted], start)[0].statement


def linear_network():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    y = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).double()
    return flat_loss(mlp((3, 2, 2), "linear", seed=1), x, y, nn.functional.mse_loss)


def test_gl_d_between_linear_layers():
    """GU Eqs. 41 and 42: symmetric matrices under gradient flow, and beyond GU the skew ones with mass."""
    f = linear_network()
    algebra = gl(2, lambda A: linear_pair(f.slices["1.weight"], f.slices["3.weight"], A))
    layers = lambda q: (q[:6].view(2, 3), q[6:].view(2, 2))  # noqa: E731
    W, W_next = layers(f.q0)
    flow = find_conserved_quantities(gradient_flow(), f, algebra, f.q0)
    assert all(law.is_symmetry for law in flow)
    assert [law.is_total_derivative for law in flow] == [True, False, False, True]
    balance = (W @ W.T - W_next.T @ W_next) / 2
    assert torch.allclose(flow.matrix(0.0, f.q0), balance, rtol=1e-13)
    laws = flow.combinations()
    expected = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert torch.allclose(torch.stack([law.coefficients for law in laws]), torch.tensor(expected).double(), atol=1e-9)
    assert laws[1].symmetry.name == "gl(2)[1] + gl(2)[2]"
    run, _ = motion(gradient_flow(), f, (0.0, 2.0), f.q0)
    matrices = flow.matrix(run.t, run.q)
    assert (matrices - balance).abs().max() < 1e-10
    assert (matrices[-1] - matrices[0]).norm() < 1e-9 * (run.q[-1] - run.q[0]).norm()

    nag = nesterov()
    found = find_conserved_quantities(nag, f, algebra, f.q0)
    assert not found.conserved
    (law,) = found.combinations()
    assert torch.allclose(law.coefficients, vector(0, 1, -1, 0), atol=1e-9)
    v0 = torch.linspace(-1, 1, len(f.q0)).double()
    run, _ = motion(nag, f, (0.5, 2.5), f.q0, v0)
    values = law.integrated(run.t, run.q, run.v)
    assert (values - values[0]).abs().max() < 1e-10 < values.abs().max()
    V, V_next = layers(v0)
    skew = W @ V.T - V @ W.T - (V_next.T @ W_next - W_next.T @ V_next)
    assert values[0].item() == pytest.approx(-(0.5**3) / 2 * skew[0, 1].item(), rel=1e-12)  # GU times t^3


def test_combinations_find_symmetries_that_no_element_has():
    """Single layers do not rescale freely, two together do; given as matrices and as symmetries."""
    f = lambda q: (q[0] * q[1] - 1) ** 2 + q[2] ** 4  # noqa: E731
    group = [torch.diag(vector(*row)) for row in ([1, 0, 0], [0, 3, 0], [0, 0, 1])]
    for given_as in (group, [linear_action(A) for A in group]):
        found = find_conserved_quantities(gradient_flow(), f, given_as, START)
        assert not any(law.is_symmetry for law in found)
        (law,) = found.combinations()
        assert torch.allclose(law.coefficients, vector(1, -1 / 3, 0), atol=1e-9)
        assert drift(law, gradient_flow(), f, (0.0, 1.0), START)[0] < 1e-10
        assert invariance_defect(f, law.symmetry, START, s=0.7) < 1e-12
    assert not find_conserved_quantities(gradient_flow(), tangled, group, START).combinations()


def test_those_that_are_no_symmetries_say_so():
    tilted = lambda q: CENTRAL(q) + 0.5 * q[2]  # noqa: E731
    found = find_conserved_quantities(newtonian(), tilted, so(3), START)
    assert [law.is_symmetry for law in found] == [True, False, False]  # rotations about the third axis remain
    assert "not a symmetry of the loss (defect" in found[1].statement
    assert "so(3)[0]: conserved: exp(gamma) <Delta_h, xi>" in repr(found)
    with pytest.raises(ValueError, match="no conserved quantity"):
        found[1].integrated(0.0, START, SPEED)
    moved = noether_charge(newtonian(), found[1].symmetry, *last(newtonian(), tilted))
    assert abs(moved - noether_charge(newtonian(), found[1].symmetry, 0.0, START, SPEED)) > 0.01


def last(rule, f):
    run = motion(rule, f, (0.0, 2.0))[0]
    return run.t[-1], run.q[-1], run.v[-1]


@pytest.mark.parametrize("name", ["nesterov", "general", "natural gradient, cosh", "gradient flow"])
def test_quantity_17_along_a_motion(name):
    """E, the rule's side of its equation, from a measured acceleration: -grad f, hence at right angles to xi."""
    rule, (t0, _) = (gradient_flow(), (0.0, 1.0)) if name == "gradient flow" else RULES[name]
    f, symmetry = PAIRS["scale"]
    t = np.linspace(t0, t0 + 0.8, 161)
    v0 = None if rule.massless else SPEED
    run = integrate(rule, f, START, v0, t_span=(t[0], t[-1]), t_eval=t, rtol=1e-12, atol=1e-14)
    curve = make_interp_spline(t, run.q.numpy(), k=7)
    v = torch.from_numpy(curve.derivative()(t))[20:-20]
    a = torch.from_numpy(make_interp_spline(t, run.v.numpy(), k=7).derivative()(t))[20:-20]
    at = (run.t[20:-20], run.q[20:-20], v)
    law = find_conserved_quantities(rule, f, [symmetry], START)[0]
    assert law.quantity(*at, a).abs().max() < 1e-7
    assert law.quantity(*at[:2], v + 0.01 * at[1], a).abs().max() > 1e-4  # not along just any velocity
    for i in range(3):  # GU Eq. 15, component by component
        push = find_conserved_quantities(rule, f, [translation(torch.eye(3)[i])], START)[0]
        slope = torch.stack([grad(f)(q)[i] for q in at[1]])
        assert (push.quantity(*at, a) + slope).abs().max() < 1e-7
        assert (push.quantity(*at, a) - slope).abs().max() > 1e-2


def test_equation_15_holds_for_the_acceleration_of_the_lagrangian():
    """Pointwise, at the acceleration that the Lagrangian gives: E is its Euler-Lagrange expression, decay included."""
    for name, (rule, (t, _)) in {**RULES, "decay": (sgd(0.2, 0.5, weight_decay=0.3), (0.0, 1.5))}.items():
        t = torch.tensor(t + 0.3).double()
        a = acceleration(lagrangian(rule, tangled, t_ref=float(t)))(t, START, SPEED)
        for n in torch.eye(3).double():
            law = find_conserved_quantities(rule, tangled, [translation(n)], START)[0]
            expected = -grad(tangled)(START) @ n
            assert law.quantity(t, START, SPEED, a).item() == pytest.approx(expected.item(), rel=1e-9), name


def test_quantity_17_of_gradient_flow_under_decay():
    """Its velocity is the slope of the loss and the decay's pull; only the loss's own slope is left of E."""
    flow = replace(gradient_flow(), weight_decay=0.3)
    slope = grad(tangled)(START)
    for n in torch.eye(3).double():
        law = find_conserved_quantities(flow, tangled, [translation(n)], START)[0]
        assert law.quantity(0.0, START, -slope - 0.3 * START).item() == pytest.approx((-slope @ n).item(), rel=1e-12)
        assert law.quantity(0.0, START, -slope).item() != pytest.approx((-slope @ n).item(), rel=1e-3)


def test_results_are_sequences_and_print_the_same_everywhere():
    found = find_conserved_quantities(newtonian(), CENTRAL, so(3), START)
    assert len(found) == 3
    assert next(iter(found)) is found[0]
    assert repr(found[0]) == "ConservedQuantity(so(3)[0]: conserved: exp(gamma) <Delta_h, xi>)"
    assert found.charges(0.0, START, SPEED).shape == (3,)
    run = motion(newtonian(), CENTRAL, (0.0, 1.0))[0]
    assert found.matrix(run.t, run.q, run.v).shape == (len(run.t), 3, 3)


# --- what cannot work ---------------------------------------------------------------------------------------------


def test_bad_states():
    rule = damped(1.0, 1.0)
    with pytest.raises(ValueError, match=r"a has shape \(2,\), v \(3,\)"):
        noether_learning_dynamics(rule, scale(), 0.0, START, SPEED, SPEED[:2])
    with pytest.raises(ValueError, match=r"v has shape \(2,\), q \(3,\)"):
        noether_charge(rule, scale(), 0.0, START, SPEED[:2])
    with pytest.raises(ValueError, match=r"t has shape \(2,\) and q \(3,\)"):
        noether_charge(rule, scale(), [0.0, 1.0], START, SPEED)
    with pytest.raises(ValueError, match=r"measured along the motion"):
        noether_learning_dynamics(rule, scale(), 0.0, START, SPEED).residual  # noqa: B018
    with pytest.raises(ValueError, match="massless"):
        noether_charge(gradient_flow(), scale(), 0.0, START, SPEED)
    with pytest.raises(ValueError, match="not the identity"):
        noether_charge(rule, Symmetry(lambda q, s: s * q), 0.0, START, SPEED)
    with pytest.raises(ValueError, match="outside the domain"):
        noether_charge(RULES["natural gradient, entropy"][0], scale(), 0.0, -START, SPEED)
    with pytest.raises(ValueError, match="not finite at q"):
        noether_learning_dynamics(rule, scale(), 0.0, -START, SPEED, f=lambda q: q.log().sum())
    with pytest.raises(TypeError, match="scalar"):
        noether_learning_dynamics(rule, scale(), 0.0, START, SPEED, f=lambda q: q)


def test_bad_transformations():
    with pytest.raises(ValueError, match="needs a generator"):
        rund_trautmann(spring)
    with pytest.raises(TypeError, match=r"tau\(t, q\) must be a scalar"):
        rund_trautmann(spring, tau=lambda t, q: q).charge(0.0, START, SPEED)
    with pytest.raises(ValueError, match="not the identity at s = 0"):
        spacetime_generators(lambda t, q, s: (s * t, q))[1](1.0, START)
    with pytest.raises(TypeError, match=r"returns the pair \(T, Q\)"):
        transformed(spring, lambda t, q, s: q)(0.0, START, SPEED, 0.1)
    with pytest.raises(TypeError, match="scalar"):
        rund_trautmann(lambda t, q, v: v, tau=lambda t, q: 1.0).identity(0.0, START, SPEED)


def test_bad_searches():
    search = lambda **kw: find_conserved_quantities(  # noqa: E731
        **{"rule": newtonian(), "f": CENTRAL, "group": so(3), "q": START, **kw}
    )
    for kw, match in (
        ({"group": []}, "group is empty"),
        ({"f": lambda q: 0 * q.sum()}, "gradient of the loss vanishes near q"),
        ({"q": START[None]}, r"shape \(n,\) with n > 0, got \(1, 3\)"),
        ({"group": [Symmetry(lambda q, s: q * (1 + float(s)), "frozen")]}, "generator of frozen vanishes"),
        ({"points": 0}, "points must be an integer from 1"),
        ({"spread": 0.7}, "spread must be in .0, 0.5., got 0.7"),
        ({"rule": RULES["natural gradient, entropy"][0], "q": -START}, "outside the domain"),
        ({"f": lambda q: (-q).log().sum()}, "not finite at q"),
    ):
        with pytest.raises(ValueError, match=match):
            search(**kw)
    with pytest.raises(ValueError, match="without matrices"):
        search(group=[scale()]).matrix(0.0, START, SPEED)
    with pytest.raises(ValueError, match="pass a"):
        search()[0].quantity(0.0, START, SPEED)
