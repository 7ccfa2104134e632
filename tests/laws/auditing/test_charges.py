"""The table's charges are the laws': in writing, and how many they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit, count_laws


class Unread(nn.Module):
    """A layer beside a tensor of which ``read`` takes a part."""

    def __init__(self, read):
        super().__init__()
        self.layer, self.table, self.read = nn.Linear(3, 2), nn.Parameter(torch.randn(3, 4)), read

    def forward(self, x):
        return torch.sigmoid(self.layer(x)) + self.read(self.table)


class OnePlus(nn.Module):
    """A gain of 1 + weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4) * 0.3)

    def forward(self, x):
        return x * (1 + self.weight)


def of_nothing(table):
    return 0.0


def of_a_corner(table):
    """Two rows and a column are left out: 2 * 4 + 1 * 1 weights."""
    return (table[2:, 1:] ** 3).sum() + table[2:, 1].sum()


def examined(model, width):
    """The audit of a regression, and its inputs."""
    x = torch.randn(8, width, dtype=torch.float64)
    model.double()
    return audit(model, x, torch.randn_like(model(x)), F.mse_loss), x


def test_every_weight_of_a_dead_tensor_is_a_conserved_function():
    torch.manual_seed(0)
    model = Unread(of_nothing)
    found, x = examined(model, 3)
    (line,) = (line for line in found.lines if line.kind == "dead")
    assert (line.count, line.size) == (12, 12)
    assert found.count == count_laws(model, x) == 12


def test_a_weight_that_is_in_a_dead_row_and_a_dead_column_counts_once():
    torch.manual_seed(0)
    found, _ = examined(Unread(of_a_corner), 3)
    assert sum(line.count for line in found.lines if line.kind == "dead") == 2 * 4 + 1


def gain():
    return nn.Sequential(OnePlus(), nn.Linear(4, 3))


def without_reader():
    return Unread(of_nothing)


@pytest.mark.parametrize(("kind", "make", "width"), [("affine", gain, 4), ("dead", without_reader, 3)])
def test_the_printed_charge_is_that_of_the_law(kind, make, width):
    torch.manual_seed(0)
    found, _ = examined(make(), width)
    (line,) = (line for line in found.lines if line.kind == kind)
    (law,) = (law for law in found.laws if law.kind == kind)
    assert law.statement.startswith(f"{line.charge} = const")
