"""Large tensors are looked at in float32 first: it must settle what is clean, and no verdict may depend on it."""

import pytest
import torch
from torch.nn import functional as F

from nlcompanion import check_recorded
from nlcompanion.testing import record as records
from nlcompanion.testing.rounding import Balance


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def recorded(values: dict, y: torch.Tensor, dy: torch.Tensor):
    found = torch.autograd.grad(y, list(values.values()), dy)
    return values | {"y": y}, dict(zip(values, found, strict=True)) | {"y": dy}


def layer_norm(dtype):
    x, gain, shift = 3 * normal(512, 128) + 1, 1 + normal(128, seed=1) / 4, normal(128, seed=2)
    values = {role: t.to(dtype).requires_grad_() for role, t in (("x", x), ("weight", gain), ("bias", shift))}
    y = F.layer_norm(values["x"], (128,), values["weight"], values["bias"])
    return "norm", *recorded(values, y, normal(512, 128, seed=3).to(dtype)), {}


def batch_norm(dtype):
    x, gain, shift = 3 * normal(16, 32, 8, 8) + 1, 1 + normal(32, seed=1) / 4, normal(32, seed=2)
    values = {role: t.to(dtype).requires_grad_() for role, t in (("x", x), ("weight", gain), ("bias", shift))}
    y = F.batch_norm(values["x"], None, None, values["weight"], values["bias"], training=True)
    return "norm", *recorded(values, y, normal(16, 32, 8, 8, seed=3).to(dtype)), {"over": "batch"}


def group_norm(dtype):
    x, gain, shift = 3 * normal(16, 32, 8, 8) + 1, 1 + normal(32, seed=1) / 4, normal(32, seed=2)
    values = {role: t.to(dtype).requires_grad_() for role, t in (("x", x), ("weight", gain), ("bias", shift))}
    y = F.group_norm(values["x"], 4, values["weight"], values["bias"])
    return "norm", *recorded(values, y, normal(16, 32, 8, 8, seed=3).to(dtype)), {"over": "groups", "groups": 4}


def linear(dtype):
    values = {"x": normal(600, 96), "weight": normal(64, 96, seed=1), "bias": normal(64, seed=2)}
    values = {role: t.to(dtype).requires_grad_() for role, t in values.items()}
    y = F.linear(values["x"], values["weight"], values["bias"])
    return "linear", *recorded(values, y, normal(600, 64, seed=3).to(dtype)), {}


def attention(dtype):
    values = {role: normal(2, 4, 128, 64, seed=k).to(dtype).requires_grad_() for k, role in enumerate("qkv")}
    y = F.scaled_dot_product_attention(*values.values())
    return "attention", *recorded(values, y, normal(2, 4, 128, 64, seed=3).to(dtype)), {}


def relu(dtype):
    values = {"x": normal(300, 200).to(dtype).requires_grad_()}
    return "homogeneous", *recorded(values, F.relu(values["x"]), normal(300, 200, seed=3).to(dtype)), {}


LAYERS = (layer_norm, batch_norm, group_norm, linear, attention, relu)
FIRST = {"norm": "x", "linear": "weight", "attention": "k", "homogeneous": "x"}


@pytest.fixture
def looks(monkeypatch):
    """The answers of the first look, one a law."""
    answers = []
    settled = Balance.settled.fget

    def noted(balance):
        answers.append(settled(balance))
        return answers[-1]

    monkeypatch.setattr(Balance, "settled", property(noted))
    return answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_what_is_clean_is_settled_at_the_first_look(layer, dtype, looks):
    kind, values, gradients, options = layer(dtype)
    assert not check_recorded(kind, values, gradients, **options).broken
    assert looks
    assert all(looks)


@pytest.mark.parametrize("layer", LAYERS)
def test_float64_is_never_looked_at_in_float32(layer, looks):
    kind, values, gradients, options = layer(torch.float64)
    assert check_recorded(kind, values, gradients, **options).verdict == "lawful"
    assert not looks


