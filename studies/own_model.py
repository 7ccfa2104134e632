"""The models of the chapter on one's own model: a small convnet, a transformer block, a llama-like one, all smooth."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nlcompanion as nl
from nlcompanion.datasets import digits


def digit_images(count: int = 64) -> tuple[Tensor, Tensor]:
    """Handwritten digits as images of one channel, ``(count, 1, 8, 8)``, and their labels."""
    images, labels = digits("train").first(count).tensors(torch.float32)
    return images.reshape(count, 1, 8, 8), labels


def digit_rows(count: int = 64) -> tuple[Tensor, Tensor]:
    """The same as sequences of eight rows of eight pixels, ``(count, 8, 8)``."""
    images, labels = digit_images(count)
    return images[:, 0], labels


def convnet(seed: int = 0) -> nn.Sequential:
    """Two convolutions, the first before a batch norm, the second after a ReLU, and a linear classifier."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))


class Reader(nn.Module):
    """A transformer block with GELU that reads an image row by row, and a classifier of the mean."""

    def __init__(self, width: int = 16, heads: int = 2, hidden: int = 24):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.block = nn.TransformerEncoderLayer(
            width, heads, hidden, activation="gelu", norm_first=True, dropout=0.0, batch_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embed(rows)).mean(1)))


def reader(seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    return Reader()


class Heads(nn.Module):
    """Causal attention of two heads without biases, with or without rotary embedding, and a classifier of the mean."""

    def __init__(self, width: int = 8, *, rotary: bool):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.head, self.rotary = nn.Linear(width, 3, bias=False), rotary

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        if self.rotary:
            q, k = turned(q), turned(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(torch.tanh(self.out(mixed.transpose(1, 2).flatten(2))).mean(1))


def turned(x: Tensor) -> Tensor:
    """Rotary embedding: at position ``t`` the plane of entries ``j`` and ``j + d/2`` turned by ``t / 10^j``."""
    length, size = x.shape[-2:]
    angle = torch.arange(length, dtype=x.dtype)[:, None] / 10.0 ** torch.arange(size // 2)
    first, second = x.chunk(2, -1)
    turned = [first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()]
    return torch.cat(turned, -1)


class Gated(nn.Module):
    """A gated unit, ``down(silu(gate(x)) * up(x))``, and a tanh behind it."""

    def __init__(self, width: int = 5, hidden: int = 6):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.head = nn.Linear(hidden, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.down(F.silu(self.gate(x)) * self.up(x))))


def flow(model: nn.Module, x: Tensor, y: Tensor, *, time: float = 2.0, loss=F.cross_entropy) -> tuple[dict, dict]:
    """The parameters by name before and after gradient flow, in float64 and to the solver's accuracy."""
    f = nl.flat_loss(model.double(), x.double(), y if loss is F.cross_entropy else y.double(), loss)
    path = nl.integrate(nl.gradient_flow(), f, f.q0, t_span=(0.0, time), rtol=1e-12, atol=1e-14)
    return f.unflatten(f.q0), f.unflatten(path.q[-1])


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random sequences for :class:`Heads`, and three classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, 5, 8, generator=generator), torch.arange(9) % 3


def radial_slope(layer: nn.Module, norm: nn.Module, x: Tensor, groups: int) -> Tensor:
    """The cosine between the gradient and the weights of each group of a layer's rows before a normalisation."""
    generator = torch.Generator().manual_seed(1)
    outputs = torch.tanh(norm(layer(x)))
    value = (outputs * torch.randn(outputs.shape, generator=generator, dtype=x.dtype)).sum()
    weight = layer.get_parameter("weight")
    (gradient,) = torch.autograd.grad(value, weight)
    return F.cosine_similarity(gradient.reshape(groups, -1), weight.detach().reshape(groups, -1), dim=1)


def reader_trained(steps: int = 200) -> tuple[nl.Audit, nl.Ledger]:
    """The transformer block without epsilon, trained by plain descent on random batches of digits, and its books."""
    model = reader().double()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    rows, labels = digit_rows(256)
    rows = rows.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    found = nl.audit(model, rows[:16], labels[:16], F.cross_entropy, optimizer=optimizer)
    generator = torch.Generator().manual_seed(0)
    with nl.Ledger(found.laws, model, optimizer, every=1) as ledger:
        for _ in range(steps):
            batch = torch.randint(256, (32,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(rows[batch]), labels[batch]).backward()
            optimizer.step()
    return found, ledger


def figure_of_source(account: nl.Account, neurons: list[int]):
    """How the balances of some GELU neurons move, and what their causes add up to."""
    from nlcompanion.book.plotting import panels

    books = account.cumulative
    figure, axes = panels(2)
    for k, neuron in enumerate(neurons):
        axes[0].plot(account.steps, books["change"][:, neuron], color=f"C{k}")
        causes = books["finite_step"][:, neuron] + books["source"][:, neuron]
        axes[0].plot(account.steps[::20], causes[::20], "o", color=f"C{k}", markersize=3)
        axes[1].plot(account.steps, books["source"][:, neuron], color=f"C{k}", label=f"neuron {neuron}")
        axes[1].plot(account.steps, books["finite_step"][:, neuron], "--", color=f"C{k}")
    axes[0].set(xlabel="step", ylabel="change of the balance")
    axes[1].set(xlabel="step", ylabel="source, and finite step (dashed)")
    axes[1].legend()
    return figure


def ledger_of_a_faulty_run(laws, *, factor: float = 1.01, since: int = 40, steps: int = 80) -> nl.Ledger:
    """The books of the convnet of :func:`convnet` under Nesterov's SGD; from a step on one gradient is multiplied.

    Args:
        laws: of the audit of that convnet.
        factor: of the gradient of the second convolution; 1 for a healthy run.
    """
    model = convnet().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-300
    images, labels = digit_images(256)
    images = images.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    with nl.Ledger(laws, model, optimizer, every=1) as ledger:
        _train_with_a_fault(model, optimizer, images, labels, factor, since, steps)
    return ledger


def _train_with_a_fault(model, optimizer, images, labels, factor: float, since: int, steps: int) -> None:
    """On batches of 32; from the step ``since`` on the gradient of the second convolution is multiplied."""
    generator = torch.Generator().manual_seed(0)
    faulty = model.get_parameter("3.weight")
    for step in range(steps):
        batch = torch.randint(256, (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        if step >= since:
            faulty.grad *= factor
        optimizer.step()


def monitored_run(*, factor: float = 1.01, since: int = 80, steps: int = 140) -> nl.Monitor:
    """The convnet of :func:`convnet` under AdamW with one group, watched; from a step on one gradient is wrong."""
    model = convnet()
    images, labels = digit_images(256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    logging.getLogger("nlcompanion.monitor").addHandler(logging.NullHandler())  # alerts are read from the monitor
    monitor = nl.Monitor(model, optimizer)
    _train_with_a_fault(model, optimizer, images, labels, factor, since, steps)
    return monitor
