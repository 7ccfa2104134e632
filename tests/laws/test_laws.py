"""laws: charges of homogeneous activations, their symmetry and their exact bookkeeping; each with a control."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlcompanion._arguments import as_point
from nlcompanion.dynamics import (
    bregman,
    damped,
    descend,
    general,
    gradient_flow,
    integrate,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.laws import data_rotation_law, homogeneous_law, homogeneous_laws, linear_law
from nlcompanion.networks import Power, RePU, Swish, flat_loss, mlp


def loss_of(model, samples=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = next(m for m in model.modules() if isinstance(m, nn.Linear))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    x = torch.randn(samples, first.in_features, generator=generator).double()
    y = torch.randint(last.out_features, (samples,), generator=generator)
    return flat_loss(model, x, y, F.cross_entropy)


def gradient(f, q):
    q = q.clone().requires_grad_()
    return torch.autograd.grad(f(q), q)[0]


RELU = loss_of(mlp((6, 5, 4, 3), "relu", seed=1))
ACTIVATIONS = {
    "relu": ("relu", 1.0),
    "leaky": ("leaky_relu", 1.0),
    "prelu": (nn.PReLU(), 1.0),
    "linear": ("linear", 1.0),
    "repu2": (RePU(2), 2.0),
    "repu1.5": (RePU(1.5), 1.5),
    "power3": (Power(3), 3.0),
}

# --- the charge ---------------------------------------------------------------------------------------------------


def test_charge_is_rows_minus_columns():
    W = RELU.unflatten(RELU.q0)
    law = homogeneous_law(RELU, 1)
    by_hand = W["1.weight"].square().sum(1) - W["3.weight"].square().sum(0)
    torch.testing.assert_close(law.charge(RELU.q0), by_hand, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(law.total.charge(RELU.q0), by_hand.sum(), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(law[3].charge(RELU.q0), by_hand[3], rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(law[-1].charge(RELU.q0), by_hand[4], rtol=1e-14, atol=1e-15)
    reads, writes = law.sides(RELU.q0)
    torch.testing.assert_close(reads - writes, by_hand, rtol=1e-14, atol=1e-15)
    direction = torch.linspace(-1, 1, len(RELU.q0)).double()
    reads, writes = law.sides(RELU.q0, direction)
    torch.testing.assert_close(reads - writes, law.form(RELU.q0, direction), rtol=1e-13, atol=1e-15)
    assert law.kind == "homogeneous"
    assert law.parameters == ("1.weight", "3.weight")


def test_charge_with_bias_and_power():
    f = loss_of(mlp((3, 4, 2), RePU(3), bias=True, seed=2))
    W = f.unflatten(f.q0)
    by_hand = W["1.weight"].square().sum(1) + W["1.bias"] ** 2 - 3 * W["3.weight"].square().sum(0)
    torch.testing.assert_close(homogeneous_law(f, 1).charge(f.q0), by_hand, rtol=1e-14, atol=1e-15)
    assert homogeneous_law(f, 1)[2].statement == "|1.weight[2, :]|² + |1.bias[2]|² - 3 |3.weight[:, 2]|² = const"


def test_charge_of_a_model_is_that_of_its_flat_vector():
    model = mlp((6, 5, 4, 3), "relu", seed=1)
    law = homogeneous_law(RELU, 2)
    assert torch.equal(law.charge(model), law.charge(RELU.q0))
    with pytest.raises(ValueError, match=r"needs a parameter 3\.weight of shape \(4, 5\)"):
        law.charge(mlp((6, 5, 3), "relu"))


def test_generator_is_half_the_gradient_of_the_charge():
    law, q = homogeneous_law(RELU, 1), RELU.q0.clone().requires_grad_()
    for one in (law[2], law.total):
        (slope,) = torch.autograd.grad(one.charge(q), q)
        torch.testing.assert_close(one.generator(RELU.q0), slope / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(law.generator(RELU.q0), law.total.generator(RELU.q0), rtol=0, atol=0)
    moved, eps = law[2].act(RELU.q0, 1e-6), 1e-6
    torch.testing.assert_close((moved - RELU.q0) / eps, law[2].generator(RELU.q0), rtol=0, atol=1e-5)


def test_act_is_a_group():
    law, s = homogeneous_law(RELU, 1), torch.linspace(-1, 1, 5).double()
    twice = law.act(law.act(RELU.q0, s), 2 * s)
    torch.testing.assert_close(twice, law.act(RELU.q0, 3 * s), rtol=1e-14, atol=0)
    torch.testing.assert_close(law.act(law.act(RELU.q0, s), -s), RELU.q0, rtol=1e-14, atol=0)


def test_nested_sequential_and_every_layer():
    inner = mlp((6, 5, 4, 3), "relu", seed=1)
    f = loss_of(nn.Sequential(inner[:3], inner[3:]))
    laws = homogeneous_laws(f)
    assert [law.shape for law in laws] == [(5,), (4,)]
    assert laws[0].parameters == ("0.1.weight", "1.3.weight")


def test_layers_without_a_law_are_left_out():
    f = loss_of(mlp((4, 3, 5, 2, 2), ["relu", "tanh", "leaky_relu"]))
    assert [law.shape for law in homogeneous_laws(f)] == [(3,), (2,)]
    assert homogeneous_laws(loss_of(mlp((4, 3, 2), "gelu"))) == ()
    assert homogeneous_laws(loss_of(mlp((4, 2)))) == ()


# --- the symmetry, at a finite distance and at once -----------------------------------------------------------------


def defect(f, law, seed=0):
    s = torch.empty(law.shape).uniform_(0.2, 0.7, generator=torch.Generator().manual_seed(seed)).double()
    return float(abs(f(law.act(f.q0, s)) - f(f.q0)) / f(f.q0))


@given(
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    kinds=st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=3, max_size=3),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=30)
def test_any_network_is_invariant_and_its_gradient_orthogonal(widths, kinds, bias, seed):
    hidden = len(widths) - 2
    activations = [ACTIVATIONS[kind][0] for kind in kinds[:hidden]]
    f = loss_of(mlp((*widths[:-1], widths[-1] + 1), activations, bias=bias, seed=seed), seed=seed)
    g = gradient(f, f.q0)
    laws = homogeneous_laws(f)
    assert len(laws) == hidden
    for kind, law in zip(kinds, laws, strict=False):
        assert defect(f, law, seed) < 1e-12
        assert law.cosine(g, f.q0).abs().max() < 1e-13
        assert law[0].cosine(g, f.q0).abs() < 1e-13
        coefficient = ACTIVATIONS[kind][1]
        assert (coefficient == 1) == ("- |" in law.statement)


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_control_wrong_power(kind):
    activation, p = ACTIVATIONS[kind]
    f = loss_of(mlp((6, 5, 3), activation, seed=3, init="kaiming"))
    g = gradient(f, f.q0)
    right, wrong = homogeneous_law(f, 1), homogeneous_law(f, 1, p=p + 0.01, verify=False)
    assert defect(f, right) < 1e-13 < 1e-5 < defect(f, wrong)
    assert right.cosine(g, f.q0).abs().max() < 1e-14 < 1e-4 < wrong.cosine(g, f.q0).abs().max()


def test_control_tanh():
    f = loss_of(mlp((6, 5, 3), "tanh", seed=3))
    law = homogeneous_law(f, 1, p=1.0, verify=False)
    assert defect(f, law) > 1e-3
    assert law.cosine(gradient(f, f.q0), f.q0).abs().max() > 1e-3


def test_the_cosine_of_a_matrix_of_laws_by_hand():
    """Entry (i, j) takes row i and column j of the gradients, and column i and row j of the weights."""
    f = loss_of(mlp((4, 3, 2), "linear", seed=1))
    law, q = linear_law(f, 1), f.q0
    g = torch.randn(len(f), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (W1, W2), (G1, G2) = f.unflatten(q).values(), f.unflatten(g).values()
    of_gradient = G1.square().sum(1)[:, None] + G2.square().sum(0)[None]
    of_generator = W2.square().sum(0)[:, None] + W1.square().sum(1)[None]
    cosine = law.cosine(g, q)
    assert torch.allclose(cosine, law.form(g, q) / (of_gradient * of_generator).sqrt(), rtol=1e-12)
    assert 0.1 < cosine.abs().max() <= 1


def test_a_dead_neuron_has_cosine_zero():
    model = mlp((4, 3, 2), "relu")
    with torch.no_grad():
        model[1].weight[1] = 0.0
        model[3].weight[:, 1] = 0.0
    f = loss_of(model)
    cosine = homogeneous_law(f, 1).cosine(gradient(f, f.q0), f.q0)
    assert cosine[1] == 0
    assert torch.isfinite(cosine).all()


def test_gradient_flow_conserves_every_neuron():
    f = loss_of(mlp((4, 5, 3), RePU(2), seed=2, init="kaiming"))
    flow = integrate(gradient_flow(), f, f.q0, t_span=(0.0, 1.0), rtol=1e-9, t_eval=[0.0, 0.5, 1.0])
    law, wrong = homogeneous_law(f, 1), homogeneous_law(f, 1, p=1.0, verify=False)
    start, end = flow.q[0], flow.q[-1]
    assert (law.sides(end)[0] - law.sides(start)[0]).abs().max() > 0.1  # something moves
    assert law.change(start, end).abs().max() < 1e-8
    assert wrong.change(start, end).abs().max() > 0.05


# --- Swish, across layers, dropout ----------------------------------------------------------------------------------


def test_swish_takes_its_beta_along():
    f = loss_of(mlp((6, 5, 4, 3), "swish", bias=True, seed=2))
    W, law = f.unflatten(f.q0), homogeneous_law(f, 1)
    by_hand = W["1.weight"].square().sum(1) + W["1.bias"] ** 2 - W["2.beta"] ** 2 - W["3.weight"].square().sum(0)
    torch.testing.assert_close(law.charge(f.q0), by_hand, rtol=1e-14, atol=1e-15)
    assert law.kind == "swish"
    assert law.total.statement == "|1.weight|² + |1.bias|² - |2.beta|² - |3.weight|² = const"
    g = gradient(f, f.q0)
    assert defect(f, law) < 1e-13
    assert law.cosine(g, f.q0).abs().max() < 1e-14
    without = homogeneous_law(f, 1, p=1.0, verify=False)  # the control: beta left out
    assert without.parameters == ("1.weight", "1.bias", "3.weight")
    assert defect(f, without) > 1e-4
    assert without.cosine(g, f.q0).abs().max() > 1e-3


def test_swish_after_a_power_scales_its_beta_by_the_degree_reached():
    model = nn.Sequential(nn.Linear(6, 5), RePU(2), Swish(5, beta=0.7), RePU(1.5), nn.Linear(5, 3)).double()
    f = loss_of(model)
    law = homogeneous_law(f, 1)
    assert law.total.statement == "|0.weight|² + |0.bias|² - 2 |2.beta|² - 3 |4.weight|² = const"
    assert defect(f, law) < 1e-13
    assert law.cosine(gradient(f, f.q0), f.q0).abs().max() < 1e-13


@given(
    kinds=st.lists(st.sampled_from(["relu", "repu1.5", "power3", "swish"]), min_size=3, max_size=3),
    across=st.integers(2, 3),
    bias=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=15)
def test_across_layers_degrees_multiply_and_biases_join(kinds, across, bias, seed):
    activations = [ACTIVATIONS[kind][0] if kind in ACTIVATIONS else kind for kind in kinds]
    f = loss_of(mlp((4, 3, 5, 4, 3), activations, bias=bias, seed=seed), seed=seed)
    law, g = homogeneous_law(f, 1, across=across), gradient(f, f.q0)
    degree = 1.0
    for kind in kinds[:across]:
        degree *= ACTIVATIONS[kind][1] if kind in ACTIVATIONS else 1.0
    assert law.shape == ()
    assert law.statement.endswith(f"{'' if degree == 1 else f'{degree:g} '}|{2 * across + 1}.weight|² = const")
    assert ("bias" in law.statement) == bias
    assert defect(f, law) < 1e-11
    assert abs(law.cosine(g, f.q0)) < 1e-12
    wrong = homogeneous_law(f, 1, across=across, p=degree + 0.05, verify=False)
    if g.abs().max() > 1e-6 and not bias and "swish" not in kinds:
        assert abs(wrong.cosine(g, f.q0)) > 1e-9
    # layer by layer, weighted by the degrees, the same charge
    total, weight = torch.zeros(()).double(), 1.0
    for h in range(across):
        total = total + weight * homogeneous_law(f, h + 1).total.charge(f.q0)
        weight *= ACTIVATIONS[kinds[h]][1] if kinds[h] in ACTIVATIONS else 1.0
    torch.testing.assert_close(law.charge(f.q0), total, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("layer", "across"), [(1, 0), (1, 3), (2, 2), (1, True), (1, 1.0)])
def test_no_such_distance(layer, across):
    with pytest.raises(ValueError, match="across is between 1 and"):
        homogeneous_law(RELU, layer, across=across)


# --- linear layers --------------------------------------------------------------------------------------------------


@given(d=st.integers(1, 5), bias=st.booleans(), seed=st.integers(0, 100), strength=st.floats(0.01, 0.7))
@settings(deadline=None, max_examples=12)
def test_a_linear_pair_has_every_matrix_as_symmetry(d, bias, seed, strength):
    f = loss_of(mlp((4, d, 3, 2), ["linear", "tanh"], bias=bias, seed=seed), seed=seed)
    law, g = linear_law(f, 1), gradient(f, f.q0)
    A = strength * torch.randn(d, d, generator=torch.Generator().manual_seed(seed)).double()
    assert abs(f(law.act(f.q0, A)) - f(f.q0)) < 1e-11 * f(f.q0)
    assert law.cosine(g, f.q0).abs().max() < 1e-13
    torch.testing.assert_close(g @ law.generator(f.q0, A), (A * law.form(g, f.q0)).sum(), rtol=0, atol=1e-12)
    a = torch.randn(len(f), generator=torch.Generator().manual_seed(seed + 1)).double()
    torch.testing.assert_close(a @ law.generator(f.q0, A), (A * law.form(a, f.q0)).sum(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(law.form(a, f.q0).T, law.form(f.q0, a), rtol=1e-12, atol=1e-13)


def test_linear_charge_by_hand_and_its_trace():
    f = loss_of(mlp((4, 3, 2), "linear", bias=True, seed=1))
    W, law = f.unflatten(f.q0), linear_law(f, 1)
    by_hand = W["1.weight"] @ W["1.weight"].T + torch.outer(W["1.bias"], W["1.bias"]) - W["3.weight"].T @ W["3.weight"]
    torch.testing.assert_close(law.charge(f.q0), by_hand, rtol=1e-13, atol=1e-15)
    neurons = homogeneous_law(f, 1)
    torch.testing.assert_close(law.charge(f.q0).diagonal(), neurons.charge(f.q0), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(law.total.charge(f.q0), neurons.total.charge(f.q0), rtol=1e-13, atol=1e-15)
    reads, writes = law.sides(f.q0)
    torch.testing.assert_close(reads - writes, by_hand, rtol=1e-13, atol=1e-15)
    assert torch.linalg.eigvalsh(reads).min() > -1e-15
    # a number moves along the identity, which is the layer's own rescaling
    torch.testing.assert_close(law.act(f.q0, 0.3), neurons.act(f.q0, 0.3), rtol=1e-13, atol=1e-15)


def test_control_an_activation_between_keeps_the_diagonal_only():
    f = loss_of(mlp((4, 3, 2), "relu", seed=1))
    with pytest.raises(ValueError, match=r"ReLU \(2\) stands between.*homogeneous_law\(f, 1\)"):
        linear_law(f, 1)
    with pytest.raises(ValueError, match=r"Tanh .* nothing or Identity"):
        linear_law(loss_of(mlp((4, 3, 2), "tanh")), 1)
    sham = linear_law(loss_of(mlp((4, 3, 2), "linear", seed=1)), 1)  # the same names and shapes, another network
    cosine = sham.cosine(gradient(f, f.q0), f.q0)
    assert cosine.diagonal().abs().max() < 1e-14
    assert (cosine - cosine.diagonal().diag()).abs().max() > 1e-3


def test_a_matrix_law_is_no_stack_of_neurons():
    law = linear_law(loss_of(mlp((4, 3, 2), "linear")), 1)
    with pytest.raises(TypeError, match=r"homogeneous_law\(f, layer\)\[i\]"):
        law[0]
    with pytest.raises(ValueError, match="law's shape"):
        law.act(law.generator(torch.zeros(18).double()), torch.ones(3))
    with pytest.raises(ValueError, match="1 hidden layers"):
        linear_law(loss_of(mlp((4, 3, 2), "linear")), 2)


# --- rotated data ---------------------------------------------------------------------------------------------------


class Population(nn.Module):
    """A loss of the first weight's Gram matrix alone, as inputs of a rotation-invariant distribution make it."""

    def __init__(self, hidden=3, d0=4, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(hidden, d0, generator=g).double())
        self.second = nn.Parameter(torch.randn(hidden, generator=g).double())

    def forward(self, x):
        overlap = self.first @ self.first.T
        return (self.second @ torch.tanh(overlap) @ self.second - 1) ** 2


