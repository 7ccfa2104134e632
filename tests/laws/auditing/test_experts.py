"""Experts that a draw sends no token to: a turn is asked for until every expert has answered."""

import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion import audit
from nlcompanion.laws.auditing import mixing

WIDTH = 16


class Mixture(nn.Module):
    """A residual stream that one of four experts writes to, for each token; any rotation of it is a symmetry."""

    def __init__(self):
        super().__init__()
        self.embedding, self.router = nn.Linear(5, WIDTH, bias=False), nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 3, bias=False) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(3, WIDTH, bias=False) for _ in range(4))
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.head = nn.Linear(WIDTH, 3, bias=False)

    def forward(self, x):
        stream = self.embedding(x)
        weight, chosen = self.router(self.norm(stream)).softmax(-1).max(-1)
        written = torch.zeros_like(stream)
        for k, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            of_expert = weight[:, None] * down(torch.tanh(up(self.norm(stream))))
            written = written + torch.where((chosen == k)[:, None], of_expert, 0.0)
        return self.head(self.norm(stream + written))


def test_the_rotation_of_a_stream_is_found_though_no_draw_reaches_all_experts():
    torch.manual_seed(0)
    model = Mixture()
    found = audit(model, torch.randn(3, 5), torch.randn(3, 3), F.mse_loss)
    turned = [line for line in found.lines if line.kind == "rotation"]
    assert [(line.size, len(line.parameters)) for line in turned] == [(WIDTH * (WIDTH - 1) // 2, 11)]


def test_an_expert_that_no_draw_reaches_is_a_limit(monkeypatch):
    monkeypatch.setattr(mixing, "_TURNS", range(810_001, 810_004))
    torch.manual_seed(0)
    found = audit(Mixture(), torch.randn(1, 5), torch.randn(1, 3), F.mse_loss)
    assert any("reached by no gradient in 3 draws" in limit for limit in found.limits)
    assert not any(line.kind == "rotation" for line in found.lines)