@pytest.mark.parametrize("layer", LAYERS)
def test_no_verdict_depends_on_the_first_look(layer, monkeypatch):
    """Faults of one tensor from far below the floor to far above it, with the look and without."""
    kind, values, gradients, options = layer(torch.float32)
    role = FIRST[kind]
    verdicts = []
    for power in range(-9, 1):
        fault = gradients[role] * (1 + 10.0**power * normal(*gradients[role].shape, seed=7))
        faulty = {**gradients, role: fault}
        with_look = check_recorded(kind, values, faulty, **options)
        with monkeypatch.context() as patch:
            patch.setattr(records, "LARGE", 10**12)
            without = check_recorded(kind, values, faulty, **options)
        assert [c.verdict for c in with_look.checks] == [c.verdict for c in without.checks]
        for one, other in zip(with_look.checks, without.checks, strict=True):
            assert one.visible == pytest.approx(other.visible, rel=0.05)
        for one, other in zip(with_look.broken, without.broken, strict=True):
            assert (one.defect, one.floor) == (other.defect, other.floor)
        verdicts.append(with_look.verdict)
    assert verdicts[0] == "lawful"
    assert verdicts[-1] == "broken"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e25])
def test_what_float32_cannot_hold_is_left_to_float64(scale):
    """Squares of such gradients vanish or overflow in float32."""
    kind, values, gradients, options = layer_norm(torch.float32)
    scaled = {role: t * scale for role, t in gradients.items()}
    assert check_recorded(kind, values, scaled, **options).verdict == "lawful"
    scaled["x"] = scaled["x"] * torch.linspace(1, 1.1, 128)
    assert check_recorded(kind, values, scaled, **options).verdict == "broken"


def test_one_wrong_number_in_a_large_tensor_is_found():
    kind, values, gradients, options = layer_norm(torch.float32)
    gradients["x"] = gradients["x"].clone()
    gradients["x"][300, 77] *= 1.01
    assert check_recorded(kind, values, gradients, **options).verdict == "broken"
    padded = {role: torch.cat([t, 0 * t]) if role in "xy" else t for role, t in layer_norm(torch.float32)[2].items()}
    zeros = {role: torch.cat([t, 0 * t + 1]) if role in "xy" else t for role, t in values.items()}
    zeros["y"] = torch.cat([values["y"], values["bias"].expand(512, -1)])
    assert check_recorded(kind, zeros, padded, **options).verdict == "lawful"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", LAYERS)
def test_one_number_that_is_not_finite_is_an_error_in_any_tensor(layer, value):
    """The look reads it before anybody asks whether it is finite."""
    kind, values, gradients, options = layer(torch.float32)
    for tensors in (values, gradients):
        for role, tensor in tensors.items():
            spoilt = tensor.detach().clone()
            spoilt[(-1,) * spoilt.ndim] = value
            given = [held | {role: spoilt} if held is tensors else held for held in (values, gradients)]
            with pytest.raises(ValueError, match=f"{role} holds 1 values that are not finite"):
                check_recorded(kind, *given, **options)


def test_a_tensor_that_no_law_reads_is_looked_at_all_the_same():
    """Sets of one number: the output is in none of the laws that are left."""
    x, one, dy = normal(40000, 1), torch.ones(1), normal(40000, 1, seed=1)
    gradients = {"x": 0 * x, "weight": 0 * one, "bias": dy.sum(0), "y": dy}
    values = {"x": x, "weight": one, "bias": 0 * one, "y": 0 * x}
    assert not check_recorded("norm", values, gradients).broken
    values["y"][7] = float("nan")
    with pytest.raises(ValueError, match="y holds 1 values that are not finite"):
        check_recorded("norm", values, gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_floor_follows_the_size_of_the_gradients(layer, dtype):
    """A loss in other units has the same laws, and a fault of one per cent is seen as well."""
    kind, values, gradients, options = layer(dtype)
    scaled = {role: gradient * 2.0**-20 for role, gradient in gradients.items()}
    as_given, other = (check_recorded(kind, values, g, **options) for g in (gradients, scaled))
    for one, two in zip(as_given.checks, other.checks, strict=True):
        assert one.visible == pytest.approx(two.visible, rel=1e-3)