def population(module):
    return flat_loss(module, torch.zeros(1), torch.zeros(1), lambda value, _: value)


@given(hidden=st.integers(1, 4), d0=st.integers(1, 5), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=10)
def test_rotations_of_the_data(hidden, d0, seed):
    f = population(Population(hidden, d0, seed))
    law, g = data_rotation_law(f, weight="first"), gradient(f, f.q0)
    generator = torch.Generator().manual_seed(seed + 1)
    S = torch.randn(d0, d0, generator=generator).double()
    assert abs(f(law.act(f.q0, S)) - f(f.q0)) < 1e-11 * (1 + f(f.q0))
    assert law.cosine(g, f.q0).abs().max() < 1e-12
    assert not law.charge(f.q0).any()
    v = torch.randn(len(f), generator=generator).double()
    M, W, V = law.momentum(f.q0, v), f.unflatten(f.q0)["first"], f.unflatten(v)["first"]
    torch.testing.assert_close(M, V.T @ W - W.T @ V, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(M.T, -M, rtol=0, atol=0)
    torch.testing.assert_close(v @ law.generator(f.q0, S), (S * M).sum(), rtol=1e-11, atol=1e-12)


def test_control_real_data_have_a_direction():
    law = data_rotation_law(RELU)
    assert law.parameters == ("1.weight",)
    assert law.cosine(gradient(RELU, RELU.q0), RELU.q0).abs().max() > 0.01
    with pytest.raises(ValueError, match="act on layer 1"):
        data_rotation_law(RELU, 2)
    with pytest.raises(ValueError, match="no parameter 'w'"):
        data_rotation_law(RELU, weight="w")
    with pytest.raises(ValueError, match="needs a matrix s"):
        law.act(RELU.q0, 0.3)
    with pytest.raises(TypeError, match="trace is 0"):
        law.total  # noqa: B018
    with pytest.raises(TypeError, match="Sequential"):
        data_rotation_law(population(Population()))
    with pytest.raises(TypeError, match="flat_loss"):
        data_rotation_law(Population(), weight="first")


# --- under a learning rule ------------------------------------------------------------------------------------------

FLOWS = {
    "gf": gradient_flow(),
    "nd": newtonian(),
    "nagf": nesterov(),
    "general": general(lambda t: 1 + 0.5 * t, lambda t: 1 / t),
    "damped": damped(0.7, 1.1),
    "sgd": sgd(0.1, 0.5, 0.05),
    "bregman": bregman(lambda t: -0.1 * t, lambda t: 0.3 * t, lambda t: 0.5 * t),
}
TABLE = {  # smooth activations: the kinks of RePU cost an eighth-order solver a second a run
    "power": (mlp((3, 3, 2), Power(2), init="kaiming", seed=1), lambda f: homogeneous_law(f, 1)),
    "across": (mlp((3, 3, 3, 2), ["swish", Power(2)], bias=True, seed=1), lambda f: homogeneous_law(f, 1, across=2)),
    "swish": (mlp((3, 3, 2), "swish", bias=True, seed=1), lambda f: homogeneous_law(f, 1)[2]),
    "linear": (mlp((3, 3, 2), "linear", bias=True, seed=1), lambda f: linear_law(f, 1)),
    "data": (Population(), lambda f: data_rotation_law(f, weight="first")),
}
CELLS = [(row, rule) for row in TABLE for rule in FLOWS if row == "linear" or rule in ("gf", "nagf", "general")]


def kick(f):
    return 0.3 * torch.randn(len(f), generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize(("row", "rule"), CELLS)
def test_tables_2_to_5(row, rule):
    model, make = TABLE[row]
    f = population(model) if row == "data" else loss_of(model, samples=5)
    form = make(f).under(FLOWS[rule])
    options = {"v0": None if rule == "gf" else kick(f), "t_span": (0.2, 0.5)}
    residual = form.residual(f, rtol=1e-10, **options)
    assert residual.shape == form.law.shape
    assert residual.abs().max() < 1e-10
    # the control: the same law of another loss, which does not have the symmetry
    slope = torch.linspace(-1, 1, len(f)).double()
    control = form.residual(lambda q: f(q) + slope @ q, q0=f.q0, rtol=1e-5, atol=1e-8, **options)
    assert control.abs().max() > 1e-4


def test_momentum_is_half_the_rate_of_a_charge():
    f = loss_of(TABLE["linear"][0])
    v = kick(f)
    for law in (homogeneous_law(f, 1), homogeneous_law(f, 1)[2], linear_law(f, 1)):
        rate = torch.autograd.functional.jvp(law.charge, f.q0, v)[1]
        M = law.momentum(f.q0, v)
        torch.testing.assert_close(M + M.T if M.ndim == 2 else 2 * M, rate, rtol=1e-12, atol=1e-13)


STATEMENTS = {
    "gf": ("C = const", "M - Mᵀ = 0"),
    "nd": ("C'' = 2 Q(v)", "M - Mᵀ = const"),
    "nagf": ("C'' + (3/t) C' = 2 Q(v)", "t³ (M - Mᵀ) = const"),
    "general": ("kappa2 C'' + kappa1 C' = 2 kappa2 Q(v)", "exp(∫ kappa1/kappa2 dt) (M - Mᵀ) = const"),
    "damped": ("0.7 C'' + 1.1 C' = 1.4 Q(v)", "exp(1.57143 t) (M - Mᵀ) = const"),
    "sgd": ("0.075 C'' + 0.5 C' = 0.15 Q(v) - 0.1 C", "exp(6.66667 t) (M - Mᵀ) = const"),
    "bregman": ("C'' + c1(t) C' = 2 Q(v)", "exp(∫ c1 dt) (M - Mᵀ) = const"),
}


@pytest.mark.parametrize("rule", STATEMENTS)
def test_statements_of_flows(rule):
    f = loss_of(TABLE["linear"][0])
    of_charge, of_rest = STATEMENTS[rule]
    assert homogeneous_law(f, 1).under(FLOWS[rule]).flow == of_charge
    assert linear_law(f, 1).under(FLOWS[rule]).flow == f"{of_charge}, {of_rest}"
    data = data_rotation_law(f).under(FLOWS[rule])
    assert data.flow == of_rest.replace("(M - Mᵀ)", "M").replace("M - Mᵀ", "M")
    assert "with M = vᵀ 1.weight - 1.weightᵀ v" in data.statement


def test_statements_of_steps():
    f = loss_of(mlp((4, 3, 2), "relu"))
    law, data = homogeneous_law(f, 1).total, data_rotation_law(f)
    assert law.under(damped(1.0, 0.0)).flow == "C'' = 2 Q(v)"
    assert law.under(gradient_flow()).steps is None
    for rule, of_charge, of_data in (
        (sgd(0.1), "ΔC(n) = 0.01 Q(g)", "M(n) = 0"),
        (sgd(0.1, 0.0, 0.5), "ΔC(n) = Q(d(n)) - 0.1 C(n)", "M(n) = 0"),
        (sgd(0.1, 0.9), "ΔC(n) - 0.9 ΔC(n-1) = Q(d(n)) + 0.9 Q(d(n-1))", "M(n) = 0.9 M(n-1)"),
        (
            sgd(0.1, 0.9, 0.5),
            "ΔC(n) - 0.9 ΔC(n-1) = Q(d(n)) + 0.9 Q(d(n-1)) - 0.1 C(n)",
            "M(n) = 0.9 M(n-1)",
        ),
        (newtonian(0.04), "ΔC(n) - ΔC(n-1) = Q(d(n)) + Q(d(n-1))", "M(n) = M(n-1)"),
        (nesterov(0.1), "C(w(n+1)) - C(y(n)) = 0.01 Q(g)", "form(w(n+1) - y(n), y(n)) = 0"),
    ):
        assert law.under(rule).steps == of_charge
        assert data.under(rule).steps.removesuffix(" with M(n) = form(d(n), q(n))") == of_data
        assert law.under(rule).statement.endswith(
            f"with C = |1.weight|² - |3.weight|²; in steps of {rule.lr:g}: {of_charge}"
        )


def test_what_cannot_be_put_together():
    law, f = homogeneous_law(RELU, 1), RELU
    with pytest.raises(TypeError, match="LearningRule"):
        law.under("sgd")
    with pytest.raises(ValueError, match="noether_learning_dynamics"):
        law.under(natural_gradient(lambda q: (q * q.log()).sum(), 1.0, 1.0))
    with pytest.raises(TypeError, match="uses record of integrate"):
        law.under(newtonian()).residual(f, t_span=(0, 1), record=lambda t, q, v: {})
    with pytest.raises(ValueError, match="nothing is tested"):
        law.under(gradient_flow()).residual(lambda q: 0.0 * q.sum(), q0=f.q0, t_span=(0, 1))
    with pytest.raises(ValueError, match=r"f is function, .* pass q0="):
        law.under(newtonian()).residual(lambda q: q @ q, t_span=(0, 1))


# --- discrete time --------------------------------------------------------------------------------------------------


def mini_batches(f, size=5, seed=0):
    inputs, targets = f._data

    def batch(n):
        generator = torch.Generator().manual_seed(seed + n)
        chosen = torch.randperm(len(inputs), generator=generator)[:size]
        return f.on(inputs[chosen], targets[chosen])

    return batch


@pytest.fixture(scope="module")
def network():
    return loss_of(mlp((6, 8, 7, 3), ["relu", RePU(2)], seed=4, init="kaiming"), samples=40)


def test_gd_identity_on_every_mini_batch(network):
    lr, batches = 0.02, mini_batches(network)
    run = descend(sgd(lr=lr), None, network.q0, steps=30, batches=batches)
    for law in homogeneous_laws(network):
        for n in range(30):
            q, q_next, g = run.q[n], run.q[n + 1], gradient(batches(n), run.q[n])
            change = law.charge(q_next) - law.charge(q)
            assert (change - law.gd_change(g, lr=lr)).abs().max() < 1e-12
            assert (law.change(q, q_next) - change).abs().max() < 1e-12
        assert (law.charge(run.q[-1]) - law.charge(run.q[0])).abs().max() > 1e-4  # and it does change


def test_control_one_gradient_tensor_scaled_is_flagged(network):
    lr, law = 0.02, homogeneous_law(network, 1)
    g = gradient(network, network.q0)
    planted = g.clone()
    planted[network.slices["3.weight"]] *= 1.001
    change = law.change(network.q0, network.q0 - lr * planted)
    assert (change - law.gd_change(planted, lr=lr)).abs().max() > 1e-9
    assert law.cosine(planted, network.q0).abs().max() > 1e-5


def test_control_a_gradient_scaled_as_a_whole_is_flagged(network):
    lr, law = 0.02, homogeneous_law(network, 1)
    g = gradient(network, network.q0)
    change = law.change(network.q0, network.q0 - lr * 1.001 * g)
    assert (change - law.gd_change(g, lr=lr)).abs().max() > 1e-9


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_heavy_ball_identity(network, beta):
    run = descend(sgd(lr=0.01, momentum=beta), None, network.q0, steps=40, batches=mini_batches(network))
    for law in homogeneous_laws(network):
        previous, worst, control = None, 0.0, 0.0
        for q, q_next in zip(run.q[:-1], run.q[1:], strict=True):
            step, change = q_next - q, law.charge(q_next) - law.charge(q)
            predicted = law.heavy_ball_change(step, previous, momentum=beta)
            worst = max(worst, float((change - predicted).abs().max()))
            control = max(control, float((change - law.form(step)).abs().max()))  # as if it had no memory
            previous = (step, change)
        assert worst < 1e-12
        assert (control > 1e-6) == (beta > 0)


@given(seed=st.integers(0, 10**6), lr=st.floats(1e-4, 0.1))
@settings(deadline=None, max_examples=25)
def test_any_optimiser_bookkeeping(seed, lr):
    generator = torch.Generator().manual_seed(seed)
    q = RELU.q0
    d = lr * torch.randn(len(q), generator=generator).double()
    for law in homogeneous_laws(RELU):
        exact = law.charge(q + d) - law.charge(q)
        torch.testing.assert_close(2 * law.form(q, d) + law.form(d), exact, rtol=0, atol=1e-13)
        torch.testing.assert_close(law.change(q, q + d), exact, rtol=0, atol=1e-13)


def test_drift_over_fixed_time_is_first_order(network):
    law, drifts = homogeneous_law(network, 1).total, []
    for steps in (50, 100, 200):
        run = descend(sgd(lr=0.5 / steps), network, network.q0, steps=steps, every=steps)
        drifts.append(float(law.change(run.q[0], run.q[-1])))
    assert drifts[0] / drifts[1] == pytest.approx(2, abs=0.15)
    assert drifts[1] / drifts[2] == pytest.approx(2, abs=0.1)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3, -1, True, 1.0, "1"])
