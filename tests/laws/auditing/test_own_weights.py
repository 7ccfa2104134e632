"""A law of random weights is held against the model's own: where a gate is open, where eps counts, at a minimum."""

import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit


class Gated(nn.Module):
    """``|z|²`` of four outputs, and the first of them where a gate is open, as random weights do not make it."""

    def __init__(self, threshold=2000.0):
        super().__init__()
        self.threshold = threshold
        self.outputs, self.gate = nn.Linear(3, 4, bias=False), nn.Linear(3, 1, bias=False)

    def forward(self, x):
        z = self.outputs(x)
        return z.square().sum(-1) + torch.relu(self.gate(x.abs()).squeeze(-1) - self.threshold) * z[:, 0]


class Normalised(nn.Module):
    """A gain divided by its own size, but for eps."""

    def __init__(self):
        super().__init__()
        self.layer, self.log_gain, self.eps = nn.Linear(3, 2), nn.Parameter(torch.zeros(2)), 1e-2

    def forward(self, x):
        gain = self.log_gain.exp()
        return self.layer(x) * gain * torch.rsqrt(gain**2 + self.eps)


class SquaredLength(nn.Module):
    """``|W x|²``, which any rotation of W leaves alone."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x @ self.weight.T).square().sum(-1)


def of_gate(weight, threshold=2000.0):
    torch.manual_seed(0)
    model = Gated(threshold).double()
    nn.init.constant_(model.gate.weight, weight)
    x = torch.randn(8, 3).double()
    return audit(model, x, torch.randn(8).double(), F.mse_loss)


def sizes(found):
    return {(line.kind, line.parameters): line.size for line in found.lines}


def test_where_its_own_gate_is_closed_a_model_has_what_random_weights_have():
    found = of_gate(0.1)
    assert sizes(found) == {("dead", ("gate.weight",)): 3, ("rotation", ("outputs.weight",)): 6}
    assert not found.limits


def test_what_the_models_own_weights_break_is_a_limit_and_no_law():
    found = of_gate(3000.0)
    assert sizes(found) == {("rotation", ("outputs.weight",)): 3}  # of the three outputs that no gate reads
    assert all(line.defect < 1e-13 for line in found.lines)
    dead, rotation = (limit for limit in found.limits if "not at the model's own" in limit)
    assert "dead direction, 3 of gate.weight" in dead
    assert "rotation, 3 of outputs.weight" in rotation


def test_a_gate_that_larger_weights_open_leaves_no_law_of_all_weights():
    found = of_gate(0.1, threshold=20.0)
    assert sizes(found) == {}
    assert sum("holds while weights are small" in limit for limit in found.limits) == 2


class Offset(nn.Module):
    """A net of which two hidden neurons get an offset behind their activation, where a gate is open."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5, bias=False), nn.Linear(5, 3)
        self.gate, self.activation = nn.Linear(4, 1, bias=False), activation

    def forward(self, x):
        offset = torch.relu(self.gate(x.abs()) - 2000.0) * torch.tensor([1e-3, 1e-3, 0.0, 0.0, 0.0]).to(x)
        return self.last(self.activation(self.first(x)) + offset)


def of_offset(gate, activation):
    torch.manual_seed(0)
    model = Offset(activation).double()
    nn.init.constant_(model.gate.weight, gate)
    found = audit(model, torch.randn(8, 4).double(), torch.randn(8, 3).double(), F.mse_loss)
    return found, sizes(found)


PAIR = ("first.weight", "last.weight")


def test_a_rescaling_that_the_models_own_weights_break_is_dropped_neuron_by_neuron():
    closed, open_ = of_offset(0.1, nn.ReLU()), of_offset(3000.0, nn.ReLU())
    assert closed[1] == {("rescaling", PAIR): 5, ("dead", ("gate.weight",)): 4}
    assert open_[1] == {("rescaling", PAIR): 3}
    assert all(line.defect < 1e-13 for line in open_[0].lines)
    assert any("rescaling of neurons, 2 of first.weight, last.weight" in limit for limit in open_[0].limits)


def test_of_a_linear_pair_the_part_that_holds_stays():
    closed, open_ = of_offset(0.1, nn.Identity()), of_offset(3000.0, nn.Identity())
    assert closed[1] == {("linear", PAIR): 25, ("dead", ("gate.weight",)): 4}
    assert open_[1] == {("linear", PAIR): 9}
    assert all(line.defect < 1e-13 for line in open_[0].lines)
    (law,) = open_[0].laws
    assert law.shape == (3, 3)
    assert any("linear pair, 16 of" in limit for limit in open_[0].limits)


def test_a_dead_direction_that_eps_alone_moves_stays_with_its_defect():
    torch.manual_seed(0)
    found = audit(Normalised().double(), torch.randn(8, 3).double(), torch.randn(8, 2).double(), F.mse_loss)
    (line,) = (line for line in found.lines if line.kind == "dead")
    assert (line.parameters, line.size) == (("log_gain",), 2)
    assert 1e-4 < line.defect < 0.1


def test_a_rotation_at_a_minimum_stays_though_the_gradient_is_all_rounding():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    targets = SquaredLength(torch.eye(3).double())(x).detach()
    targets += 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
    products = torch.einsum("ni,nj->nij", x, x).flatten(1)
    best = (torch.linalg.pinv(products) @ targets).view(3, 3)
    model = SquaredLength(torch.linalg.cholesky(best).T.contiguous())
    loss = F.mse_loss(model(x), targets)
    loss.backward()
    assert model.weight.grad.abs().max() < 1e-13 < 1e-3 < loss
    found = audit(model, x, targets, F.mse_loss)
    (line,) = found.lines
    assert (line.kind, line.size) == ("rotation", 3)
    assert line.defect > 1e-9  # of a gradient that is rounding itself
