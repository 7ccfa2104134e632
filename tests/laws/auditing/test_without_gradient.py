"""Draws without a gradient: one of them says nothing, and if all are such there is nothing to audit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import AuditError, audit


class Unused(nn.Module):
    """A layer, and a tensor that nothing reads."""

    def __init__(self, then):
        super().__init__()
        self.layer, self.unused, self.then = nn.Linear(3, 1), nn.Parameter(torch.randn(2, 3)), then

    def forward(self, x):
        return self.then(self.layer(x))


@pytest.mark.parametrize("samples", [1, 8])
def test_a_draw_without_a_gradient_leaves_the_dead_parameters_found(samples):
    torch.manual_seed(0)
    found = audit(Unused(torch.relu), torch.randn(samples, 3), torch.randn(samples, 1), F.mse_loss)
    assert ("dead", ("unused",)) in {(line.kind, line.parameters) for line in found.lines}


def test_a_loss_without_any_gradient_is_refused():
    with pytest.raises(AuditError, match="exactly 0 at all"):
        audit(nn.Linear(3, 2), torch.randn(4, 3), None, lambda model, batch: (model(batch) * 0).sum())