def test_no_such_layer(layer):
    with pytest.raises(ValueError, match="2 hidden layers"):
        homogeneous_law(RELU, layer)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softplus", nn.SiLU()], ids=str)
def test_activation_without_known_degree(activation):
    f = loss_of(mlp((4, 3, 2), activation))
    with pytest.raises(ValueError, match="not known to be homogeneous"):
        homogeneous_law(f, 1)
    assert homogeneous_law(f, 1, p=1.0, verify=False).shape == (3,)
    with pytest.raises(ValueError, match="give it as p"):
        homogeneous_law(f, 1, verify=False)


@given(claimed=st.floats(0.1, 5), true=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
@settings(deadline=None, max_examples=30)
def test_claimed_degree_is_compared(claimed, true):
    f = loss_of(mlp((4, 3, 2), RePU(true)))
    assert homogeneous_law(f, 1, p=true).statement == homogeneous_law(f, 1).statement
    if not math.isclose(claimed, true, rel_tol=1e-12):
        with pytest.raises(ValueError, match=f"homogeneous of degree {true:g}"):
            homogeneous_law(f, 1, p=claimed)


def test_a_claimed_product_of_degrees_is_compared_to_rounding():
    model = nn.Sequential(nn.Linear(3, 4), RePU(1.1), RePU(1.1), nn.Linear(4, 2)).double()
    assert 1.1 * 1.1 != 1.21
    assert "1.21 |3.weight|²" in homogeneous_law(loss_of(model), 1, p=1.21).total.statement
    for p in ("2", True):
        with pytest.raises(TypeError, match="p must be a real number"):
            homogeneous_law(loss_of(model), 1, p=p, verify=False)


def test_degrees_multiply():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), RePU(2), RePU(1.5), nn.Linear(4, 2)).double()
    assert homogeneous_law(loss_of(model), 1).total.statement == "|0.weight|² + |0.bias|² - 3 |4.weight|² = const"


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_degree(p):
    with pytest.raises(ValueError, match="must be > 0"):
        homogeneous_law(RELU, 1, p=p, verify=False)


