"""The kernel from layers' inputs and slopes, against the Jacobian's, over layers as they come."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nlcompanion.networks import flat_loss, mlp, ntk
from nlcompanion.networks.tangent_kernel import kernel
from nlcompanion.networks.tangent_kernel.capture import Factors

OUTPUTS = st.sampled_from(["full", "trace", 1])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_random(net, seed=0):
    """Weights that no initialisation makes: gains are not 1, shifts not 0, statistics not those of a fresh norm."""
    g = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        for name, x in net.named_buffers():
            if "running" in name:
                x.copy_(0.5 + torch.rand(x.shape, generator=g, dtype=torch.float64))
    return net


def left_to_the_jacobian(net, x, other=None, output="full"):
    """Compares both ways, and says which parameters the layers did not account for."""
    taken = []

    class Noted(kernel.Jacobian):
        def __init__(self, f, q, picked, names, vectorize):
            super().__init__(f, q, picked, names, vectorize)
            taken.append(set(self.names))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "Jacobian", Noted)
        by_layers = ntk(net, x, other, output=output)
    by_rows = ntk(net, x, other, output=output, method="jacobian", vectorize=False)
    assert torch.allclose(by_layers, by_rows, rtol=1e-10, atol=1e-11 * by_rows.abs().max().item())
    return taken[-1] if taken else set()


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    each = lambda least, most: tuple(draw(st.integers(least, most)) for _ in range(dims))  # noqa: E731
    groups = draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    kernel_size, dilation = each(1, 3), each(1, 2)
    stride = each(1, 2)
    padding = draw(st.sampled_from(["valid", "same", "numbers"]))
    padding = each(0, 1) if padding == "numbers" else padding
    if padding == "same":
        stride = (1,) * dims
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(
        2 * groups, 3 * groups, kernel_size, stride=stride, dilation=dilation, padding=padding, groups=groups,
        padding_mode=mode, bias=draw(st.booleans()),
    )  # fmt: skip
    size = tuple(draw(st.integers(5, 6)) for _ in range(dims))
    return layer, (2 * groups, *size)


@given(convolutions(), OUTPUTS, st.booleans())
@settings(max_examples=25, deadline=None)
def test_convolutions(made, output, symmetric):
    layer, shape = made
    features = layer(torch.zeros(1, *shape)).numel()
    net = at_random(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 2)))
    other = None if symmetric else numbers(2, *shape, seed=1)
    assert not left_to_the_jacobian(net, numbers(4, *shape), other, output)


NORMS = {
    "layer norm": (nn.LayerNorm((4, 3)), (2, 4, 3)),
    "layer norm without a shift": (nn.LayerNorm(3, bias=False), (2, 4, 3)),
    "RMS norm": (nn.RMSNorm(3), (2, 4, 3)),
    "group norm": (nn.GroupNorm(2, 4), (4, 3, 2)),
    "batch norm of numbers": (nn.BatchNorm1d(5), (5,)),
    "batch norm": (nn.BatchNorm1d(4), (4, 3)),
    "batch norm of images": (nn.BatchNorm2d(3), (3, 2, 2)),
    "batch norm of volumes": (nn.BatchNorm3d(2), (2, 2, 2, 2)),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), (3, 2, 2)),
    "one slope": (nn.PReLU(), (3, 2, 2)),
    "a slope a channel": (nn.PReLU(3), (3, 2, 2)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("output", ["full", "trace", 1])
def test_gains_and_shifts(name, output):
    layer, shape = NORMS[name]
    size = torch.Size(shape).numel()
    net = at_random(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(size, 2)))
    assert not left_to_the_jacobian(net, numbers(4, *shape), output=output)


@given(st.integers(1, 9), st.integers(1, 5), st.one_of(st.none(), st.just(1)), OUTPUTS, st.booleans())
@settings(max_examples=30, deadline=None)
def test_embeddings_and_sequences(table, length, padding, output, long):
    """Short tables form the gradients, long ones compare entries."""
    table = 4 + table + 100 * long
    layers = nn.Embedding(table, 3, padding_idx=padding), nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4)
    net = at_random(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * length, 2)))
    x = torch.randint(4, (4, length), generator=torch.Generator().manual_seed(length))
    assert not left_to_the_jacobian(net, x, output=output)


def test_a_long_sequence_forms_the_gradients():
    """With many positions that is cheaper than to compare them; either way is taken here."""
    net = at_random(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 40), nn.Flatten(), nn.Linear(1200, 2)))
    assert not left_to_the_jacobian(net, numbers(4, 30, 2))


@given(st.integers(2, 4), st.integers(1, 4), st.booleans(), st.sampled_from(["tanh", "relu", "swish"]), OUTPUTS)
@settings(max_examples=20, deadline=None)
def test_networks_of_the_papers(depth, width, bias, activation, output):
    for init in ("default", "ntk"):
        net = at_random(mlp((3,) + (width,) * (depth - 1) + (2,), activation, bias=bias, init=init, seed=depth))
        assert not left_to_the_jacobian(net, numbers(5, 3), output=output)


def test_swish_at_another_point():
    """Its slope is taken at the point, not at the model's own weights."""
    f = flat_loss(mlp((4, 7, 2), "swish", seed=2), numbers(3, 4), numbers(3, 2), F.mse_loss)
    q = f.q0 + 0.3
    assert torch.allclose(ntk(f, numbers(3, 4), q=q), ntk(f, numbers(3, 4), q=q, method="jacobian"), rtol=1e-11)
    found = Factors(f, q, range(2), set(f.names))(numbers(3, 4), check=True)
    assert set(found) == set(f.names)


