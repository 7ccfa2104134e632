"""The number of conserved functions, against known ones and against Jacobians, which count too many."""

import itertools

import pytest
import torch
from torch import nn

from nlcompanion import audit, count_laws


def linear(*widths):
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))


def neurons(activation):
    return nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("model", "width", "laws"),
    [
        (linear(4, 2, 3), 4, 3),  # U V^T: r (r + 1) / 2
        (linear(2, 2, 2), 2, 3),
        (linear(3, 2, 2, 3), 3, 6),
        (neurons(nn.ReLU()), 2, 3),
        (neurons(nn.GELU()), 2, 0),
        (neurons(nn.Tanh()), 2, 0),
    ],
)
def test_known_counts(model, width, laws):
    torch.manual_seed(1)
    assert count_laws(model, torch.randn(4, width)) == laws


def test_the_jacobian_alone_counts_too_many():
    """The control: without brackets U V^T would conserve r^2 = 4 functions."""
    torch.manual_seed(1)
    assert count_laws(linear(4, 2, 3), torch.randn(4, 4), depth=1) == 4


def test_an_audit_of_a_small_model_is_complete():
    torch.manual_seed(0)
    model, x = linear(3, 2, 2, 3), torch.randn(6, 3)
    assert audit(model, x, torch.randn(6, 3), nn.functional.mse_loss).count == count_laws(model, x)


def test_other_points_and_frozen_parameters():
    torch.manual_seed(0)
    model = neurons(nn.ReLU())
    assert {count_laws(model, torch.randn(4, 2), seed=seed) for seed in range(3)} == {3}
    model[0].requires_grad_(False)
    assert count_laws(model, torch.randn(4, 2)) == 0


def test_batch_norm_is_counted_and_the_model_untouched():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3, eps=1e-30), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_laws(model, torch.randn(6, 2)) == 6  # three scales, three of a gain and its reader
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (torch.relu, TypeError, "wrap a function in a Module"),
        (nn.ReLU(), ValueError, "0 trained parameters"),
        (nn.Linear(100, 100), ValueError, "count a copy of smaller widths"),
        (nn.LSTM(2, 1), ValueError, "puts out tuple"),
    ],
)
def test_bad_input(model, error, says):
    with pytest.raises(error, match=says):
        count_laws(model, torch.randn(3, 2))


def test_a_depth_that_is_none():
    with pytest.raises(ValueError, match="depth must be an integer from 1"):
        count_laws(nn.Linear(2, 2), torch.randn(3, 2), depth=0)