def test_layers_that_do_not_chain():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Unflatten(1, (2, 2)), nn.Linear(2, 2), nn.Flatten())
    model.double()
    with pytest.raises(ValueError, match="gives 4 numbers and 3 takes 2"):
        homogeneous_law(loss_of(model), 1)


def test_frozen_weight():
    model = mlp((4, 3, 2), "relu")
    model[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.weight is frozen"):
        homogeneous_law(loss_of(model), 1)


def test_weight_used_twice():
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), shared, nn.ReLU(), shared).double()
    with pytest.raises(ValueError, match="more than one place"):
        homogeneous_law(loss_of(model), 1)
    with pytest.raises(ValueError, match="more than one place"):
        homogeneous_law(loss_of(model), 2)


class Skip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight), self.bias)


def test_layers_with_a_forward_of_their_own():
    """They pass isinstance and have all the parameters; what the same laws would be worth is the control."""
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), nn.Linear(5, 3))
    skip = nn.Sequential(plain[0], nn.ReLU(), Skip(*plain[2]), plain[3])
    cosine = nn.Sequential(Cosine(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), plain[3])
    law = homogeneous_law(loss_of(plain.double()), 1)
    for model, name in ((skip, r"Skip \(2\)"), (cosine, r"Cosine \(0\)")):
        f = loss_of(model.double())
        assert law.cosine(gradient(f, f.q0), f.q0).abs().max() > 0.05
        with pytest.raises(TypeError, match=f"{name} has a forward of its own"):
            homogeneous_law(f, 1)
    with pytest.raises(TypeError, match=r"Cosine \(0\) has a forward of its own"):
        data_rotation_law(loss_of(cosine))
    with pytest.raises(TypeError, match=r"Cosine \(0\) has a forward of its own"):
        linear_law(loss_of(cosine), 1)
    with pytest.raises(TypeError, match=r"Skip \(the model\) has a forward of its own"):
        homogeneous_laws(loss_of(Skip(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()))
    # what such a layer does not touch keeps its laws
    assert homogeneous_laws(loss_of(skip)) == ()
    with pytest.warns(UserWarning, match=r"no law of hidden layer 1.*Cosine \(0\)"):
        (other,) = homogeneous_laws(loss_of(cosine))
    assert other.parameters == ("2.0.weight", "2.0.bias", "3.weight")
    scaled = loss_of(mlp((6, 5, 3), "relu", bias=True, init="ntk"))  # the package's own is known
    assert homogeneous_law(scaled, 1).cosine(gradient(scaled, scaled.q0), scaled.q0).abs().max() < 1e-14


def test_a_weight_computed_from_others():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)).double()
    with pytest.raises(ValueError, match=r"no parameter '0\.weight'.*weight_norm"):
        homogeneous_law(loss_of(model), 1)


