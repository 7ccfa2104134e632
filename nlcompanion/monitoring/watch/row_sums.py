"""Squares of rows of weights, gradients and a step, taken around one step of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nlcompanion.monitoring.watch.device_rows import DeviceRows
from nlcompanion.monitoring.watch.host_rows import BufferSteps, HostRows, is_plain

KINDS = 4  # sums of each row: ww, gg before the step, ee, ew after it; e is minus the step, w the weight after it
Sums = Tensor | np.ndarray


class RowSums:
    """The sums over rows of all tensors of one optimizer.

    Args:
        parameters: of the optimizer, by name.
        optimizer: it.

    Attributes:
        blocks: names and numbers of rows of the tensors whose sums come together, kind after kind.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer):
        plain = {name: p for name, p in parameters.items() if is_plain(p)}
        others: dict[torch.device, dict[str, nn.Parameter]] = {}
        for name, p in parameters.items():
            if name not in plain:
                others.setdefault(p.device, {})[name] = p
        self._host = HostRows(plain) if plain else None
        self._devices = [DeviceRows(of_one) for of_one in others.values()]
        self.names = tuple(parameters)
        self.blocks = [] if self._host is None else [(self._host.names, self._host.counts)]
        self.blocks += [(rows.names, rows.counts) for rows in self._devices]
        self._buffer_steps = BufferSteps(optimizer, plain)
        self._rates: list[float] | None = None  # of a step that its buffers tell
        self._parameters, self._shapes = dict(parameters), {name: p.shape for name, p in parameters.items()}
        self._has_begun = self._is_exact = False

    def begin(self, scale: Tensor | None, *, exact: bool) -> None:
        """Before the step.

        Args:
            scale: that a fused optimizer will take off its gradients by itself.
            exact: whether to see the step itself, also where the optimizer's buffers tell it.

        Raises:
            ValueError: a tensor whose shape is another than it was.
        """
        self._has_begun, self._is_exact = True, exact
        self._rates = None if exact or self._devices else self._buffer_steps.rates()
        if self._rates is not None:
            return
        if self._host is not None:
            self._host.begin(1.0 if scale is None else float(scale))
        if self._devices:
            self._check_shapes()
            with torch.no_grad():
                for rows in self._devices:
                    rows.begin(scale)

    def _check_shapes(self) -> None:
        for name, p in self._parameters.items():
            if p.shape != self._shapes[name]:
                raise ValueError(f"{name} had the shape {tuple(self._shapes[name])} and has {tuple(p.shape)} now")

    def end(self) -> None:
        """After it."""
        if not self._has_begun:
            return
        if self._host is not None and self._rates is not None:
            self._host.end_by_buffers(self._rates, self._buffer_steps.buffers())
        elif self._host is not None:
            self._host.end()
        if self._devices:
            with torch.no_grad():
                for rows in self._devices:
                    rows.end()
        if self._is_exact and not self._devices:
            self._buffer_steps.look()

    def take(self) -> list[Sums]:
        """The sums of each block; 0 of a step that was not taken."""
        if not self._has_begun:
            return [np.zeros(KINDS * sum(counts)) for _, counts in self.blocks]
        self._has_begun = False
        host = [] if self._host is None else [self._host.take()]
        return [*host, *(rows.take() for rows in self._devices)]

    def step_of(self, name: str) -> Tensor:
        """The step just taken, if it was begun exactly."""
        if self._host is not None and name in self._host.names:
            return self._host.step_of(name)
        return next(rows for rows in self._devices if name in rows.names).step_of(name)
