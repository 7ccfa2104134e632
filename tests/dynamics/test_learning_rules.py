"""Learning rules: every equation of motion is differentiated out of its Lagrangian, never typed in twice."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import quartic

from nlcompanion.dynamics import (
    LearningRule,
    Steps,
    bregman,
    bregman_momentum,
    damped,
    descend,
    general,
    gradient_flow,
    kinetic_energy,
    lagrangian,
    linearized_dynamics,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.laws import data_rotation_law, homogeneous_law, linear_law
from nlcompanion.mechanics import acceleration, generalized_momentum
from nlcompanion.monitoring import Ledger
from nlcompanion.networks import flat_loss, mlp

Q = torch.tensor([0.8, 1.3], dtype=torch.float64)
V = torch.tensor([0.4, -0.2], dtype=torch.float64)
ENTROPY = lambda q: (q * q.log()).sum()  # noqa: E731

EUCLIDEAN = {
    "nesterov": nesterov(),
    "newtonian": newtonian(),
    "damped": damped(0.7, 1.3),
    "sgd": sgd(0.1, 0.9, 0.05),
    "general": general(lambda t: 1 + t**2, lambda t: 2 + torch.sin(t)),
    "general as nesterov": general(lambda t: 1.0, lambda t: 3 / t),
    "bregman": bregman(lambda t: math.log(3) - t.log(), lambda t: 3 * t.log(), lambda t: 3 * t.log()),
}


def slope(f, q):
    q = q.clone().requires_grad_()
    return torch.autograd.grad(f(q), q)[0]


@pytest.mark.parametrize("name", EUCLIDEAN)
@pytest.mark.parametrize("t", [0.4, 2.5])
def test_equation_of_motion_is_the_lagrangians(name, t):
    rule = EUCLIDEAN[name]
    c1, c2 = rule.equation(t)
    direct = -c1 * V - c2 * (slope(quartic, Q) + rule.weight_decay * Q)
    differentiated = acceleration(lagrangian(rule, quartic, t_ref=t))(t, Q, V)
    assert torch.allclose(direct, differentiated, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(direct + 0.01 * V, differentiated, rtol=1e-6)


def test_table_1_coefficients():
    assert nesterov().equation(2.0) == (1.5, 1.0)
    assert damped(2.0, 3.0).equation(5.0) == (1.5, 0.5)
    m, mu = 0.1 * 1.9 / 2, 0.1
    assert sgd(0.1, 0.9).equation(0.0) == pytest.approx((mu / m, 1 / m), rel=1e-14)


@given(st.floats(0.05, 3), st.floats(0, 3), st.floats(-1, 1), st.floats(0.5, 3))
@settings(max_examples=15, deadline=None)
def test_general_and_bregman_agree(k2, k1, tilt, t):
    """GU's general dynamics is a Bregman rule in the gauge alpha = 0."""
    first = general(lambda t: k2 + 0 * t, lambda t: k1 + tilt * t)
    second = bregman(lambda t: 0.0, lambda t: -math.log(k2), lambda t: (k1 * t + tilt * t**2 / 2) / k2)
    assert first.equation(t) == pytest.approx(second.equation(t), rel=1e-12, abs=1e-12)
    a1 = acceleration(lagrangian(first, quartic, t_ref=t))(t, Q, V)
    a2 = acceleration(lagrangian(second, quartic, t_ref=t))(t, Q, V)
    assert torch.allclose(a1, a2, rtol=1e-10)


def test_a_constant_factor_changes_no_motion_but_keeps_sgd_finite():
    rule, late = sgd(0.01), 100.0  # gamma = 2 t / eta = 20,000
    assert not torch.isfinite(lagrangian(rule, quartic)(late, Q, V))
    finite = lagrangian(rule, quartic, t_ref=late)
    c1, c2 = rule.equation(late)
    expected = -c1 * V - c2 * slope(quartic, Q)
    assert torch.allclose(acceleration(finite)(late, Q, V), expected, rtol=1e-9)


