"""Sums over the slices of laws, of weights and gradients before a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlcompanion.monitoring.watch.cuts import Cut, Cuts
from nlcompanion.monitoring.watch.device_rows import gradient_of, plain
from nlcompanion.monitoring.watch.host_rows import gradient_rows, is_plain, products, rows_of
from nlcompanion.monitoring.watch.row_sums import Sums


class CutSums:
    """``|w|^2``, ``|g|^2`` and ``<g, w>`` of each slice of some cuts. Nothing here waits for the device.

    Args:
        parameters: all tensors.
        cuts: of some of them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], cuts: Cuts):
        self.parameters, self.cuts = {name: parameters[name] for name in cuts.of}, cuts
        self._sums: dict[str, list[Sums]] = {}
        self._room: dict[np.dtype, np.ndarray] = {}

    @torch.no_grad()
    def measure(self, names: Collection[str], scale: Tensor | None) -> None:
        """Of those of these tensors that are cut."""
        for name in names:
            if name not in self.parameters:
                continue
            p, cuts = self.parameters[name], self.cuts.of[name]
            is_here = is_plain(p)
            squares, of_gradient, along = self._on_host(p, cuts) if is_here else _on_device(p, cuts)
            if scale is not None:
                factor: Any = float(scale) if is_here else scale
                of_gradient, along = of_gradient / factor**2, along / factor
            self._sums[name] = [squares, of_gradient, along]

    def take(self) -> list[Sums]:
        """All ``ww``, all ``gg``, all ``gw``; 0 of tensors that were not measured."""
        found: list[Sums] = []
        for kind in range(3):
            for name, cuts in self.cuts.of.items():
                nothing = np.zeros(sum(cut.count for cut in cuts))
                found.append(self._sums[name][kind] if name in self._sums else nothing)
        self._sums = {}
        return found

    def _on_host(self, p: nn.Parameter, cuts: list[Cut]) -> list[Sums]:
        rows = p.shape[0] if p.ndim else 1
        weight, gradient = rows_of(p, rows), gradient_rows(p, rows)
        sums = np.zeros((3, sum(cut.count for cut in cuts)))
        factors = (
            [(weight, weight)] if gradient is None else [(weight, weight), (gradient, gradient), (gradient, weight)]
        )
        for kind, (x, y) in enumerate(factors):
            self._fill(sums[kind], x, y, tuple(p.shape), cuts)
        return list(sums)

    def _fill(self, out: np.ndarray, x: np.ndarray, y: np.ndarray, shape: tuple[int, ...], cuts: list[Cut]) -> None:
        """The sums of ``x * y`` over the slices of all cuts, one cut after the other."""
        if len(cuts) == 1 and cuts[0] == Cut(shape, (0,)):
            products(x, y, out)
            return
        room = self._room.get(x.dtype)
        if room is None or len(room) < x.size:
            room = self._room[x.dtype] = np.empty(x.size, dtype=x.dtype)
        product = np.multiply(x, y, out=room[: x.size].reshape(x.shape))
        first = 0
        for cut in cuts:
            seen = product.reshape(cut.view)
            last = first + cut.count
            out[first:last] = (seen.sum(cut.rest) if cut.rest else seen).reshape(-1)
            first = last


def _on_device(p: nn.Parameter, cuts: list[Cut]) -> list[Sums]:
    weight, gradient = plain(p), gradient_of(p)
    squares = _sums(weight * weight, cuts)
    if gradient is None:
        nothing = torch.zeros_like(squares)
        return [squares, nothing, nothing]
    return [squares, _sums(gradient * gradient, cuts), _sums(gradient * weight, cuts)]


def _sums(product: Tensor, cuts: list[Cut]) -> Tensor:
    parts = []
    for cut in cuts:
        seen = product if product.shape == cut.view else product.reshape(cut.view)
        parts.append((seen.sum(cut.rest) if cut.rest else seen).reshape(-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