def test_data_rotation_needs_the_layer_that_meets_the_data():
    model = nn.Sequential(nn.Identity(), nn.Tanh(), nn.Linear(6, 3)).double()
    with pytest.raises(ValueError, match=r"Tanh \(1\) stands before 2.*weight="):
        data_rotation_law(loss_of(model))
    assert data_rotation_law(loss_of(model), weight="2.weight").shape == (6, 6)
    flat = nn.Sequential(nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten()), nn.Linear(6, 3)).double()
    assert data_rotation_law(loss_of(flat)).parameters == ("1.weight",)


def test_models_of_unknown_order():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(torch.relu(self.b(x)))

    with pytest.raises(TypeError, match=r"needs? an\s+nn\.Sequential"):
        homogeneous_law(loss_of(Custom()), 1)
    with pytest.raises(TypeError, match="flat_loss"):
        homogeneous_law(mlp((3, 3, 3)), 1)


@pytest.mark.parametrize("neuron", [5, -6, 100])
def test_no_such_neuron(neuron):
    with pytest.raises(IndexError, match="layer of 5; they are numbered from 0 to 4"):
        homogeneous_law(RELU, 1)[neuron]


def test_a_single_law_is_no_stack():
    law = homogeneous_law(RELU, 1)
    assert len(law) == 5
    for single in (law[0], law.total):
        with pytest.raises(TypeError, match="single law"):
            single[0]
    with pytest.raises(TypeError, match="named by an integer"):
        law[1.0]
    assert len(list(law)) == 5


@given(length=st.integers(0, 200))
@settings(deadline=None, max_examples=20)
def test_wrong_length_of_q(length):
    law = homogeneous_law(RELU, 1)
    if length != len(RELU):
        with pytest.raises(ValueError, match="flatten the parameters"):
            law.charge(torch.zeros(length).double())


def test_wrong_arguments():
    law = homogeneous_law(RELU, 1)
    with pytest.raises(ValueError, match="flatten the parameters"):
        law.charge(RELU.q0[None])
    with pytest.raises(TypeError, match="flat tensor or a model"):
        law.charge([1.0, 2.0])
    with pytest.raises(ValueError, match="s is a number or of the law's shape"):
        law.act(RELU.q0, torch.ones(3))
    assert as_point("q", law.act(RELU.q0, 0.5)).shape == RELU.q0.shape
