"""Three faults that have been shipped, planted one by one, beside what is right; for the chapter on one's own model.

1. A causal attention whose backward pass forgets the mean of a row, so that logits that all move together are pulled.
2. A norm whose gain is left out of the reduction over ranks.
3. An AdamW that takes decay for L2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nlcompanion import GainIntoLinear, OptimizerLaws, check_gradients, check_optimizer
from nlcompanion.testing import Report

NO_FAULT = ""
FORGOTTEN = "the row mean forgotten"
ONE_HEAD = "one per cent too much in one head"
FACTOR = "all of dQ and dK doubled"


class CausalAttention(torch.autograd.Function):
    """Causal attention with a backward pass by hand; ``fault`` names what is wrong with it, ``""`` nothing."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, fault: str) -> Tensor:
        n = q.shape[-2]
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        logits = (q @ k.mT).float() * q.shape[-1] ** -0.5
        p = logits.masked_fill(later, -torch.inf).softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        ctx.fault = fault
        return p @ v

    @staticmethod
    def backward(ctx, dy: Tensor):
        q, k, v, p = ctx.saved_tensors
        dp = dy @ v.mT
        mean = (dp * p).sum(-1, keepdim=True)
        if ctx.fault == FORGOTTEN:
            mean = torch.zeros_like(mean)
        ds = p * (dp - mean) * q.shape[-1] ** -0.5
        dq, dk, dv = ds @ k, ds.mT @ q, p.mT @ dy
        if ctx.fault == ONE_HEAD:
            dq[:, 0] = dq[:, 0] * 1.01
        if ctx.fault == FACTOR:
            dq, dk = 2 * dq, 2 * dk
        return dq, dk, dv, None


def attention_report(fault: str, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Report:
    """The laws of the attention above, on queries, keys and values of shape ``(2, 4, 64, 16)``."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 4, 64, 16, generator=generator).to(dtype)
    return check_gradients(lambda q, k, v: CausalAttention.apply(q, k, v, fault), 2 * q, k, v, kind="attention")


def reduction_report(*, reduced: bool, ranks: int = 4, seed: int = 0) -> Report:
    """The law of a gain into a linear layer, on averages over ranks; ``reduced=False`` leaves the gain out."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    of_ranks = []
    for x in torch.randn(ranks, 32, 16):
        gradients = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
        of_ranks.append(gradients)
    for k, parameter in enumerate(model.parameters()):
        parameter.grad = torch.stack([gradients[k] for gradients in of_ranks]).mean(0)
    if not reduced:
        model[0].weight.grad = of_ranks[0][0]
    return check_gradients(model, laws=GainIntoLinear("0.weight", ("1.weight",), "0.bias"))


def decay_report(*, decoupled: bool) -> Report:
    """What decoupled decay promises, of an Adam that has it or takes it for L2."""

    def factory(parameters):
        return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, decoupled_weight_decay=decoupled)

    return check_optimizer(factory, laws=OptimizerLaws("decoupled"))
