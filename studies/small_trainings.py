"""Two small trainings with normalised weights: a convnet on digits, a transformer on the text of a licence.

Both are drawn with replacement, step by step, from a seed; the rate may follow a schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nlcompanion as nl

TEXT = Path(__file__).resolve().parents[1] / "LICENSE-TEXT"  # Creative Commons' own words, 19,000 characters
CONTEXT = 32

Batches = Iterator[tuple[Tensor, Tensor]]


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al., arXiv 2302.06675): the sign of an average of momentum and gradient, with decoupled decay."""

    def __init__(self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.lerp(p.grad, average, first).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                average.lerp_(p.grad, 1 - second)


class Block(nn.Module):
    """Causal attention and a ReLU layer, each behind an RMSNorm, without biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        query, key, value = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        size = query.shape[-1:]
        query, key = F.rms_norm(query, size), F.rms_norm(key, size)  # so that their weights are scale-invariant
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.second(x))))


class Writer(nn.Module):
    """A transformer that guesses the next character."""

    def __init__(self, characters: int, width: int = 32, heads: int = 2, blocks: int = 2):
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(blocks)])
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, characters, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


@cache
def characters() -> Tensor:
    """The text as numbers, one for each character."""
    text = TEXT.read_text(encoding="utf-8")
    number = {letter: k for k, letter in enumerate(sorted(set(text)))}
    return torch.tensor([number[letter] for letter in text])


def writer(seed: int = 0) -> Writer:
    torch.manual_seed(seed)
    return Writer(int(characters().max()) + 1)


def text_batches(size: int = 16, seed: int = 0) -> Batches:
    """Pieces of the text, and the same moved by one character."""
    generator, text = torch.Generator().manual_seed(seed), characters()
    while True:
        places = torch.randint(len(text) - CONTEXT - 1, (size, 1), generator=generator) + torch.arange(CONTEXT + 1)
        pieces = text[places]
        yield pieces[:, :-1], pieces[:, 1:]


def convnet(seed: int = 0) -> nn.Module:
    return nl.networks.conv_bn((8, 16, 16), seed=seed)


def digit_batches(size: int = 64, seed: int = 0, *, noise: float = 0.0, subset: int | None = None) -> Batches:
    """Digits drawn with replacement; a share ``noise`` of the labels is drawn anew each time."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = nl.digits("train").tensors(torch.float32)
    images, labels = images.reshape(-1, 1, 8, 8)[:subset], labels[:subset]
    while True:
        rows = torch.randint(len(labels), (size,), generator=generator)
        guessed = torch.randint(10, (size,), generator=generator)
        wrong = torch.rand(size, generator=generator) < noise
        yield images[rows], torch.where(wrong, guessed, labels[rows])
