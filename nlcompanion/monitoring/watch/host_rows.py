"""Squares of rows on a CPU: NumPy passes over each tensor as few times as can be, and its calls begin sooner.

What counts is how often memory is read. A step is the difference of the weights after it and a copy from before; where
an optimizer's own buffer tells the step, as SGD's with momentum does, there is no copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def is_plain(p: Tensor) -> bool:
    """Whether NumPy can look at a tensor's memory row by row."""
    return p.device.type == "cpu" and p.dtype in DTYPES and p.layout == torch.strided and p.is_contiguous()


class HostRows:
    """The sums over rows of tensors that lie row by row in the CPU's memory.

    Args:
        parameters: all plain.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.names = tuple(parameters)
        self._tensors = [HostTensor(name, p) for name, p in parameters.items()]
        self.counts = [one.rows for one in self._tensors]
        ends = [0, *itertools.accumulate(self.counts)]
        self._places = [slice(*span) for span in itertools.pairwise(ends)]
        self._sums = np.zeros((4, ends[-1]))  # ww, gg, ee, ew

    def begin(self, scale: float) -> None:
        """Weights and gradients, these divided by a scale."""
        self._sums = np.zeros_like(self._sums)
        ww, gg = self._sums[:2]
        for one, at in zip(self._tensors, self._places, strict=True):
            one.begin(ww[at], gg[at])
        if scale != 1:
            gg /= scale**2

    def end(self) -> None:
        """The step; the copies of the weights become minus it."""
        ee, ew = self._sums[2:]
        for one, at in zip(self._tensors, self._places, strict=True):
            one.end(ee[at], ew[at])

    def end_by_buffers(self, optimizer: Optimizer, rates: Mapping[int, float]) -> None:
        """All sums after a step that was the buffers times their rates, without :meth:`begin`.

        Args:
            optimizer: whose buffers they are.
            rates: by ``id`` of the tensors.
        """
        self._sums = np.zeros_like(self._sums)
        for one, at in zip(self._tensors, self._places, strict=True):
            p = one.parameter
            if p.grad is None:
                one.rest(self._sums[0, at])
                continue
            buffer = optimizer.state[p]["momentum_buffer"]
            one.by_buffer(buffer, rates[id(p)], self._sums[:, at])

    def take(self) -> np.ndarray:
        """``ww, gg, ee, ew``, all rows of each."""
        return self._sums.reshape(-1)

    def step_of(self, name: str) -> Tensor:
        return self._tensors[self.names.index(name)].step


class HostTensor:
    """One tensor, and a copy of it from before the step."""

    def __init__(self, name: str, p: nn.Parameter):
        self.name, self.parameter = name, p
        self.rows = p.shape[0] if p.ndim > 1 else 1
        self._shape, self._dtype = p.shape, p.dtype
        self._weight, self._address = rows_of(p, self.rows), p.data_ptr()
        self._before: np.ndarray | None = None

    def _look(self) -> np.ndarray:
        """The weights, whose storage may have been replaced."""
        p = self.parameter
        if p.data_ptr() != self._address:
            if p.shape != self._shape or p.dtype != self._dtype or not is_plain(p):
                was, now = (self._dtype, tuple(self._shape)), (p.dtype, tuple(p.shape))
                raise ValueError(
                    f"{self.name} was {was[0]} of shape {was[1]} and is {now[0]} of shape {now[1]} now, so its figures "
                    "have no meaning any more; make a new monitor after the model was converted"
                )
            self._weight, self._address = rows_of(p, self.rows), p.data_ptr()
        return self._weight

    def begin(self, ww: np.ndarray, gg: np.ndarray) -> None:
        weight = self._look()
        if self._before is None:
            self._before = np.empty_like(weight)
        np.copyto(self._before, weight)
        products(self._before, self._before, ww)
        gradient = gradient_rows(self.parameter, self.rows)
        if gradient is not None:
            products(gradient, gradient, gg)

    def end(self, ee: np.ndarray, ew: np.ndarray) -> None:
        before = self._before
        assert before is not None
        np.subtract(before, self._weight, out=before)
        products(before, before, ee)
        products(before, self._weight, ew)

    def rest(self, ww: np.ndarray) -> None:
        """A step that left it alone."""
        weight = self._look()
        products(weight, weight, ww)

    def by_buffer(self, buffer: Tensor, rate: float, sums: np.ndarray) -> None:
        """A step of minus the buffer times a rate; the weights are those after it."""
        weight, back = self._look(), rows_of(buffer, self.rows)
        gradient = gradient_rows(self.parameter, self.rows)
        assert gradient is not None
        ww, gg, ee, ew = sums
        products(back, back, ee)
        products(back, weight, ew)
        products(weight, weight, ww)
        products(gradient, gradient, gg)
        ee *= rate**2
        ew *= rate
        ww += 2 * ew + ee

    @property
    def step(self) -> Tensor:
        assert self._before is not None
        return torch.from_numpy(-self._before).view(self._shape)


def buffer_rates(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[int, float] | None:
    """The rates by which an optimizer's momentum buffers are its steps, by ``id``; None where some are not.

    So it is for SGD with momentum and without Nesterov's, decay and dampening included, by PyTorch's own step.
    """
    if type(optimizer) is not SGD or getattr(optimizer, "grad_scale", None) is not None:
        return None
    rates: dict[int, float] = {}
    for group in optimizer.param_groups:
        if not group["momentum"] or group["nesterov"]:
            return None
        rates |= dict.fromkeys(map(id, group["params"]), float(group["lr"]))
    for p in parameters.values():
        buffer = optimizer.state.get(p, {}).get("momentum_buffer") if p in optimizer.state else None
        if id(p) not in rates or buffer is None or not is_plain(buffer):
            return None
    return rates


def gradient_rows(p: nn.Parameter, rows: int) -> np.ndarray | None:
    if p.grad is None:
        return None
    gradient = p.grad.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return rows_of(gradient, rows)


def rows_of(x: Tensor, rows: int) -> np.ndarray:
    return x.detach().contiguous().numpy().reshape(rows, -1)


def products(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """Sums of ``x * y`` over rows."""
    if hasattr(np, "vecdot"):
        np.vecdot(x, y, out=out)
    else:  # NumPy 1
        np.einsum("ij,ij->i", x, y, out=out, casting="same_kind")