@pytest.mark.parametrize("rule", [natural_gradient(ENTROPY, 0.3, 1.0), damped(0.3, 1.0), nesterov()])
def test_bregman_momentum_is_the_generalised_one(rule):
    t = 0.6
    p = generalized_momentum(lagrangian(rule, quartic))(t, Q, V)
    gamma = float(rule.gamma(torch.tensor(t, dtype=torch.float64)))
    assert torch.allclose(bregman_momentum(rule)(t, Q, V), math.exp(-gamma) * p, rtol=1e-12)


def test_kinetic_energy_of_entropy_is_a_kullback_leibler_divergence():
    m = 0.3
    T = kinetic_energy(natural_gradient(ENTROPY, m, 1.0))(0.0, Q, V)
    y = Q + m * V
    divergence = (y * (y / Q).log() - y + Q).sum() / m
    assert T.item() == pytest.approx(divergence.item(), rel=1e-12)


def test_euclidean_kinetic_energy_is_the_general_formula_for_half_square():
    by_formula = natural_gradient(lambda x: 0.5 * x @ x, 0.3, 1.0)
    assert not by_formula.is_euclidean
    exact = kinetic_energy(damped(0.3, 1.0))(0.0, Q, V)
    assert torch.allclose(kinetic_energy(by_formula)(0.0, Q, V), exact, rtol=1e-13)


def test_gradient_flow_has_no_lagrangian_and_says_why():
    for use in (lambda: lagrangian(gradient_flow(), quartic), lambda: kinetic_energy(gradient_flow())):
        with pytest.raises(ValueError, match="massless"):
            use()


def test_starts():
    g = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert torch.equal(sgd(0.1, 0.5).start(0.0, Q, g), -g / 1.5)
    assert torch.equal(nesterov().start(0.2, Q, g), -0.05 * g)
    assert torch.equal(gradient_flow().start(0.0, Q, g), -g)
    assert newtonian().start is None


def test_rules_are_frozen():
    with pytest.raises(AttributeError):
        damped(1.0, 1.0).weight_decay = 3.0
    assert isinstance(sgd(0.1), LearningRule)
    assert "lr=0.1" in repr(sgd(0.1))


# --- a name is a label ---------------------------------------------------------------------------------------------

RULES = EUCLIDEAN | {
    "gradient flow": gradient_flow(),
    "plain sgd": sgd(0.05),
    "nesterov steps": nesterov(lr=0.05),
    "newtonian steps": newtonian(lr=0.05),
    "full first step": newtonian(lr=0.05, half_first_step=False),
    "decayed newtonian steps": replace(newtonian(lr=0.05), weight_decay=0.1),
    "decayed nesterov steps": replace(nesterov(lr=0.05), weight_decay=0.1),
}
LABELS = ("x", "Nesterov's other rule", "Newtonian", "general dynamics", "SGD")


@pytest.fixture(scope="module")
def net():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4).sin()
    f = flat_loss(mlp((4, 3, 3, 1), ["linear", "relu"], seed=1), x, x[:, :1], torch.nn.functional.mse_loss)
    return f, (homogeneous_law(f, layer=2), linear_law(f, layer=1), data_rotation_law(f))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("label", LABELS)
def test_a_name_decides_no_law(rule, label, net):
    _, laws = net
    renamed = replace(rule, name=label)
    for law in laws:
        assert law.under(renamed).statement == law.under(rule).statement


def test_every_rule_has_its_own_statement(net):
    """The control of the test above: what tells rules apart is not lost with their names."""
    _, laws = net
    apart = [rule for name, rule in RULES.items() if name not in ("full first step", "bregman")]
    assert len({laws[0].under(rule).statement for rule in apart}) == len(apart) - 1  # general as Nesterov's


def test_step_0_has_no_step_before_it_to_keep():
    assert [sgd(0.1, 0.9).steps.memory_of(n) for n in (0, 1, 2)] == [0.0, 0.9, 0.9]


