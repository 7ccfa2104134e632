"""The papers' networks and the flat loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jvp
from torch.nn.functional import cross_entropy, mse_loss

from nlcompanion.dynamics import gradient_flow, integrate
from nlcompanion.networks import Power, RePU, Swish, flat_loss, mlp

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(7) % 3


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3])
def test_repu_lets_nothing_negative_through(p):
    assert RePU(p)(torch.tensor([-2.0, 0.0, 4.0])).tolist() == pytest.approx([0.0, 0.0, 4.0**p])


@given(st.sampled_from([0.5, 1, 1.5, 2, 3]), st.floats(0.1, 10), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_repu_is_homogeneous_of_its_own_degree(p, scale, x):
    x = torch.tensor(x, dtype=torch.float64)
    assert torch.allclose(RePU(p)(scale * x), scale**p * RePU(p)(x), rtol=1e-12)
    if x > 1e-3 and abs(scale - 1) > 1e-2:
        assert not torch.allclose(RePU(p)(scale * x), scale ** (p + 1) * RePU(p)(x), rtol=1e-6)


def test_an_even_power_has_no_sign():
    assert [Power(p)(torch.tensor([-2.0, 3.0])).tolist() for p in (1, 2, 3)] == [[-2, 3], [4, 9], [-8, 27]]


@given(st.floats(0.1, 10), st.floats(-3, 3), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_swish_trades_scale_for_beta(scale, beta, x):
    x = torch.full((1,), x, dtype=torch.float64)
    swish = lambda beta: Swish(1, beta).double()  # noqa: E731
    left, right = swish(beta)(scale * x), scale * swish(scale * beta)(x)
    assert torch.allclose(left, right, rtol=1e-5, atol=1e-6)


def test_swish_beta_is_trained():
    f = flat_loss(mlp((4, 5, 3), "swish"), X, Y, cross_entropy)
    assert f.names == ("1.weight", "2.beta", "3.weight")
    q = f.q0.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(q), q)
    assert g[f.slices["2.beta"]].abs().min() > 0


def test_mlp_layers_and_seeds():
    net = mlp((6, 5, 4, 3), ["relu", RePU(2)], bias=True, seed=3)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "RePU", "Linear"]
    before = torch.get_rng_state()
    again = mlp((6, 5, 4, 3), ["relu", RePU(2)], bias=True, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    other = mlp((6, 5, 4, 3), ["relu", RePU(2)], bias=True, seed=4)
    assert not torch.equal(next(net.parameters()), next(other.parameters()))


def test_each_layer_gets_an_activation_of_its_own():
    given = Swish(3)
    net = mlp((4, 3, 3, 2), given)
    assert [name for name, _ in net.named_parameters()] == ["1.weight", "2.beta", "3.weight", "4.beta", "5.weight"]
    assert net[2] is not given
    assert net[2].beta is not net[4].beta


def test_a_model_that_goes_on_does_not_take_its_loss_along():
    """The loss keeps what the model was: precision, mode and running statistics are its own."""
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    f = flat_loss(net, X, Y, cross_entropy)
    before = f(f.q0).item()
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    net.train()(10 * X.float())
    assert f(f.q0).item() == before


@pytest.mark.parametrize(("init", "variance"), [("kaiming", 2.0), ("lecun", 1.0), ("default", 1 / 3)])
def test_initial_variance(init, variance):
    weight = mlp((400, 500), init=init)[1].weight
    assert weight.var().item() * 400 == pytest.approx(variance, rel=0.02)


def test_flat_loss_is_the_models_loss():
    net = mlp((4, 5, 3), "tanh", bias=True)
    f = flat_loss(net, X, Y, cross_entropy)
    assert f(f.q0).item() == cross_entropy(net(X), Y).item()
    assert torch.equal(f.outputs(f.q0), net(X))
    q = f.q0.clone().requires_grad_()
    (flat,) = torch.autograd.grad(f(q), q)
    parts = torch.autograd.grad(cross_entropy(net(X), Y), list(net.parameters()))
    assert torch.equal(flat, torch.cat([g.reshape(-1) for g in parts]))


def test_flat_and_back():
    f = flat_loss(mlp((4, 5, 3), bias=True), X, Y, cross_entropy)
    assert torch.equal(f.flatten(f.unflatten(f.q0)), f.q0)
    assert f.unflatten(f.q0)["3.bias"].shape == (3,)
    assert torch.equal(f.q0[f.slices["1.bias"]], f.unflatten(f.q0)["1.bias"])
    assert len(f) == 4 * 5 + 5 + 5 * 3 + 3
    with pytest.raises(ValueError, match=r"3\.bias"):
        f.flatten({name: x for name, x in f.unflatten(f.q0).items() if name != "3.bias"})
    with pytest.raises(ValueError, match=r"start from \.q0"):
        f(f.q0[1:])


def test_the_model_is_copied():
    net = mlp((4, 5, 3))
    f = flat_loss(net, X, Y, cross_entropy)
    before = f(f.q0).item()
    with torch.no_grad():
        next(net.parameters()).zero_()
    assert f(f.q0).item() == before


def test_frozen_parameters_stay_out():
    net = mlp((4, 5, 3))
    net[1].weight.requires_grad_(False)
    f = flat_loss(net, X, Y, cross_entropy)
    assert f.names == ("3.weight",)
    assert f(f.q0).item() == cross_entropy(net(X), Y).item()


def test_buffers_are_frozen_so_that_f_is_a_function():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    f = flat_loss(net, X, Y, cross_entropy)
    values = {f(f.q0).item() for _ in range(3)}
    assert len(values) == 1
    f.model.eval()
    assert f(f.q0).item() == cross_entropy(net.eval()(X), Y).item()  # running statistics never moved


def test_other_samples_and_precisions():
    f = flat_loss(mlp((4, 5, 3)), X, Y, cross_entropy)
    half = f.on(X[:3], Y[:3])
    rest = f.on(X[3:], Y[3:])
    assert (3 * half(f.q0) + 4 * rest(f.q0)).item() / 7 == pytest.approx(f(f.q0).item(), rel=1e-14)
    made_of_them = flat_loss(mlp((4, 5, 3)), X[:3], Y[:3], cross_entropy)
    assert half(f.q0).item() == pytest.approx(made_of_them(f.q0).item(), rel=1e-14)
    assert half(f.q0).item() != pytest.approx(f(f.q0).item(), rel=1e-3)  # the control: else the whole would add up, too
    single = f(f.q0.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(f(f.q0).item(), rel=1e-5)


def test_data_of_another_precision_first_used_inside_nested_differentiation():
    f = flat_loss(mlp((4, 2, 1), "tanh", seed=1), X.float(), X[:, :1].float(), mse_loss)
    twice = lambda g: jvp(lambda p: jvp(g, (p,), (f.q0,))[1], (f.q0,), (f.q0,))[1]  # noqa: E731
    for g in (f, f.on(X[:3].float(), X[:3, :1].float())):
        assert torch.equal(twice(g), twice(g))
        assert torch.isfinite(g(f.q0))


def test_gradient_flow_of_a_network_descends():
    f = flat_loss(mlp((4, 5, 3), RePU(2), init="kaiming"), X, X[:, :3], mse_loss)
    run = integrate(gradient_flow(), f, f.q0, t_span=(0, 1), record=lambda t, q, v: {"loss": f(q)})
    assert (run.record["loss"].diff() < 0).all()


def test_bad_arguments():
    for make, match in (
        (lambda: RePU(0), "p > 0"),
        (lambda: RePU(math.nan), "p > 0"),
        (lambda: Swish(0), "number of neurons"),
        (lambda: mlp((4,)), "two or more"),
        (lambda: mlp((4, 0, 3)), "positive integers"),
        (lambda: mlp((4, 5, 3), "sine"), "unknown"),
        (lambda: mlp((4, 5, 3), ["relu", "relu"]), "2 activations for 1 hidden"),
        (lambda: mlp((4, 5, 3), init="zeros"), "unknown"),
        (lambda: flat_loss(mlp((4, 3)), X, Y[:2], cross_entropy), "7 inputs and 2 targets"),
        (lambda: flat_loss(nn.Flatten(), X, Y, cross_entropy), "no trainable"),
        (lambda: Swish(2)(torch.ones(1, 3)), "2 betas"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        flat_loss(lambda x: x, X, Y, cross_entropy)
    for inputs, targets, name in ((X.numpy(), Y, "inputs"), (X, Y.tolist(), "targets"), (X, Y[0], "targets")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor"):
            flat_loss(mlp((4, 3)), inputs, targets, cross_entropy)
    assert RePU(1.5)(torch.tensor([math.nan])).isnan()
    with pytest.raises(TypeError, match="reduction"):
        flat_loss(mlp((4, 3)), X, Y, lambda a, b: cross_entropy(a, b, reduction="none"))


class TwoLayers(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.second = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        if shared:
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_shared_weights_are_one_parameter_used_twice():
    x = X[:, :3]
    f = flat_loss(TwoLayers(shared=True), x, x, mse_loss)
    assert len(f) == 9
    assert len(flat_loss(TwoLayers(shared=False), x, x, mse_loss)) == 18
    W = f.q0.view(3, 3).clone().requires_grad_()
    loss = mse_loss(torch.tanh(x @ W.T) @ W.T, x)
    q = f.q0.clone().requires_grad_()
    assert torch.allclose(f(q), loss)
    assert torch.allclose(torch.autograd.grad(f(q), q)[0], torch.autograd.grad(loss, W)[0].reshape(-1))
