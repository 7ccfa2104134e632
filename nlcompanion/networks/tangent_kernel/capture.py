"""From a block of samples to the gradients of its outputs, parameter by parameter, held against backpropagation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from nlcompanion.networks.flat_loss import FlatLoss, outputs_of
from nlcompanion.networks.tangent_kernel.gradients import Gradients, together
from nlcompanion.networks.tangent_kernel.layers import Handler, Seen, handler_of


class Unfaithful(Exception):
    """Parameters whose gradients are not what their layers say: used elsewhere too, or samples in another order."""

    def __init__(self, names: Collection[str]):
        super().__init__(", ".join(names))
        self.names = frozenset(names)


@dataclass(frozen=True)
class Call:
    """One call of a known layer: enough to tell the gradients by its parameters."""

    seen: Seen
    handler: Handler
    output: GradientEdge  # where the slopes are taken; a later change of the output in place does not move it
    shape: torch.Size


class Calls:
    """Notes every call of a known layer while it is open."""

    def __init__(self, model: nn.Module, names: dict[nn.Module, dict[str, str]]):
        self.model, self.names = model, names
        self.made: list[Call] = []

    def __enter__(self) -> list[Call]:
        self.hooks = [layer.register_forward_hook(self._note, with_kwargs=True) for layer in self.names]
        return self.made

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:  # backpropagation must not run into them: checkpoints call layers again
            hook.remove()

    def _note(self, layer: nn.Module, given: tuple, named: dict[str, Any], output: Any) -> None:
        x = given[0] if given else named.get("input")
        if isinstance(x, Tensor) and isinstance(output, Tensor) and output.requires_grad:
            handler = handler_of(layer)
            assert handler is not None  # of names, all layers have one
            weights = {key: getattr(layer, key).detach() for key in self.names[layer]}
            seen = Seen(layer, x.detach(), weights)
            self.made.append(Call(seen, handler, get_gradient_edge(output), output.shape))


class Factors:
    """Gradients of the outputs of a block, by every parameter in ``names`` that known layers account for.

    Args:
        f: the network; nothing of its loss is used.
        q: the point.
        picked: which outputs.
        names: the parameters to account for.
    """

    def __init__(self, f: FlatLoss, q: Tensor, picked: Sequence[int], names: Collection[str]):
        self.f, self.q, self.picked, self.names = f, q, list(picked), set(names)
        own = {id(p): name for name, p in f.model.named_parameters()}
        self.layers: dict[nn.Module, dict[str, str]] = {}
        for layer in f.model.modules():
            held = {key: own[id(p)] for key, p in layer.named_parameters(recurse=False) if own[id(p)] in self.names}
            if held and handler_of(layer) is not None:
                self.layers[layer] = held

    def __call__(self, x: Tensor, *, check: bool) -> dict[str, Gradients]:
        """By name, those that have any.

        Raises:
            Unfaithful: with ``check``, names whose gradients differ from backpropagation's in a random combination of
                all samples and outputs.
        """
        with torch.enable_grad():
            q = self.q.detach().requires_grad_()
            with Calls(self.f.model, self.layers) as calls:
                outputs = outputs_of(self.f, q, x).reshape(len(x), -1)[:, self.picked]
            found = self._found(outputs, calls)
            if check:
                self._check(q, outputs, found)
        return found

    def _found(self, outputs: Tensor, calls: list[Call]) -> dict[str, Gradients]:
        slopes = self._slopes(outputs, calls)
        uses: dict[str, list[Gradients]] = {}
        for call in calls:
            slope = slopes.pop(0)
            if slope is None or call.shape.numel() == 0:
                continue
            try:
                factors = call.handler(call.seen, slope, len(outputs))
            except RuntimeError:  # its samples do not come first: what is missing shows in the check
                continue
            for key, name in self.layers[call.seen.layer].items():
                if key in factors:
                    uses.setdefault(name, []).append(factors[key])
        return {name: together(some) for name, some in uses.items()}

    @staticmethod
    def _slopes(outputs: Tensor, calls: list[Call]) -> list[Tensor | None]:
        """Of each call the slopes of all outputs, ``(C, *shape)``; None where no output depends on it."""
        if not calls or not outputs.requires_grad:
            return [None] * len(calls)
        edges, C = [call.output for call in calls], outputs.shape[1]
        slopes: list[Tensor | None] = [None] * len(calls)
        for c in range(C):
            each = torch.autograd.grad(outputs[:, c].sum(), edges, retain_graph=True, allow_unused=True)
            for k, slope in enumerate(each):
                if slope is None:
                    continue
                whole = slopes[k]
                if whole is None:
                    whole = slopes[k] = slope.new_zeros(C, *slope.shape)
                whole[c] = slope
        return slopes

    def _check(self, q: Tensor, outputs: Tensor, found: dict[str, Gradients]) -> None:
        shares = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        shares = shares.to(outputs.dtype)
        truth = torch.zeros_like(q)
        if outputs.requires_grad:
            (slope,) = torch.autograd.grad((shares * outputs).sum(), q, allow_unused=True)
            truth = truth if slope is None else slope
        apart, bound = [], 1e3 * torch.finfo(q.dtype).eps ** 0.75
        for name in self.names:
            want = truth[self.f.slices[name]]
            if name not in found:
                if want.any():
                    apart.append(name)
                continue
            sizes = found[name].magnitude() / len(want) ** 0.5
            error = (found[name].combined(shares) - want).norm()
            if not error <= bound * torch.maximum(want.norm(), 1e-3 * sizes):
                apart.append(name)
        if apart:
            raise Unfaithful(apart)
