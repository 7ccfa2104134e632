"""Sums over slices of weights, gradients and a step, taken on the device around one step of the optimizers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from nlcompanion.monitoring.watch.cuts import Cut, Cuts

_EXACT = {torch.float32, torch.float64}


class Measurement:
    """The sums of one watched step. Nothing here waits for the device.

    Args:
        parameters: what is watched.
        cuts: the slices of each.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], cuts: Cuts):
        self.parameters, self.cuts = dict(parameters), cuts
        self._before: dict[str, Tensor] = {}
        self._scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._sums: dict[str, dict[str, list[Tensor]]] = {}
        self._scale: dict[str, Tensor] = {}  # that a fused optimizer will take off its gradients by itself

    @torch.no_grad()
    def begin(self, names: Collection[str], scale: Tensor | None = None) -> None:
        """Before an optimizer's step: its weights and gradients."""
        for name in names:
            p = self.parameters[name]
            weight, gradient = _plain(p), gradient_of(p)
            kept = self._before.get(name)
            if kept is None or kept.shape != weight.shape or kept.dtype != weight.dtype or kept.device != weight.device:
                kept = self._before[name] = torch.empty_like(weight)
            kept.copy_(weight)
            sums = self._sums[name] = {"ww": self._products(name, weight, weight)}
            if gradient is not None:
                sums["gg"] = self._products(name, gradient, gradient)
                sums["gw"] = self._products(name, gradient, weight)
                if scale is not None:
                    self._scale[name] = scale

    @torch.no_grad()
    def end(self, names: Collection[str]) -> None:
        """After it: its step. The copies of the weights become minus the step."""
        for name in names:
            if name not in self._sums:
                continue
            weight, back = _plain(self.parameters[name]), self._before[name]
            back.sub_(weight)
            self._sums[name]["ee"] = self._products(name, back, back, rows_only=True)
            self._sums[name]["ew"] = self._products(name, back, weight, rows_only=True)

    def step_of(self, name: str) -> Tensor:
        """The step just taken."""
        return -self._before[name]

    @torch.no_grad()
    def vector(self) -> tuple[Tensor, set[str]]:
        """All sums in the order ``ww, gg, gw`` of all cuts, then ``ee, ew`` of the rows, and who stepped.

        ``e`` is minus the step, and ``w`` in ``ew`` the weight after it.
        """
        parts: list[Tensor] = []
        device = next(iter(self.parameters.values())).device
        for kind in ("ww", "gg", "gw", "ee", "ew"):
            for name, cuts in self.cuts.of.items():
                wanted = cuts if kind in ("ww", "gg", "gw") else cuts[:1]
                found = self._sums.get(name, {}).get(kind)
                if found is None:
                    parts += [torch.zeros(cut.count, device=device) for cut in wanted]
                    continue
                if kind in ("gg", "gw") and name in self._scale:
                    scale = self._scale[name] ** (2 if kind == "gg" else 1)
                    found = [x / scale for x in found]
                parts += [x.reshape(-1) for x in found] if x_on(found, device) else [x.to(device) for x in found]
        stepped = {name for name, sums in self._sums.items() if "ee" in sums}
        self._sums, self._scale = {}, {}
        return torch.cat([x.double() if device.type != "mps" else x.float() for x in parts]), stepped

    def _products(self, name: str, x: Tensor, y: Tensor, *, rows_only: bool = False) -> list[Tensor]:
        """Sums of ``x * y`` over the slices of each cut."""
        cuts = self.cuts.of[name]
        cuts = cuts[:1] if rows_only else cuts
        if len(cuts) == 1 and not cuts[0].keep and x.is_contiguous() and y.is_contiguous():
            return [torch.dot(x.view(-1), y.view(-1))]
        if len(cuts) == 1 and x is y:
            return [torch.linalg.vector_norm(x, dim=cuts[0].rest).square()]
        product = torch.mul(x, y, out=self._room(x))
        return [_summed(product, cut) for cut in cuts]

    def _room(self, x: Tensor) -> Tensor:
        """Room for a product, kept from step to step: to ask for it anew costs more than the product itself."""
        key = x.dtype, x.device
        if key not in self._scratch or self._scratch[key].numel() < x.numel():
            self._scratch[key] = torch.empty(x.numel(), dtype=x.dtype, device=x.device)
        return self._scratch[key][: x.numel()].view(x.shape)


def _summed(product: Tensor, cut: Cut) -> Tensor:
    if product.shape != cut.view:
        product = product.view(cut.view)
    rest = cut.rest
    return product.sum(rest) if rest else product.clone()


def x_on(found: list[Tensor], device: torch.device) -> bool:
    return all(x.device == device for x in found)


def _plain(x: Tensor) -> Tensor:
    """A tensor in which sums can be taken: real, and in single precision at least."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x)
    return x if x.dtype in _EXACT else x.float()


def gradient_of(p: nn.Parameter) -> Tensor | None:
    """The gradient that the step is made with, dense."""
    if p.grad is None:
        return None
    gradient = p.grad.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return _plain(gradient)
