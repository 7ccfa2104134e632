"""laws: charges of homogeneous activations, their symmetry and their exact bookkeeping; each with a control."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlcompanion.descent import descend
from nlcompanion.flows import integrate
from nlcompanion.laws import homogeneous, homogeneous_laws
from nlcompanion.learning_rules import gradient_flow, sgd
from nlcompanion.mechanics import as_point
from nlcompanion.networks import RePU, Swish, flat_loss, mlp


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
}

# --- the charge ---------------------------------------------------------------------------------------------------


def test_charge_is_rows_minus_columns():
    W = RELU.unflatten(RELU.q0)
    law = homogeneous(RELU, 1)
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
    torch.testing.assert_close(homogeneous(f, 1).charge(f.q0), by_hand, rtol=1e-14, atol=1e-15)
    assert homogeneous(f, 1)[2].statement == "|1.weight[2, :]|² + |1.bias[2]|² - 3 |3.weight[:, 2]|² = const"


def test_charge_of_a_model_is_that_of_its_flat_vector():
    model = mlp((6, 5, 4, 3), "relu", seed=1)
    law = homogeneous(RELU, 2)
    assert torch.equal(law.charge(model), law.charge(RELU.q0))
    with pytest.raises(ValueError, match=r"needs a parameter 3\.weight of shape \(4, 5\)"):
        law.charge(mlp((6, 5, 3), "relu"))


def test_generator_is_half_the_gradient_of_the_charge():
    law, q = homogeneous(RELU, 1), RELU.q0.clone().requires_grad_()
    for one in (law[2], law.total):
        (slope,) = torch.autograd.grad(one.charge(q), q)
        torch.testing.assert_close(one.generator(RELU.q0), slope / 2, rtol=0, atol=1e-15)
    torch.testing.assert_close(law.generator(RELU.q0), law.total.generator(RELU.q0), rtol=0, atol=0)
    moved, eps = law[2].act(RELU.q0, 1e-6), 1e-6
    torch.testing.assert_close((moved - RELU.q0) / eps, law[2].generator(RELU.q0), rtol=0, atol=1e-5)


def test_act_is_a_group():
    law, s = homogeneous(RELU, 1), torch.linspace(-1, 1, 5).double()
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
@settings(deadline=None, max_examples=60)
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
    right, wrong = homogeneous(f, 1), homogeneous(f, 1, p=p + 0.01, verify=False)
    assert defect(f, right) < 1e-13 < 1e-5 < defect(f, wrong)
    assert right.cosine(g, f.q0).abs().max() < 1e-14 < 1e-4 < wrong.cosine(g, f.q0).abs().max()


def test_control_tanh():
    f = loss_of(mlp((6, 5, 3), "tanh", seed=3))
    law = homogeneous(f, 1, p=1.0, verify=False)
    assert defect(f, law) > 1e-3
    assert law.cosine(gradient(f, f.q0), f.q0).abs().max() > 1e-3


def test_a_dead_neuron_has_cosine_zero():
    model = mlp((4, 3, 2), "relu")
    with torch.no_grad():
        model[1].weight[1] = 0.0
        model[3].weight[:, 1] = 0.0
    f = loss_of(model)
    cosine = homogeneous(f, 1).cosine(gradient(f, f.q0), f.q0)
    assert cosine[1] == 0
    assert torch.isfinite(cosine).all()


def test_gradient_flow_conserves_every_neuron():
    f = loss_of(mlp((4, 5, 3), RePU(2), seed=2, init="kaiming"))
    flow = integrate(gradient_flow(), f, f.q0, t_span=(0.0, 1.0), rtol=1e-9, t_eval=[0.0, 0.5, 1.0])
    law, wrong = homogeneous(f, 1), homogeneous(f, 1, p=1.0, verify=False)
    start, end = flow.q[0], flow.q[-1]
    assert (law.sides(end)[0] - law.sides(start)[0]).abs().max() > 0.1  # something moves
    assert law.change(start, end).abs().max() < 1e-8
    assert wrong.change(start, end).abs().max() > 0.05


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
    lr, law = 0.02, homogeneous(network, 1)
    g = gradient(network, network.q0)
    planted = g.clone()
    planted[network.slices["3.weight"]] *= 1.001
    change = law.change(network.q0, network.q0 - lr * planted)
    assert (change - law.gd_change(planted, lr=lr)).abs().max() > 1e-9
    assert law.cosine(planted, network.q0).abs().max() > 1e-5


def test_control_a_gradient_scaled_as_a_whole_is_flagged(network):
    lr, law = 0.02, homogeneous(network, 1)
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
    law, drifts = homogeneous(network, 1).total, []
    for steps in (50, 100, 200):
        run = descend(sgd(lr=0.5 / steps), network, network.q0, steps=steps, every=steps)
        drifts.append(float(law.change(run.q[0], run.q[-1])))
    assert drifts[0] / drifts[1] == pytest.approx(2, abs=0.15)
    assert drifts[1] / drifts[2] == pytest.approx(2, abs=0.1)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3, -1, True, 1.0, "1"])
def test_no_such_layer(layer):
    with pytest.raises(ValueError, match="2 hidden layers"):
        homogeneous(RELU, layer)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softplus", "swish"])
def test_activation_without_known_degree(activation):
    f = loss_of(mlp((4, 3, 2), activation))
    with pytest.raises(ValueError, match="not known to be homogeneous"):
        homogeneous(f, 1)
    assert homogeneous(f, 1, p=1.0, verify=False).shape == (3,)
    with pytest.raises(ValueError, match="give it as p"):
        homogeneous(f, 1, verify=False)


@given(claimed=st.floats(0.1, 5), true=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
@settings(deadline=None, max_examples=30)
def test_claimed_degree_is_compared(claimed, true):
    f = loss_of(mlp((4, 3, 2), RePU(true)))
    assert homogeneous(f, 1, p=true).statement == homogeneous(f, 1).statement
    if claimed != true:
        with pytest.raises(ValueError, match=f"homogeneous of degree {true:g}"):
            homogeneous(f, 1, p=claimed)


def test_degrees_multiply():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), RePU(2), RePU(1.5), nn.Linear(4, 2)).double()
    assert homogeneous(loss_of(model), 1).total.statement == "|0.weight|² + |0.bias|² - 3 |4.weight|² = const"


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_degree(p):
    with pytest.raises(ValueError, match="must be > 0"):
        homogeneous(RELU, 1, p=p, verify=False)


def test_layers_that_do_not_chain():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 2)).double()
    with pytest.raises(ValueError, match="gives 4 numbers and 2 takes 5"):
        homogeneous(loss_of(model), 1)


def test_frozen_weight():
    model = mlp((4, 3, 2), "relu")
    model[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1\.weight is frozen"):
        homogeneous(loss_of(model), 1)


def test_weight_used_twice():
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), shared, nn.ReLU(), shared).double()
    with pytest.raises(ValueError, match="more than one place"):
        homogeneous(loss_of(model), 1)
    with pytest.raises(ValueError, match="more than one place"):
        homogeneous(loss_of(model), 2)


def test_models_of_unknown_order():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(torch.relu(self.b(x)))

    with pytest.raises(TypeError, match=r"needs? an\s+nn\.Sequential"):
        homogeneous(loss_of(Custom()), 1)
    with pytest.raises(TypeError, match="flat_loss"):
        homogeneous(mlp((3, 3, 3)), 1)
    with pytest.raises(ValueError, match="Swish"):
        homogeneous(loss_of(nn.Sequential(nn.Linear(3, 3), Swish(3), nn.Linear(3, 2)).double()), 1)


@pytest.mark.parametrize("neuron", [5, -6, 100])
def test_no_such_neuron(neuron):
    with pytest.raises(IndexError, match="layer of 5; they are numbered from 0 to 4"):
        homogeneous(RELU, 1)[neuron]


def test_a_single_law_is_no_stack():
    law = homogeneous(RELU, 1)
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
    law = homogeneous(RELU, 1)
    if length != len(RELU):
        with pytest.raises(ValueError, match="flatten the parameters"):
            law.charge(torch.zeros(length).double())


def test_wrong_arguments():
    law = homogeneous(RELU, 1)
    with pytest.raises(ValueError, match="flatten the parameters"):
        law.charge(RELU.q0[None])
    with pytest.raises(TypeError, match="flat tensor or a model"):
        law.charge([1.0, 2.0])
    with pytest.raises(ValueError, match="s is a number or of the law's shape"):
        law.act(RELU.q0, torch.ones(3))
    assert as_point("q", law.act(RELU.q0, 0.5)).shape == RELU.q0.shape
