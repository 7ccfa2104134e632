"""What the tests of the monitors share: a small network, its laws, and a training loop as a user writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nlcompanion.datasets import digits
from nlcompanion.laws import homogeneous_laws
from nlcompanion.networks import flat_loss, mlp


def samples():
    x, y = digits().first(400).tensors()
    return x.flatten(1), y


def network(activation="relu", bias=True, dtype=torch.float64, widths=(64, 12, 9, 10)):
    return mlp(widths, activation, bias=bias, seed=1, dtype=dtype)


def laws_of(model, data, make=homogeneous_laws):
    x, y = data
    return make(flat_loss(model, x[:4], y[:4], F.cross_entropy))


def train(model, optimizer, data, *, steps=20, seed=0, before=None, size=32):
    """A user's own loop on mini-batches; ``before(n)`` runs between backward and step."""
    x, y = data
    x = x.to(next(model.parameters()).dtype)
    g = torch.Generator().manual_seed(seed)
    for n in range(steps):
        batch = torch.randperm(len(x), generator=g)[:size]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        if before is not None:
            before(n)
        optimizer.step()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])
