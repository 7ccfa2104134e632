"""Clean kernels at the edge of what they take: one row, one channel, equal numbers, masks, features of any size."""

import itertools
import math

import pytest
import torch
from kernels_with_faults import Attention, Linear
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nlcompanion import check_gradients, check_recorded

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
BACKENDS = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ONE_NUMBER = {
    "LayerNorm": (nn.LayerNorm(1), (7, 1)),
    "GroupNorm": (nn.GroupNorm(4, 4), (3, 4, 1, 1)),
    "GroupNorm of a vector": (nn.GroupNorm(4, 4), (3, 4)),
}
DEGENERATE = {
    "RMSNorm of one": (nn.RMSNorm(1), (7, 1)),
    "two numbers": (nn.LayerNorm(2), (7, 2)),
    "one row": (nn.LayerNorm(5), (1, 5)),
    "a vector": (nn.LayerNorm(5), (5,)),
    "one batch of two pixels": (nn.BatchNorm2d(4), (1, 4, 2, 1)),
    "two samples": (nn.BatchNorm1d(4), (2, 4)),
    "no gain": (nn.BatchNorm1d(4, affine=False), (9, 4)),
    "no gain in groups": (nn.InstanceNorm2d(4, affine=False), (3, 4, 2, 2)),
    "two pixels": (nn.InstanceNorm2d(4, affine=True), (3, 4, 1, 2)),
}
EQUAL = {
    "rows": (nn.LayerNorm(5), (7, 5)),
    "a batch": (nn.BatchNorm1d(5), (7, 5)),
    "images": (nn.GroupNorm(2, 4), (3, 4, 2, 2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE_NUMBER)
def test_a_set_of_one_number_is_a_limit(name, dtype):
    layer, shape = ONE_NUMBER[name]
    report = check_gradients(layer.to(dtype), 3 * normal(*shape, dtype=dtype))
    assert not report.broken
    assert "holds one number" in report.limits[0]
    assert {check.law for check in report.checks} == {"sum of dx = 0", "dβ = sum of dy"}


def test_a_gradient_of_one_number_that_does_not_vanish_is_found():
    """The control: the same norm, whose backward pass hands dy through."""
    x, dy, one = 3 * normal(7, 1), normal(7, 1, seed=1), torch.ones(1).double()
    values, gradients = {"x": x, "weight": one, "y": 0 * x}, {"weight": 0 * one, "y": dy}
    assert check_recorded("norm", values, {**gradients, "x": 0 * x}).verdict != "broken"
    assert check_recorded("norm", values, {**gradients, "x": 300 * dy}).verdict == "broken"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DEGENERATE)
def test_few_numbers_raise_no_alarm(name, dtype):
    layer, shape = DEGENERATE[name]
    for seed in range(5):
        check_gradients(layer.to(dtype), 3 * normal(*shape, seed=seed, dtype=dtype), raise_error=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("value", [0.0, 3.3, 1e4])
def test_equal_numbers_raise_no_alarm(name, dtype, value):
    """What is left of them is the rounding of their mean, times 1/sqrt(eps)."""
    layer, shape = EQUAL[name]
    check_gradients(layer.to(dtype), torch.full(shape, value, dtype=dtype), raise_error=True)


def test_one_sample_of_a_batch_norm_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        check_gradients(nn.BatchNorm1d(4).double(), normal(1, 4))


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1e-3, 1e6])
def test_features_of_very_different_size_raise_no_alarm(scale):
    sizes = torch.tensor([scale, 1.0, 1.0, 1e6, 1.0, 1.0])
    for dtype in DTYPES:
        x = (normal(5, 6) * sizes).to(dtype)
        check_gradients(nn.Linear(6, 3).to(dtype), x, raise_error=True)
        check_gradients(nn.LayerNorm(6).to(dtype), x, raise_error=True)
    w, b = normal(3, 6, seed=1), normal(3, seed=2)
    x = normal(5, 6) * sizes
    broken = check_gradients(lambda *t: Linear.apply(*t, "half the batch"), x, w, b, kind="linear").verdict
    assert broken == "broken"


def bias_of_distance(n: int, m: int) -> torch.Tensor:
    return -(torch.arange(n)[:, None] - torch.arange(m)).abs() / 2.0


