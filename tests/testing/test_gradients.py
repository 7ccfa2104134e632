"""Every law of a backward pass: clean kernels hold it in each dtype, planted faults break it."""

import pytest
import torch
from kernels_with_faults import Attention, Linear, Norm
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from nlcompanion import LawError, assert_gradients_lawful, check_gradients, check_recorded

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SEEDS = 200
FEW = 25


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def whole(seed: int, low: int, high: int) -> list[int]:
    return torch.randint(low, high + 1, (8,), generator=torch.Generator().manual_seed(seed)).tolist()


def sizes_of(seed: int) -> list[int]:
    most = (2, 3, 3, 70, 70, 40)
    return [draw % limit + 1 for draw, limit in zip(whole(seed, 0, 10**6), most, strict=False)]


def heads(fault, dtype=torch.float64, n=48):
    q, k, v = normal(2, 4, n, 8, dtype=dtype), normal(2, 2, n, 8, seed=1, dtype=dtype), normal(2, 2, n, 8, seed=2)
    return check_gradients(lambda q, k, v: Attention.apply(q, k, v, fault), 2 * q, k, v.to(dtype), kind="attention")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", ["no row mean", "dq without scale", "stale dv", "groups not summed"])
def test_a_faulty_attention_is_found(fault, dtype):
    assert heads("", dtype).verdict != "broken"
    assert heads(fault, dtype).verdict == "broken"


def test_the_faulty_head_is_named():
    broken = heads("one head").broken
    assert {(check.law, check.head) for check in broken} == {("sum of Qᵀ dQ = dKᵀ K", "key-value head 0")}


def test_what_slips_through():
    assert heads("global factor").verdict == "lawful"  # every term of the first law has it
    assert heads("one head", torch.bfloat16).verdict != "broken"  # one per cent is below the floor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("fault", "centered"),
    [("wrong axis", False), ("wrong axis", True), ("mean forgotten", True), ("gain of last sample", False)],
)
def test_a_faulty_norm_is_found(fault, centered, dtype):
    x, gain = 3 * normal(6, 32, dtype=dtype), 1 + normal(32, seed=3, dtype=dtype) / 4
    kind = "norm" if centered else "rms_norm"
    assert check_gradients(lambda x, w: Norm.apply(x, w, centered, ""), x, gain, kind=kind).verdict == "lawful"
    assert check_gradients(lambda x, w: Norm.apply(x, w, centered, fault), x, gain, kind=kind).verdict == "broken"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 300])
@pytest.mark.parametrize("fault", ["half the batch", "mean for sum", "one column"])
def test_a_faulty_linear_map_is_found(fault, width, dtype):
    x, w, b = normal(40, width, dtype=dtype), normal(24, width, seed=1, dtype=dtype), normal(24, seed=2, dtype=dtype)
    assert check_gradients(lambda *t: Linear.apply(*t, ""), x, w, b, kind="linear").verdict == "lawful"
    assert check_gradients(lambda *t: Linear.apply(*t, fault), x, w, b, kind="linear").verdict == "broken"


@pytest.mark.parametrize("dtype", DTYPES)
def test_faulty_activations_softmax_and_rotations_are_found(dtype):
    x, dy = normal(8, 12, dtype=dtype), normal(8, 12, seed=1, dtype=dtype)
    mask = (x > 0).to(dtype)
    for kind, y, right, wrong in (
        ("homogeneous", x * mask, dy * mask, dy),
        ("softmax", x.softmax(-1), None, dy * x.softmax(-1)),
        ("rotary", torch.cat([-x[:, 6:], x[:, :6]], 1), torch.cat([dy[:, 6:], -dy[:, :6]], 1), dy * 1.1),
    ):
        if right is None:
            p = y.double()
            right = (p * (dy.double() - (p * dy.double()).sum(-1, keepdim=True))).to(dtype)
        grads = {"y": dy}
        assert check_recorded(kind, {"x": x, "y": y}, {"x": right, **grads}).verdict == "lawful"
        if kind == "homogeneous":
            wrong = wrong * mask * 1.5
        assert check_recorded(kind, {"x": x, "y": y}, {"x": wrong, **grads}).verdict == "broken"


