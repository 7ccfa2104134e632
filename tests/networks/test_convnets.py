"""vgg11 and conv_bn: their sizes, their scale symmetry, and what they refuse."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlcompanion.networks import conv_bn, vgg11


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def images(n: int, channels: int, size: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_vgg11_has_the_papers_size():
    model = vgg11(200)
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    # 9 times the products of neighbouring channels; two numbers per BatchNorm channel; 512 x 200 + 200 in the head
    channels = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    filters = 9 * sum(a * b for a, b in pairwise(channels))
    assert count(model) == filters + 2 * sum(channels[1:]) + 513 * 200 == 9_325_832


def test_every_convolution_is_followed_by_batch_norm_and_relu():
    for model in (vgg11(10, width=0.125), conv_bn()):
        kinds = [type(m) for m in model]
        at = [k for k, kind in enumerate(kinds) if kind is nn.Conv2d]
        assert all(kinds[k + 1 : k + 3] == [nn.BatchNorm2d, nn.ReLU] for k in at)
        assert all(model[k].bias is None for k in at)


@pytest.mark.parametrize(
    ("size", "pools", "left"), [(64, 5, 2), (32, 5, 1), (28, 4, 1), (16, 4, 1), (9, 3, 1), (8, 3, 1)]
)
def test_pools_never_leave_less_than_a_pixel(size, pools, left):
    model = vgg11(10, in_channels=1, size=size, width=0.05).eval()
    assert sum(isinstance(m, nn.MaxPool2d) for m in model) == pools
    before_head = nn.Sequential(*list(model)[:-3])
    assert before_head(images(2, 1, size)).shape[-2:] == (left, left)


@settings(max_examples=15, deadline=None)
@given(size=st.integers(8, 64), channels=st.integers(1, 4), classes=st.integers(1, 12), width=st.floats(1 / 64, 0.1))
def test_every_size_gives_logits(size, channels, classes, width):
    model = vgg11(classes, in_channels=channels, size=size, width=width).eval()
    assert model(images(2, channels, size)).shape == (2, classes)


@given(channels=st.lists(st.integers(1, 6), min_size=1, max_size=6), size=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_conv_bn_of_any_depth(channels, size):
    model = conv_bn(channels, 3, size=size).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in model) == len(channels)
    assert model(images(2, 1, size)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_eps_a_filters_scale_drops_out_to_the_last_bit(dtype):
    x = images(16, 1, 8, dtype)
    outputs = {}
    for eps in (0.0, 1e-5):
        model = conv_bn(eps=eps, dtype=dtype)
        before = model(x)
        for name, p in model.named_parameters():
            if name.startswith("conv"):
                p.data.mul_(2.0 ** torch.randint(-3, 4, (len(p), 1, 1, 1), generator=torch.manual_seed(0)))
        outputs[eps] = (model(x) - before).abs().max().item()
    assert outputs[0.0] == 0.0
    assert outputs[1e-5] > 1e-6  # the control: torch's default eps feels the scale


def test_without_eps_the_gradient_is_orthogonal_to_every_filter():
    products = {}
    for eps in (0.0, 1e-5):
        model = conv_bn(eps=eps, dtype=torch.float64)
        nn.functional.cross_entropy(model(images(16, 1, 8, torch.float64)), torch.arange(16) % 10).backward()
        q = [p for name, p in model.named_parameters() if name.startswith("conv")]
        cosines = [(p * p.grad).sum((1, 2, 3)) / (p.norm() * p.grad.norm()) for p in q]
        products[eps] = torch.cat(cosines).abs().max().item()
    assert products[0.0] < 1e-15 < 1e-7 < products[1e-5]


def test_a_dead_channel_without_eps_stays_finite():
    model = conv_bn((4, 4), eps=0.0)
    model.bn1.bias.data.fill_(-100.0)  # nothing passes the first ReLU, so the second variance is 0
    loss = nn.functional.cross_entropy(model(images(8, 1, 8)), torch.zeros(8, dtype=torch.int64))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_seeds_and_precisions():
    state = torch.get_rng_state()
    single, double, other = vgg11(7, width=0.1), vgg11(7, width=0.1, dtype=torch.float64), vgg11(7, width=0.1, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    for a, b, c in zip(single.parameters(), double.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b.float())
        assert a.ndim == 1 or not torch.equal(a, c)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vgg11(size=7), "8 to 64 pixels a side, got size=7"),
        (lambda: vgg11(size=65), "8 to 64 pixels a side, got size=65"),
        (lambda: vgg11(size=16.0), "size is an integer"),
        (lambda: vgg11(0), "classes is an integer >= 1"),
        (lambda: vgg11(in_channels=0), "in_channels is an integer >= 1"),
        (lambda: vgg11(width=0.001), r"width=0.001 leaves no channel .* take 0.015625 or more"),
        (lambda: vgg11(width=math.nan), "leaves no channel"),
        (lambda: vgg11(width=0.1, eps=-1e-5), "eps is added to a variance"),
        (lambda: vgg11(width=0.1, dtype=torch.bfloat16), "use autocast"),
        (lambda: conv_bn(()), r"like \(8, 16, 16\)"),
        (lambda: conv_bn(8), r"like \(8, 16, 16\)"),
        (lambda: conv_bn((8, 0)), "channels is an integer >= 1"),
        (lambda: conv_bn(size=0), "size is an integer >= 1"),
        (lambda: conv_bn(classes=True), "classes is an integer >= 1"),
    ],
)
def test_impossible_networks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