def padded(n: int, m: int) -> torch.Tensor:
    return torch.zeros(n, m).masked_fill(torch.arange(m) >= max(1, m // 2), -math.inf)


def one_row_empty(n: int, m: int) -> torch.Tensor:
    return torch.ones(n, m, dtype=torch.bool).index_fill_(0, torch.tensor([n // 2]), False)


MASKS = {
    "none": lambda n, m: None,
    "causal": lambda n, m: torch.ones(n, m, dtype=torch.bool).tril(max(0, m - n)),
    "random": lambda n, m: torch.rand(n, m, generator=torch.Generator().manual_seed(0)) > 0.5 * (torch.arange(m) > 0),
    "window": lambda n, m: (torch.arange(n)[:, None] - torch.arange(m)).abs() <= 4 + abs(n - m),
    "by head": lambda n, m: torch.rand(2, 2, n, m) > 0.5 * (torch.arange(m) > 0),
    "a bias of distance": bias_of_distance,
    "padding": padded,
    "a large bias": lambda n, m: 20 * torch.randn(n, m, generator=torch.Generator().manual_seed(1)),
}
SHAPES = ((40, 40, 8), (1, 50, 8), (50, 1, 8), (1, 1, 8), (30, 20, 1))  # queries, keys, width of a head


def masked_attention(mask):
    def call(q, k, v):
        given = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given)

    return call


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_every_kind_raise_no_alarm(mask, backend):
    for dtype, (n, m, d) in itertools.product(DTYPES, SHAPES):
        q, k, v = (normal(2, 2, length, d, seed=s, dtype=dtype) for s, length in enumerate((n, m, m)))
        with sdpa_kernel(backend):
            check_gradients(masked_attention(MASKS[mask](n, m)), q, k, v, kind="attention", raise_error=True)


def test_a_query_that_sees_no_key_raises_no_alarm():
    q, k, v = (normal(2, 2, 20, 8, seed=s) for s in range(3))
    report = check_gradients(masked_attention(one_row_empty(20, 20)), q, k, v, kind="attention")
    assert report.verdict == "lawful"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(6, 6), (6, 3), (6, 1)])
def test_grouped_queries_and_dropout(heads, dtype):
    q, k, v = (normal(2, h, 30, 8, seed=s, dtype=dtype) for s, h in enumerate((heads[0], heads[1], heads[1])))

    def grouped(q, k, v, dropout=0.0):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=True)

    check_gradients(grouped, q, k, v, kind="attention", raise_error=True)
    with sdpa_kernel(SDPBackend.MATH):
        check_gradients(lambda *t: grouped(*t, dropout=0.3), q, k, v, kind="attention", raise_error=True)


def test_query_heads_dealt_out_in_turn_are_found():
    """The fault: key head h serves the query heads h, h + G, h + 2G, not a run of them."""
    q, k, v = normal(2, 6, 30, 8), normal(2, 2, 30, 8, seed=1), normal(2, 2, 30, 8, seed=2)
    wrong = lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1))  # noqa: E731
    assert check_gradients(wrong, q, k, v, kind="attention").verdict == "broken"


def with_sink(q, k, v):
    logits = q @ k.mT / q.shape[-1] ** 0.5
    return torch.cat([logits, torch.full_like(logits[..., :1], 0.7)], -1).softmax(-1)[..., :-1] @ v


def capped(q, k, v):
    return (5 * torch.tanh(q @ k.mT / q.shape[-1] ** 0.5 / 5)).softmax(-1) @ v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "declared"), [(with_sink, {"sinks": True}), (capped, {"soft_cap": 5.0})])
def test_sinks_and_a_soft_cap_take_one_law_away_and_the_report_says_so(kernel, declared, dtype):
    q, k, v = (3 * normal(2, 2, 40, 8, seed=s, dtype=dtype) for s in range(3))
    report = check_gradients(kernel, q, k, v, kind="attention", **declared)
    assert not report.broken
    assert "sinks or a soft cap" in report.limits[0]
    assert "sum of dK over keys = 0" not in {check.law for check in report.checks}
    if dtype == torch.float64:  # the control: undeclared, the law that they lack is broken
        assert {c.law for c in check_gradients(kernel, q, k, v, kind="attention").broken} == {"sum of dK over keys = 0"}


def test_a_kernel_that_is_off_on_real_activations_only():
    """Random inputs leave every weight of the softmax small, and a clamp of P unnoticed; larger logits do not."""
    q, k, v = (normal(2, 2, 64, 8, seed=s) for s in range(3))
    kernel = lambda q, k, v: Attention.apply(q, k, v, "stale dv")  # noqa: E731
    assert check_gradients(kernel, q / 10, k, v, kind="attention").verdict == "lawful"
    assert check_gradients(kernel, 3 * q, k, v, kind="attention").verdict == "broken"


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_logits_are_no_fault(dtype):
    x = normal(8, 7, dtype=dtype).masked_fill(torch.arange(7) > 4, -math.inf)
    check_gradients(nn.Softmax(-1), x, raise_error=True)
    assert check_gradients(nn.LogSoftmax(-1), x, loss=lambda y: y[:, :5].float().sum()).verdict != "broken"
    labels = torch.arange(8) % 5
    check_gradients(lambda t: F.cross_entropy(t, labels), x, kind="cross_entropy", raise_error=True)
    with pytest.raises(ValueError, match="not finite"):
        check_gradients(nn.Softmax(-1), x.masked_fill(x == -math.inf, math.inf))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_sequences_raise_no_alarm(backend, dtype):
    for n in (2048, 4097):
        q, k, v = (normal(1, 1, n, 64, seed=s, dtype=dtype) for s in range(3))
        with sdpa_kernel(backend):
            check_gradients(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                *(q, k, v),
                kind="attention",
                raise_error=True,
            )