def test_a_gated_unit():
    gate, up = normal(5, 6), normal(5, 6, seed=1)
    assert check_gradients(lambda g, u: F.silu(g) * u, gate, up, kind="gated").verdict == "lawful"
    assert check_gradients(lambda g, u: F.silu(g) * u**2, gate, up, kind="gated").verdict == "broken"


@pytest.mark.parametrize("degree", [0.5, 2, 3])
def test_an_activation_is_of_its_own_degree(degree):
    """The control: the degree on the other side of x dx = p y dy."""
    x = 1 + normal(40, seed=0).square()
    assert check_gradients(lambda t: t**degree, x, kind="homogeneous", degree=degree).verdict == "lawful"
    assert check_gradients(lambda t: t**degree, x, kind="homogeneous", degree=1 / degree).verdict == "broken"


def check_attention(seed: int, dtype) -> None:
    batch, groups, repeat, n, m, d = sizes_of(seed)
    q = 10.0 ** (seed % 5 / 2 - 1) * normal(batch, groups * repeat, n, d, seed=seed)
    k, v = normal(batch, groups, m, d, seed=seed + 1), normal(batch, groups, m, d, seed=seed + 2)

    def attention(q, k, v):
        k, v = (t.repeat_interleave(repeat, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=seed % 2 == 0 and n == m)

    check_gradients(attention, *(t.to(dtype) for t in (q, k, v)), kind="attention", raise_error=True)


BACKENDS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_false_alarm_in_pytorchs_attention(backend, dtype):
    """All its backends on a CPU: flash attention and the plain formula."""
    with sdpa_kernel(backend):
        for seed in range(FEW):
            check_attention(seed, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_false_alarm_in_pytorchs_attention_over_two_hundred_shapes(backend, dtype):
    with sdpa_kernel(backend):
        for seed in range(FEW, SEEDS):
            check_attention(seed, dtype)


def layers(channels: int, width: int):
    return (
        nn.BatchNorm2d(channels),
        nn.GroupNorm(4, channels),
        nn.InstanceNorm2d(channels, affine=True),
        nn.LayerNorm(width),
        nn.RMSNorm(width),
        nn.Conv2d(channels, 7, 3, padding=1),
        nn.Conv2d(channels, 8, 3, groups=4),
        nn.ConvTranspose2d(channels, 5, 3),
        nn.Linear(width, 9),
        nn.LeakyReLU(),
        nn.Softmax(-1),
        nn.LogSoftmax(-1),
    )


def check_layers(seed: int, dtype) -> None:
    draws = whole(seed, 1, 6)
    channels, width, batch = 4 * draws[0], 3 + draws[1] % 4, 1 + draws[2]
    x = normal(batch, channels, width, width, seed=seed) * 10.0 ** (seed % 5 / 2 - 1) + seed % 4
    torch.manual_seed(seed)
    for layer in layers(channels, width):
        check_gradients(layer.to(dtype), x.to(dtype), seed=seed, raise_error=True)
    labels = torch.arange(8) % channels
    logits = (normal(8, channels, seed=seed) * 10.0 ** (seed % 4)).to(dtype)
    check_gradients(lambda t: F.cross_entropy(t, labels), logits, kind="cross_entropy", raise_error=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_in_pytorchs_layers(dtype):
    for seed in range(FEW):
        check_layers(seed, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_in_pytorchs_layers_over_two_hundred_shapes(dtype):
    for seed in range(FEW, SEEDS):
        check_layers(seed, dtype)


@pytest.mark.parametrize("layer", [nn.Softmax(0), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmax(-1)], ids=str)
def test_a_softmax_is_held_along_its_own_axis(layer):
    x = normal(4, 5, 6, seed=0)
    check_gradients(layer, x, raise_error=True)
    y = layer(x.requires_grad_())
    dy = normal(4, 5, 6, seed=1)
    (dx,) = torch.autograd.grad(y, x, dy)
    options = {"dim": layer.dim, "log": isinstance(layer, nn.LogSoftmax)}
    values, gradients = {"x": x.detach(), "y": y.detach()}, {"x": dx, "y": dy}
    assert check_recorded("softmax", values, gradients, **options).verdict == "lawful"
    other = options | {"dim": (layer.dim + 1) % 3}  # the control
    assert check_recorded("softmax", values, gradients, **other).verdict == "broken"


def test_inputs_that_repeat_raise_no_alarm():
    for dtype in DTYPES:
        x = torch.ones(500, 70).to(dtype) / 3
        check_gradients(nn.Linear(70, 5).to(dtype), x, grad_output=torch.ones(500, 5), raise_error=True)
        q = torch.ones(1, 2, 300, 8).to(dtype) / 3
        call = F.scaled_dot_product_attention
        check_gradients(call, q, q, q, kind="attention", grad_output=q, raise_error=True)


def test_a_module_is_checked_layer_by_layer_with_residuals_and_repeated_calls():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
            self.gelu = nn.GELU()

        def forward(self, x):
            for _ in range(2):
                x = x + self.down(self.gelu(self.up(x)))
            return self.norm(x)

    report = check_gradients(Block().double(), normal(7, 6))
    assert report.verdict == "lawful"
    assert {check.tensors.split(":")[0] for check in report.checks} == {"norm", "up", "down"}
    assert "norm: x" in str(report)


def test_what_a_module_hides_is_a_limit():
    tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double()
    tied[1].weight = tied[0].weight
    report = check_gradients(tied, normal(3, 5))
    assert report.verdict == "cannot tell"
    assert any("used elsewhere" in limit for limit in report.limits)
    inplace = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True)).double()
    assert any("in place" in limit for limit in check_gradients(inplace, normal(3, 5)).limits)
    with pytest.raises(LawError, match="no law was checked"):
        assert_gradients_lawful(nn.GELU(), normal(3, 5))


class Applied(nn.Module):
    """Two linear layers, and how they are put together."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(5, 5), nn.Linear(5, 5, bias=False), forward
        self.double()

    def forward(self, x):
        return self.how(self, x)


def limit_of(model, *inputs) -> str:
    report = check_gradients(model, *inputs)
    assert not report.broken
    return "; ".join(report.limits)


def test_layers_with_weights_that_have_no_law_are_named_where_they_have_children_too():
    for parametrized in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        model = nn.Sequential(parametrized(nn.Linear(5, 4, bias=False)), nn.Linear(4, 3)).double()
        assert limit_of(model, normal(6, 5)) == "0 (ParametrizedLinear): no law is known of it as it is"
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double()
    assert "self_attn (MultiheadAttention): no law" in limit_of(encoder, normal(3, 4, 8))


def test_a_weight_that_is_computed_is_a_limit():
    pruned = nn.Linear(5, 4).double()
    prune.l1_unstructured(pruned, "weight", 0.3)
    assert "its weight is no parameter, but computed of bias, weight_orig" in limit_of(pruned, normal(6, 5))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(5, 4).double())
    assert "its weight is no parameter" in limit_of(nn.Sequential(old, nn.Linear(4, 3).double()), normal(6, 5))


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 3), nn.ConvTranspose1d(3, 4, 3), nn.InstanceNorm1d(3, affine=True)])
def test_a_sample_without_a_batch_axis_is_a_limit(layer):
    assert "no batch axis" in limit_of(layer.double(), normal(3, 20))
    assert check_gradients(layer, normal(2, 3, 20)).verdict == "lawful"


def test_a_call_by_keyword_is_a_limit_of_that_layer():
    model = Applied(lambda m, x: m.b(m.a(input=x)))
    assert limit_of(model, normal(6, 5)) == "a: its input was passed by keyword; pass it by place"
    assert check_gradients(model, normal(6, 5)).verdict == "lawful"
    assert "by keyword" in limit_of(Applied(lambda m, x: m.a(m.a(input=x))), normal(6, 5))


def test_a_reentrant_checkpoint_is_a_limit():
    whole = Applied(lambda m, x: checkpoint(m.a, x, use_reentrant=True))
    assert "a: it ran without gradients" in limit_of(whole, normal(6, 5).requires_grad_())
    part = Applied(lambda m, x: checkpoint(m.b, m.a(x), use_reentrant=True))
    assert "a reentrant checkpoint hides" in limit_of(part, normal(6, 5).requires_grad_())
    other = Applied(lambda m, x: checkpoint(m.b, m.a(x), use_reentrant=False))
    assert_gradients_lawful(other, normal(6, 5).requires_grad_())


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x)) @ m.b.weight,
        lambda m, x: m.b(m.a(x)) + m.b.weight.square().sum(),
        lambda m, x: m.b(m.b(m.a(x @ m.a.weight))),
    ],
)
def test_a_weight_that_a_function_uses_too_leaves_the_layers_own_share(forward):
    model = Applied(forward)
    held = dict(model.named_parameters())
    report = assert_gradients_lawful(model, normal(6, 5))
    assert {check.tensors.split(":")[0] for check in report.checks} == {"a", "b"}
    assert all(parameter is held[name] for name, parameter in model.named_parameters())


def test_a_forward_pass_that_fails_leaves_the_model_as_it_was():
    model = Applied(lambda m, x: m.a(x[:, :4]))
    held = dict(model.named_parameters())
    with pytest.raises(ValueError, match="fails on inputs"):
        check_gradients(model, normal(6, 5))
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    assert not any("_law_input" in module.__dict__ for module in model.modules())


def test_frozen_parameters_take_their_own_laws_away_and_no_other():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)).double()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    checks = check_gradients(model, normal(5, 4)).checks
    assert {check.verdict for check in checks} == {"lawful"}
    assert {check.tensors for check in checks} == {"0: x", "0: bias", "1: x, weight"}


def test_too_few_digits_give_no_verdict():
    x = normal(4, 8) + 1e6
    report = check_gradients(nn.LayerNorm(8), x.float())
    assert "cannot tell" in {check.verdict for check in report.checks}
    with pytest.raises(LawError, match="cannot be told"):
        assert_gradients_lawful(nn.LayerNorm(8), x.float())


def bad_inputs():
    x = normal(3, 4)
    yield lambda: check_recorded("attention", dict.fromkeys("qkvy", x), dict.fromkeys("qkvy", x)), "attention takes"
    yield lambda: check_recorded("linear", {"x": x, "weight": x}, {"x": x.T}), "the same"
    yield lambda: check_recorded("homogeneous", {"x": x, "y": x}, {"x": x / 0, "y": x}), "not finite"
    yield lambda: check_recorded("homogeneous", {"x": x, "y": x}, {"y": x}), "no gradient of 'x'"
    yield lambda: check_gradients(F.relu, torch.arange(3), kind="homogeneous"), "no gradient"
    yield lambda: check_gradients(lambda x: x.detach(), x, kind="homogeneous"), "detach"
    yield lambda: check_gradients(F.relu, x, kind="relu"), "the kinds are"
    yield lambda: check_gradients(F.relu, x), "no module"
    yield lambda: check_gradients(F.relu, laws=()), "pass the module"


@pytest.mark.parametrize("case", range(9))
def test_bad_input_gives_an_error_that_names_the_cause(case):
    call, message = list(bad_inputs())[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
