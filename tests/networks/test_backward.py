"""Backpropagation by hand, against autograd's."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nlcompanion.dynamics import descend, gradient_flow, integrate, newtonian, sgd
from nlcompanion.networks import Power, RePU, ensemble, flat_loss, mlp, over_members

ACTIVATIONS = {
    **{name: name for name in ("relu", "leaky_relu", "swish", "gelu", "tanh", "softplus", "linear")},
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "a sharp softplus": nn.Softplus(beta=7.0, threshold=2.0),
    **{f"repu {p}": RePU(p) for p in (0.5, 1, 1.5, 2, 3)},
    **{f"power {p}": Power(p) for p in (1, 2, 3)},
}


def half_sum(u, y):
    return 0.5 * (u - y).square().sum()


CRITERIA = {"mean squares": F.mse_loss, "half sum": half_sum, "cross-entropy": F.cross_entropy}


def data(samples, width, outputs, criterion, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, width, generator=g, dtype=torch.float64)
    if criterion == "cross-entropy":
        return x, torch.randint(outputs, (samples,), generator=g)
    return x, torch.randn(samples, outputs, generator=g, dtype=torch.float64)


def autograd(f, q):
    q = q.clone().requires_grad_()
    value = f(q)
    return value.item(), torch.autograd.grad(value, q)[0]


def assert_same(f, q, rtol=1e-11):
    by_hand = f.value_and_gradient
    assert by_hand is not None
    (value, gradient), (want, slope) = by_hand(q), autograd(f, q)
    assert value == pytest.approx(want, rel=1e-11, abs=1e-13)
    assert torch.allclose(gradient, slope, rtol=rtol, atol=1e-12 * slope.abs().max().item())
    assert gradient.dtype == torch.float64


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.sampled_from(list(ACTIVATIONS)),
    st.sampled_from(list(CRITERIA)),
    st.sampled_from(["default", "ntk", "kaiming"]),
    st.booleans(),
    st.integers(0, 3),
    st.integers(1, 5),
)
@settings(max_examples=120, deadline=None)
def test_it_is_autograds(widths, activation, criterion, init, bias, members, samples):
    x, y = data(samples, widths[0], widths[-1], criterion)
    shape, given = (tuple(widths), ACTIVATIONS[activation]), {"bias": bias, "init": init}
    if members:
        f = flat_loss(ensemble(*shape, seeds=members, **given), x, y, over_members(CRITERIA[criterion]))
    else:
        f = flat_loss(mlp(*shape, seed=1, **given), x, y, CRITERIA[criterion])
    q = f.q0 + 0.3 * torch.randn(len(f), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_same(f, q)
    assert_same(f, 0.7 * q)  # the work space is used again
    other = f.on(*data(samples + 1, widths[0], widths[-1], criterion, seed=3))
    assert_same(other, q)
    assert_same(f, q)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "repu 0.5", "repu 1", "repu 2", "softplus"])
def test_at_a_kink(name):
    """A dead neuron and a sample of zeros: torch's choice of a slope is taken."""
    x, y = torch.zeros(3, 4, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    assert_same(flat_loss(mlp((4, 3, 2), ACTIVATIONS[name], seed=1), x, y, F.mse_loss), torch.ones(18).double())


def test_images_and_integer_targets():
    f = flat_loss(mlp((4, 3, 2)), torch.ones(5, 2, 2), torch.tensor([0, 1, 1, 0, 1]), F.cross_entropy)
    assert_same(f, f.q0 + 0.1)


X, Y = data(6, 4, 2, "mean squares")


class Louder(nn.Tanh):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    net = mlp((4, 3, 2), "tanh")
    net[1].register_forward_hook(lambda layer, given, output: 2 * output)
    return net


def frozen():
    net = mlp((4, 3, 2), "tanh")
    net[1].weight.requires_grad_(False)
    return net


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    net[2].weight = net[0].weight
    return net


OTHERS = {
    "a subclass": nn.Sequential(nn.Linear(4, 3), Louder(), nn.Linear(3, 2)).double(),
    "a hook": hooked(),
    "a frozen layer": frozen(),
    "shared weights": tied(),
    "a norm": nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double(),
    "dropout": nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Linear(3, 2)).double(),
    "two activations in a row": nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Tanh()).double(),
    "an approximate GELU": nn.Sequential(nn.Linear(4, 2), nn.GELU("tanh")).double(),
    "parametrized": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))).double(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_to_autograd(name):
    f = flat_loss(OTHERS[name], X, Y, F.mse_loss)
    assert f.value_and_gradient is None
    end = descend(sgd(lr=0.1), f, f.q0, steps=1).q[1]
    assert torch.allclose(end, f.q0 - 0.1 * autograd(f, f.q0)[1], rtol=1e-12, atol=1e-14)


def test_sequences_and_large_networks_are_left_too():
    assert flat_loss(nn.Sequential(nn.Linear(4, 2)).double(), X[None], Y[None], F.mse_loss).value_and_gradient is None
    big = flat_loss(mlp((400, 300, 10)), torch.ones(50, 400), torch.zeros(50).long(), F.cross_entropy)
    assert big.value_and_gradient is None
    assert big.on(torch.ones(2, 400), torch.zeros(2).long()).value_and_gradient is not None


def test_a_network_that_changes_afterwards_is_looked_at_again():
    f = flat_loss(mlp((4, 3, 2), "tanh"), X, Y, F.mse_loss)
    assert_same(f, f.q0)
    f.model[2] = nn.ReLU()
    assert_same(f, f.q0)
    replace = lambda f: f.model.__setitem__(2, Louder())  # noqa: E731
    hook = lambda f: f.model[2].register_forward_hook(lambda *_: None)  # noqa: E731
    for change in (replace, hook):
        f = flat_loss(mlp((4, 3, 2), "tanh"), X, Y, F.mse_loss)
        assert_same(f, f.q0)
        change(f)
        assert f.value_and_gradient is None


def test_flows_and_steps_are_the_same():
    f = flat_loss(mlp((4, 5, 2), "tanh", bias=True, seed=1), X, Y, F.mse_loss)
    plain = lambda q: f(q)  # noqa: E731  (offers nothing)
    for rule in (gradient_flow(), newtonian()):
        span = {"t_span": (0.0, 5.0), "rtol": 1e-9, "atol": 1e-12}
        fast, slow = (integrate(rule, loss, f.q0, **span) for loss in (f, plain))
        assert (fast.q[-1] - slow.q[-1]).abs().max() < 1e-9
    fast, slow = (descend(sgd(lr=0.1, momentum=0.9), loss, f.q0, steps=50).q for loss in (f, plain))
    assert (fast - slow).abs().max() < 1e-12
    stiff = {"t_span": (0.0, 1.0), "method": "BDF"}  # takes Hessians beside
    assert (
        integrate(gradient_flow(), f, f.q0, **stiff).q[-1] - integrate(gradient_flow(), plain, f.q0, **stiff).q[-1]
    ).abs().max() < 1e-8


def test_what_is_not_finite_and_what_does_not_fit():
    f = flat_loss(mlp((4, 3, 2), RePU(3)), X, Y, F.mse_loss)
    value, _ = f.value_and_gradient(1e200 * torch.ones(len(f)).double())
    assert not math.isfinite(value)
    with pytest.raises(ValueError, match=r"q has shape \(3,\)"):
        f.value_and_gradient(torch.ones(3).double())
    with pytest.raises(TypeError, match="must be a scalar tensor"):
        flat_loss(mlp((4, 3, 2)), X, Y, lambda u, y: u - y).value_and_gradient(f.q0)
    with pytest.raises(ValueError, match="2 outputs for 6 samples, the targets have shape"):
        flat_loss(mlp((4, 3, 2)), X, Y[:, :1], F.mse_loss).value_and_gradient(f.q0)
    classes = flat_loss(mlp((4, 3, 2)), X, torch.zeros(6, dtype=torch.int64), F.cross_entropy)
    labels_beyond = classes.on(X, torch.full((6,), 5))
    with pytest.raises(IndexError, match="label 5 is out of bounds for 2 outputs"):
        labels_beyond.value_and_gradient(f.q0)


def test_copies_pickles_and_threads():
    f = flat_loss(mlp((4, 30, 2), "tanh", seed=1), X, Y, F.mse_loss)
    assert_same(f, f.q0)
    for twin in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert_same(twin, f.q0 + 0.1)
    points = [f.q0 + 0.01 * k for k in range(40)]
    alone = [f.value_and_gradient(q)[1] for q in points]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda q: f.value_and_gradient(q)[1], points))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_loss_that_keeps_its_outputs():
    kept = []

    def nosy(u, y):
        kept.append(u.detach())
        return F.mse_loss(u, y)

    f = flat_loss(mlp((4, 3, 2), "tanh"), X, Y, nosy)
    f.value_and_gradient(f.q0)
    first = kept[0].clone()
    f.value_and_gradient(f.q0 + 1)
    assert torch.equal(kept[0], first)
