"""Laws on ``.grad`` as it lies: which of the things that happen to a gradient a law survives, and which it does not."""

import pytest
import torch
from torch import nn

from nlcompanion import GainIntoLinear, check_gradients, flat_loss, homogeneous_laws, mlp

LAW = GainIntoLinear("0.weight", ("1.weight",), "0.bias")


def model_and_shards(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 1.5)
        model[0].bias.normal_()
    return model, torch.randn(4, 20, 12).to(dtype).unbind()


def backward(model, x, scale=1.0):
    (scale * model(x).square().sum()).backward()


def ranks(model, shards) -> list[list[torch.Tensor]]:
    found = []
    for x in shards:
        model.zero_grad()
        backward(model, x)
        found.append([p.grad.clone() for p in model.parameters()])
    return found


def put(model, gradients) -> None:
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_gain_that_is_not_reduced_is_found(dtype):
    model, shards = model_and_shards(dtype)
    of_ranks = ranks(model, shards)
    mean = [torch.stack(gradients).mean(0) for gradients in zip(*of_ranks, strict=True)]
    put(model, mean)
    assert check_gradients(model, laws=LAW).verdict == "lawful"
    put(model, [of_ranks[0][0], *mean[1:]])
    assert check_gradients(model, laws=[LAW]).verdict == "broken"


def accumulated(model, shards):
    for x in shards:
        backward(model, x)


def unscaled(model, shards):
    backward(model, shards[0], 2.0**16)
    for p in model.parameters():
        p.grad /= 2.0**16


def clipped_by_norm(model, shards):
    backward(model, shards[0])
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def clipped_by_value(model, shards):
    backward(model, shards[0])
    nn.utils.clip_grad_value_(model.parameters(), 0.1)


def clipped_by_tensor(model, shards):
    backward(model, shards[0])
    for p in model.parameters():
        nn.utils.clip_grad_norm_([p], 0.1)


def unscaled_but_one(model, shards):
    unscaled(model, shards)
    model[0].weight.grad *= 2


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        (accumulated, "lawful"),
        (unscaled, "lawful"),
        (clipped_by_norm, "lawful"),
        (clipped_by_value, "broken"),
        (clipped_by_tensor, "broken"),
        (unscaled_but_one, "broken"),
    ],
)
def test_what_a_law_survives(what, verdict):
    model, shards = model_and_shards()
    what(model, shards)
    assert check_gradients(model, laws=LAW).verdict == verdict


def test_laws_of_the_package_and_whatever_has_laws():
    model = mlp((6, 9, 8, 3), "relu", seed=0)
    x, y = torch.randn(30, 6).double(), torch.zeros(30).long()
    f = flat_loss(model, x, y, nn.functional.cross_entropy)
    laws = homogeneous_laws(f)
    nn.functional.cross_entropy(model(x), y).backward()

    class Audit:
        pass

    audit = Audit()
    audit.laws = laws
    report = check_gradients(model, laws=audit)
    assert report.verdict == "lawful"
    assert len(report.checks) == len(laws)
    next(model.parameters()).grad[2] *= 1.001
    assert check_gradients(model, laws=laws).verdict == "broken"


def test_missing_gradients_and_parameters_are_named():
    model, shards = model_and_shards()
    with pytest.raises(ValueError, match=r"0\.weight has no gradient"):
        check_gradients(model, laws=LAW)
    backward(model, shards[0])
    with pytest.raises(ValueError, match="which the model lacks"):
        check_gradients(model, laws=GainIntoLinear("gain", ("1.weight",)))
    model[0].weight.grad[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        check_gradients(model, laws=LAW)
