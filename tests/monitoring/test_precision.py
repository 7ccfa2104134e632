"""Half precision is told by the last digits of gradients; one of nothing but rounding is not taken for it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit
from nlcompanion.monitoring import Ledger
from nlcompanion.monitoring.precision import GradientPrecision, telling


def normalized(seed: int) -> nn.Module:
    """A bias before a BatchNorm, which takes it away: the loss does not depend on it."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(32, 12), torch.randint(3, (32,))


def backward(model: nn.Module, half: bool) -> None:
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = F.cross_entropy(model(x), y)
    loss.backward()


@pytest.mark.parametrize("half", [False, True])
def test_the_rounding_of_a_dead_bias_is_no_half_precision(half):
    for seed in range(8):
        model = normalized(seed)
        alone = GradientPrecision({"0.bias": model[0].bias})
        among = GradientPrecision(dict(model.named_parameters()))
        backward(model, half)
        if not half:
            assert alone.latest() is not None  # the control: its few digits look like those of half precision
        assert among.latest() is (torch.bfloat16 if half else None)


@pytest.mark.parametrize("kinds", [("dead",), pytest.param(("dead", "scale"), marks=pytest.mark.slow), None])
def test_a_ledger_of_a_network_with_dead_biases(kinds):
    """``kinds``: also one of the dead biases alone, whose own gradients tell nothing."""
    for half in (False, True):
        model, (x, y) = normalized(1), batch()
        laws = audit(model, x, y, F.cross_entropy).laws
        chosen = [law for law in laws if not law.sources and (kinds is None or law.kind in kinds)]
        assert any(law.kind == "dead" for law in chosen)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        ledger = Ledger(chosen, model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, half)
            optimizer.step()
        assert ledger.check(tol=1.0) < ledger.tolerance
        assert ledger.tolerance == (8 * torch.finfo(torch.bfloat16).eps if half else 1e-6)


def test_whose_gradients_are_looked_at():
    model = normalized(0)
    of_model = dict(model.named_parameters())
    matrices = ["0.weight", "3.weight"]
    assert list(telling(of_model, of_model)) == matrices
    assert list(telling({"0.bias": model[0].bias}, of_model)) == matrices
    gains = dict(model[1].named_parameters())
    assert telling(gains, gains) == gains
