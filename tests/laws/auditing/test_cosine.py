"""A law's cosine is that of the gradient and the generator as vectors, where its terms meet in one entry too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit, flat_loss


class Gain(nn.Module):
    """A gain that is stored as its distance from 1."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x * (1 + self.weight)


class Recurrent(nn.Module):
    """A ReLU recurrence, whose matrix each neuron scales by a row and by a column."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.RNN(4, 5, nonlinearity="relu", batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def affine():
    return nn.Sequential(Gain(torch.linspace(-0.99, 1.0, 4)), nn.Linear(4, 3)), torch.randn(7, 4)


def batch_norm_in_eval():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    model[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.5, 0.9]))
    return model.eval(), torch.randn(7, 4)


def recurrent():
    return Recurrent(), torch.randn(7, 3, 4)


def packed_attention():
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, dropout=0.0), torch.randn(3, 5, 8)


def as_vectors(law, g, q):
    """The cosine from the generator itself, neuron by neuron."""
    cosines = []
    for s in torch.eye(law.shape[0]).double() if law.shape else [torch.ones(()).double()]:
        xi = law.generator(q, s)
        entries = law.generator(q + torch.randn_like(q), s) != 0
        cosines.append(g @ xi / (g[entries].norm() * xi.norm()))
    return torch.stack(cosines).reshape(law.shape)


def measured(make):
    torch.manual_seed(0)
    model, x = make()
    model.double()
    targets = torch.randn_like(model(x.double())).detach()
    given = model, x.double(), targets, F.mse_loss
    laws = [law for law in audit(*given).laws if not law.is_matrix and not law.sources]
    f = flat_loss(*given)
    # not the gradient, of which every cosine is 0: any vector
    return laws, torch.randn_like(f.q0), f.q0 + 0.1 * torch.randn_like(f.q0)


@pytest.mark.parametrize("make", [affine, batch_norm_in_eval, recurrent, packed_attention])
def test_the_cosine_is_that_of_two_vectors(make):
    laws, g, q = measured(make)
    assert laws
    for law in laws:
        assert torch.allclose(law.cosine(g, q), as_vectors(law, g, q), rtol=1e-10, atol=0), law.statement


@pytest.mark.parametrize(("make", "kind"), [(affine, "affine"), (recurrent, "rescaling")])
def test_lengths_that_are_added_term_by_term_give_another_cosine(make, kind):
    """The control: what is right where terms do not meet; of a gain near -1 it is off by far more than a root of 2."""
    laws, g, q = measured(make)
    law = next(law for law in laws if law.kind == kind)
    shares = [term.lengths(law.tensor_of(g, term), law.tensor_of(q, term)) for term in law.terms]
    added = law.form(g, q) / (sum(a for a, _ in shares) * sum(b for _, b in shares)).sqrt()
    off = (law.cosine(g, q) / added).abs().max()
    assert off > (1.3 if kind == "affine" else 1.02)
