"""Attention, a norm and optimisers by hand, each with a switch for one fault that a careful person has made."""

from __future__ import annotations

import torch
from torch import Tensor


class Attention(torch.autograd.Function):
    """Causal or full attention with grouped queries and a backward pass of its own."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, fault: str) -> Tensor:
        repeat = q.shape[1] // k.shape[1]
        keys, values = (t.repeat_interleave(repeat, 1) for t in (k, v))
        logits = q @ keys.mT * q.shape[-1] ** -0.5
        p = logits.softmax(-1)
        ctx.save_for_backward(q, keys, values, p)
        ctx.fault, ctx.repeat = fault, repeat
        return p @ values

    @staticmethod
    def backward(ctx, do: Tensor):
        q, k, v, p = ctx.saved_tensors
        scale, fault = q.shape[-1] ** -0.5, ctx.fault
        dv = p.mT @ do
        dp = do @ v.mT
        mean = (dp * p).sum(-1, keepdim=True)
        if fault == "no row mean":  # dS = P dP
            mean = 0 * mean
        ds = p * (dp - mean) * scale
        dq, dk = ds @ k, ds.mT @ q
        if fault == "dq without scale":
            dq = dq / scale
        if fault == "stale dv":  # P of other logits, as when real activations overflow a block's maximum
            dv = p.clamp_max(0.1).mT @ do
        if fault == "one head":
            dq[:, 0] *= 1.01
        group = lambda t: t.unflatten(1, (-1, ctx.repeat)).sum(2)  # noqa: E731
        if fault == "groups not summed":
            group = lambda t: t.unflatten(1, (-1, ctx.repeat))[:, :, 0]  # noqa: E731
        dk, dv = group(dk), group(dv)
        if fault == "global factor":
            dq, dk = 2 * dq, 2 * dk
        return dq, dk, dv, None


class Norm(torch.autograd.Function):
    """RMSNorm or LayerNorm over the last axis, with a gain."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, centered: bool, fault: str) -> Tensor:
        offset = x - x.mean(-1, keepdim=True) if centered else x
        rate = (offset.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        ctx.save_for_backward(offset * rate, gain, rate)
        ctx.centered, ctx.fault = centered, fault
        return offset * rate * gain

    @staticmethod
    def backward(ctx, dy: Tensor):
        z, gain, rate = ctx.saved_tensors
        g = dy * gain
        axis = 0 if ctx.fault == "wrong axis" else -1
        dx = g - z * (g * z).mean(axis, keepdim=True)
        if ctx.centered and ctx.fault != "mean forgotten":
            dx = dx - g.mean(axis, keepdim=True)
        if ctx.fault == "rate forgotten of projection":
            dx = g - z * (g * z).mean(-1, keepdim=True) / rate
        dgain = (dy * z).sum(tuple(range(dy.ndim - 1)))
        if ctx.fault == "gain of last sample":
            dgain = (dy * z).flatten(0, -2)[-1]
        return dx * rate, dgain, None, None


class Linear(torch.autograd.Function):
    """``x W^T + b``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, fault: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.fault = fault
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight = ctx.saved_tensors
        dw, db = dy.T @ x, dy.sum(0)
        if ctx.fault == "half the batch":
            dw = dy[: len(dy) // 2].T @ x[: len(x) // 2]
        if ctx.fault == "mean for sum":
            db = dy.mean(0)
        if ctx.fault == "one column":
            dw[:, 0] = 0
        return dy @ weight, dw, db, None


class ByHand(torch.optim.Optimizer):
    """Adam and Lion, number by number, with one fault."""

    def __init__(self, params, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, *, rule="adamw", fault=""):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.rule, self.fault = rule, fault

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None or self.fault == "none is zero":
                    self._one(p, group)

    def _one(self, p: Tensor, group: dict) -> None:
        lr, decay, (b1, b2) = group["lr"], group["weight_decay"], group["betas"]
        g = torch.zeros_like(p) if p.grad is None else p.grad
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        state["step"] += 1
        if self.fault == "L2 for decay":
            g = g + decay * p
        elif self.fault != "decay after the update":
            p.mul_(1 - (decay if self.fault == "decay without lr" else lr * decay))
        if self.rule == "lion":
            update = (b1 * state["m"] + (1 - b1) * g).sign()
            state["m"].mul_(b2).add_(g, alpha=1 - b2)
        else:
            state["m"].mul_(b1).add_(g, alpha=1 - b1)
            state["v"].mul_(b2).addcmul_(g, g, value=1 - b2)
            power = state["step"]
            first = 1 if self.fault == "no bias correction" else 1 - b1**power
            update = state["m"] / first / ((state["v"] / (1 - b2**power)).sqrt() + group["eps"])
        if self.fault == "45 times too small":
            update = update / 45
        if self.fault == "absolute value":
            update = update.abs()
        if self.fault == "shared state" and p.ndim == 2:
            update = update * update.shape[0] ** 0.5
        p.sub_(update, alpha=max(lr, 1e-4) if self.fault == "floor of lr" else lr)
        if self.fault == "decay after the update":
            p.mul_(1 - lr * decay)

    def state_dict(self):
        saved = super().state_dict()
        if self.fault == "step not saved":
            for state in saved["state"].values():
                state["step"] = 0
        return saved


class Shampoo(torch.optim.Optimizer):
    """``L^(-1/4) G R^(-1/4)`` with sums of squares on both sides, of matrices."""

    def __init__(self, params, lr=0.01, weight_decay=0.0, *, fault=""):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.fault = fault

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["left"], state["right"] = (1e-30 * torch.eye(n, dtype=p.dtype) for n in p.shape)
                state["left"] += p.grad @ p.grad.T
                state["right"] += p.grad.T @ p.grad
                left = state["left"].diag().diag() if self.fault == "diagonal" else state["left"]
                update = self._root(left) @ p.grad @ self._root(state["right"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])

    @staticmethod
    def _root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > 1e-10 * values.max()
        return (vectors * torch.where(kept, values.abs() ** -0.25, 0.0)) @ vectors.T


class Soap(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's two sums of squares, of matrices (arXiv:2409.11321), renewed at each step.

    The first gradient makes the basis only, as in the authors' code: in its own basis it is diagonal, and Adam would
    divide the rounding beside the diagonal by its own size.
    """

    def __init__(self, params, lr=0.01, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0, *, fault=""):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.fault = fault

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, p.grad, self.state[p], group)

    def _one(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        b1, b2 = group["betas"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            state["left"], state["right"] = (torch.zeros(n, n, dtype=p.dtype) for n in p.shape)
        state["step"] += 1
        for side, square in (("left", g @ g.T), ("right", g.T @ g)):
            state[side].mul_(b2).add_(square, alpha=1 - b2)
        if state["step"] == 1:
            return
        left, right = (torch.linalg.eigh(state[side])[1] for side in ("left", "right"))
        if self.fault == "one side":
            right = torch.eye(len(right), dtype=p.dtype)
        state["m"].mul_(b1).add_(g, alpha=1 - b1)
        turned = left.T @ g @ right
        state["v"].mul_(b2).addcmul_(turned, turned, value=1 - b2)
        n = state["step"] - 1
        first, second = state["m"] / (1 - b1**n), state["v"] / (1 - b2**n)
        update = left @ ((left.T @ first @ right) / (second.sqrt() + group["eps"])) @ right.T
        p.sub_(update, alpha=group["lr"])


class FaultyAdafactor(torch.optim.Adafactor):
    """Decay as L2, or at a rate of its own."""

    def __init__(self, params, *, fault="", **settings):
        super().__init__(params, **settings)
        self.fault = fault

    @torch.no_grad()
    def step(self):
        kept = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and self.fault == "L2 for decay":
                    p.grad = p.grad + group["weight_decay"] * p
                if p.grad is not None and self.fault == "decay without lr":
                    p.mul_(1 - group["weight_decay"])
            group["weight_decay"] = 0.0 if self.fault else group["weight_decay"]
        super().step()
        for group, decay in zip(self.param_groups, kept, strict=True):
            group["weight_decay"] = decay


class FaultyAveraging(torch.optim.ASGD):
    """Shrinks the weights by ``lambd`` once more, or takes its decay for a decoupled one."""

    def __init__(self, params, *, fault="", **settings):
        super().__init__(params, **settings)
        self.fault = fault

    @torch.no_grad()
    def step(self):
        kept = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, kept, strict=True):
            for p in group["params"]:
                if p.grad is not None and self.fault == "lambd twice":
                    p.mul_(1 - group["lr"] * group["lambd"])
                if p.grad is not None and self.fault == "decoupled":
                    p.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0 if self.fault == "decoupled" else decay
        super().step()
        for group, decay in zip(self.param_groups, kept, strict=True):
            group["weight_decay"] = decay