@pytest.mark.parametrize("rule", [r for r in RULES.values() if r.steps], ids=[n for n, r in RULES.items() if r.steps])
@pytest.mark.parametrize("label", LABELS)
def test_a_name_changes_no_step_and_no_account(rule, label, net):
    f, (*laws, _) = net  # so small a data set turns the first layer
    runs = []
    for each in (rule, replace(rule, name=label)):
        ledger = Ledger(laws, rule=each)
        run = descend(each, f, f.q0, steps=12, record=lambda t, q, v, book=ledger: {**book.record(t, q, v), "q": q @ v})
        runs.append((run.record["q"], ledger[0].finite_step, ledger[0].momentum, ledger[1].worst))
        assert float(run.record["residual"].max()) < 1e-12
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_the_ledger_reads_the_steps_that_a_rule_has(net):
    """The control: the books of one rule's steps do not close on another's."""
    f, (*laws, _) = net
    wrong = Ledger(laws, rule=sgd(0.05, 0.9))
    steps = replace(sgd(0.05, 0.9), steps=Steps(0.05, 0.05, memory=lambda n: 0.9 * n / (n + 1)))
    run = descend(steps, f, f.q0, steps=12, record=wrong.record)
    assert float(run.record["residual"].max()) > 1e-6
    right = Ledger(laws, rule=steps)
    assert float(descend(steps, f, f.q0, steps=12, record=right.record).record["residual"].max()) < 1e-12
    assert laws[0].under(steps).steps.startswith("ΔC(n) - m(n) ΔC(n-1) = Q(d(n)) + m(n) Q(d(n-1))")


@pytest.mark.parametrize("rule", [r for r in RULES.values() if not r.weight_decay])
def test_a_name_changes_no_prediction_of_the_kernel(rule):
    H = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    u0, y = torch.tensor([0.0, 1.0]), torch.tensor([1.0, -1.0])
    plain = linearized_dynamics(H, u0, y, [0.5, 1.0, 2.0], rule, t0=0.5)
    renamed = linearized_dynamics(H, u0, y, [0.5, 1.0, 2.0], replace(rule, name="Newtonian"), t0=0.5)
    assert torch.equal(plain, renamed)


# --- arguments ----------------------------------------------------------------------------------------------------

not_positive = st.one_of(st.floats(max_value=0), st.just(math.nan), st.just(math.inf))


@given(not_positive)
@settings(max_examples=30)
def test_step_sizes_must_be_positive(lr):
    for make in (sgd, nesterov, newtonian):
        with pytest.raises(ValueError, match="lr must be"):
            make(lr=lr)


@given(st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1), st.just(math.nan)))
@settings(max_examples=30)
def test_momentum_must_be_below_one(momentum):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        sgd(0.1, momentum)


@given(st.one_of(st.floats(max_value=-1e-9), st.just(math.nan), st.just(math.inf)))
@settings(max_examples=30)
def test_decay_and_friction_must_not_be_negative(x):
    with pytest.raises(ValueError, match="weight_decay"):
        sgd(0.1, 0.9, x)
    with pytest.raises(ValueError, match="friction"):
        damped(1.0, x)


@given(not_positive)
@settings(max_examples=30)
def test_mass_must_be_positive(mass):
    with pytest.raises(ValueError, match="mass"):
        damped(mass, 1.0)
    with pytest.raises(ValueError, match="mass"):
        natural_gradient(ENTROPY, mass, 1.0)


def test_more_bad_arguments():
    with pytest.raises(ValueError, match=r"kappa2\(2\) = -1"):
        general(lambda t: 1 - t, lambda t: 1.0).equation(2.0)
    with pytest.raises(TypeError, match="h must be a function"):
        natural_gradient(3.0, 1.0, 1.0)
    with pytest.raises(TypeError, match="return a scalar"):
        bregman(lambda t: torch.ones(2) * t, lambda t: t, lambda t: t).equation(1.0)
