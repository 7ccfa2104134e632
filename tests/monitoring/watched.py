"""What the tests of the monitor share: small models and optimizers of many kinds, and a loop as a user writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion.datasets import digits
from nlcompanion.monitoring import Monitor


def samples(dtype=torch.float32):
    x, y = digits("train").first(512).tensors()
    return x.to(dtype), y


def layers(activation=nn.ReLU, bias=True):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 24, bias=bias),
        activation(),
        nn.Linear(24, 16, bias=bias),
        activation(),
        nn.Linear(16, 10, bias=bias),
    )


def convnet(bias=False):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)
    )  # fmt: skip


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24, bias=False), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 10))


class Attention(nn.Module):
    """Eight rows of pixels through an encoder layer with dropout."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, 16), nn.Parameter(torch.randn(8, 16) / 10)
        self.encode = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        return self.head(self.encode(self.embed(images.squeeze(1)) + self.place).mean(1))


class Lion(torch.optim.Optimizer):
    """Chen et al., arXiv 2302.06675: an optimizer that PyTorch does not have."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.lerp(p.grad, average, first).sign_(), alpha=-group["lr"])
                average.lerp_(p.grad, 1 - second)


def groups(model, decay):
    """Decay on matrices and filters alone, as it should be."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def muon(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=1e-2),
        *([torch.optim.AdamW(others, lr=1e-3, weight_decay=0)] if others else []),
    ]


OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(groups(model, 1e-3), lr=0.05, momentum=0.9),
    "SGD, Nesterov": lambda model: torch.optim.SGD(groups(model, 1e-3), lr=0.05, momentum=0.9, nesterov=True),
    "SGD, plain": lambda model: torch.optim.SGD(groups(model, 1e-3), lr=0.1),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "AdamW": lambda model: torch.optim.AdamW(groups(model, 0.1), lr=3e-3),
    "Lion": lambda model: Lion(groups(model, 0.1), lr=3e-4),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3),
    "Muon": muon,
}
MODELS = {
    "ReLU": layers,
    "leaky ReLU": lambda: layers(nn.LeakyReLU),
    "tanh": lambda: layers(nn.Tanh),
    "GELU": lambda: layers(nn.GELU),
    "ReLU6": lambda: layers(nn.ReLU6),  # a ReLU until it saturates
    "hardtanh": lambda: layers(nn.Hardtanh),  # linear until it saturates
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10)),
    "BatchNorm": convnet,
    "LayerNorm": normed,
    "transformer": Attention,
}


def watched(model, optimizers, *, every=20, **settings):
    """A monitor, and the optimizers in a list."""
    several = optimizers if isinstance(optimizers, list) else [optimizers]
    return Monitor(model, several, every=every, **settings), several


def train(model, optimizers, data, *, steps, seed=0, before=None, after=None, schedules=()):
    """A loop on mini-batches; ``before(n)`` runs between backward and step."""
    x, y = data
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    g = torch.Generator().manual_seed(seed)
    for n in range(steps):
        batch = torch.randint(len(x), (32,), generator=g)
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        if before is not None:
            before(n)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        if after is not None:
            after(n)


def kinds(monitor):
    return [alert.kind for alert in monitor.alerts]