# --- parameters that are used more than once ----------------------------------------------------------------------


class Recurrent(nn.Module):
    """One layer three times, and its weights once more in a layer of another name."""

    def __init__(self):
        super().__init__()
        self.step, self.last, self.out = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
        self.last.weight = self.step.weight

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.out(self.last(x))


class Tied(nn.Module):
    """An embedding whose table is also the weight of the last layer."""

    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.write.weight = self.read.weight

    def forward(self, x):
        return self.write(torch.tanh(self.read(x).mean(1)))


class Twice(nn.Module):
    """An embedding that is asked twice, and a convolution on images of two sizes."""

    def __init__(self):
        super().__init__()
        self.read, self.filter = nn.Embedding(5, 4), nn.Conv1d(1, 2, 2)

    def forward(self, x):
        h = self.read(x[:, :2]).mean(1) * self.read(x[:, 2])
        far, near = self.filter(h[:, None]), self.filter(h[:, None, :3])
        return far.sum(2) + near.sum(2).square()


@pytest.mark.parametrize("output", ["full", "trace", 1])
def test_shared_weights(output):
    assert not left_to_the_jacobian(at_random(Recurrent()), numbers(4, 4), output=output)
    entries = torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0))
    for net in (Tied(), Twice()):
        assert not left_to_the_jacobian(at_random(net), entries, output=output)


# --- what layers do not tell ---------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """Uses the weight of a layer that it also calls, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.out, self.gain = nn.Linear(4, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)) * self.gain) + x[:, :2] * self.first.weight.sum()


class Rarely(nn.Module):
    """The same, but only for a sample beyond those that are looked at first."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x):
        rare = (x[:, :1] > 1.9).to(x.dtype)
        return self.line(x) + rare * self.line.weight.square().sum()


class TimeFirst(nn.Module):
    """Samples are the second dimension of what its layer gets, of as many places as there are samples."""

    def __init__(self):
        super().__init__()
        self.line, self.out = nn.Linear(2, 3), nn.Linear(9, 2)

    def forward(self, x):
        h = torch.tanh(self.line(x.transpose(0, 1))) * torch.arange(1, 4)[:, None, None]
        return self.out(h.transpose(0, 1).flatten(1))


class Halved(nn.Linear):
    """A subclass that runs in a way of its own."""

    def forward(self, x):
        return super().forward(x) / 2


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter, self.norm, self.out = nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.relu_(self.norm(torch.relu_(self.filter(x[:, None])))).flatten(1))


LEFT = {
    "a weight used elsewhere too, and one of its own": (Elsewhere(), numbers(5, 4), {"first.weight", "gain"}),
    "time before samples": (TimeFirst(), numbers(3, 3, 2), {"line.weight", "line.bias"}),
    "a forward of its own": (
        nn.Sequential(Halved(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        numbers(5, 4),
        {"0.weight", "0.bias"},
    ),
    "changes in place": (InPlace(), numbers(5, 4), set()),
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2)),
        numbers(5, 4),
        {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    ),
    "attention": (
        nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        numbers(3, 3, 4),
        {"self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias"},
    ),
    "a transposed convolution": (
        nn.Sequential(nn.ConvTranspose1d(2, 1, 2), nn.Flatten(), nn.Linear(4, 2)),
        numbers(5, 2, 3),
        {"0.weight", "0.bias"},
    ),
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("output", ["full", "trace", 1])
def test_what_layers_do_not_tell_takes_the_jacobian(name, output):
    net, x, left = LEFT[name]
    assert left_to_the_jacobian(at_random(net), x, output=output) == left


def test_a_use_that_shows_late_begins_again():
    x = numbers(40, 4)
    x[:, 0].clamp_(max=1.8)
    assert not left_to_the_jacobian(at_random(Rarely()), x)
    x[37, 0] = 2.0
    assert left_to_the_jacobian(at_random(Rarely()), x) == {"line.weight"}
    assert left_to_the_jacobian(at_random(Rarely()), x[:30], x[30:]) == {"line.weight"}


def test_without_the_check_it_would_be_wrong(monkeypatch):
    """The control of all the above: what layers say, believed."""
    monkeypatch.setattr(Factors, "_check", lambda *_: None)
    for name in ("a weight used elsewhere too, and one of its own", "time before samples", "weight norm"):
        net, x, _ = LEFT[name]
        believed, right = ntk(at_random(net), x), ntk(at_random(net), x, method="jacobian")
        assert (believed - right).abs().max() > 1e-2 * right.abs().max()


def test_single_precision():
    f = flat_loss(mlp((4, 7, 2), "tanh", bias=True, seed=1), numbers(6, 4), numbers(6, 2), F.mse_loss)
    single = ntk(f, numbers(6, 4), q=f.q0.float())
    assert single.dtype == torch.float32
    assert not left_to_the_jacobian(f, numbers(6, 4))
    assert torch.allclose(single.double(), ntk(f, numbers(6, 4)), rtol=1e-4, atol=1e-4)


def test_hooks_are_taken_away():
    f = flat_loss(mlp((4, 7, 2)), numbers(6, 4), numbers(6, 2), F.mse_loss)
    ntk(f, numbers(6, 4))
    assert not any(layer._forward_hooks for layer in f.model.modules())


def test_an_unknown_method():
    with pytest.raises(ValueError, match=r"method 'rows' .* is unknown; choose from auto, jacobian"):
        ntk(mlp((4, 2)), numbers(3, 4), method="rows")
