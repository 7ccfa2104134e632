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

    def end_by_buffers(self, rates: list[float], buffers: list[Tensor]) -> None:
        """All sums after a step that was the buffers times their rates, without :meth:`begin`."""
        sums = self._sums = np.zeros_like(self._sums)
        for one, at, rate, buffer in zip(self._tensors, self._places, rates, buffers, strict=True):
            one.by_buffer(buffer, rate, *sums[:, at])

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
        self._buffer: Tensor | None = None
        self._back = self._weight  # the buffer's rows

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

    def by_buffer(
        self, buffer: Tensor, rate: float, ww: np.ndarray, gg: np.ndarray, ee: np.ndarray, ew: np.ndarray
    ) -> None:
        """A step of minus the buffer times a rate; the weights are those after it."""
        weight = self._look()
        gradient = gradient_rows(self.parameter, self.rows)
        if gradient is None:  # it was left alone
            products(weight, weight, ww)
            return
        if buffer is not self._buffer:
            self._buffer, self._back = buffer, rows_of(buffer, self.rows)
        back = self._back
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


class BufferSteps:
    """Whether an optimizer's momentum buffers are its steps, up to the rate, and these buffers.

    So it is for SGD with momentum and without Nesterov's, decay and dampening included, by PyTorch's own step.
    """

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]):
        self._optimizer, self._parameters = optimizer, list(parameters.values())
        self._is_sgd = type(optimizer) is SGD
        self._groups: list[dict] = []  # of each tensor
        self._is_known = False

    def look(self) -> None:
        """Find the groups of the tensors, and whether all have buffers; after a step that was seen itself."""
        of = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        states = self._optimizer.state
        self._is_known = self._is_sgd and all(
            id(p) in of
            and p in states
            and isinstance(buffer := states[p].get("momentum_buffer"), Tensor)
            and is_plain(buffer)
            for p in self._parameters
        )
        self._groups = [of[id(p)] for p in self._parameters] if self._is_known else []

    def rates(self) -> list[float] | None:
        """The rate of each tensor; None where the next step may be another than the buffer times it."""
        if not self._is_known or getattr(self._optimizer, "grad_scale", None) is not None:
            return None
        for group in self._optimizer.param_groups:
            if not group["momentum"] or group["nesterov"]:
                return None
        return [float(group["lr"]) for group in self._groups]

    def buffers(self) -> list[Tensor]:
        states = self._optimizer.state
        return [states[p]["momentum_buffer"] for p in self._parameters]


def gradient_rows(p: nn.Parameter, rows: int) -> np.ndarray | None:
    if p.grad is None:
        return None
    gradient = p.grad
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return rows_of(gradient, rows)


def rows_of(x: Tensor, rows: int) -> np.ndarray:
    x = x.detach() if x.requires_grad else x
    return x.contiguous().numpy().reshape(rows, -1)


def products(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """Sums of ``x * y`` over rows."""
    if hasattr(np, "vecdot"):
        np.vecdot(x, y, out=out)
    else:  # NumPy 1
        np.einsum("ij,ij->i", x, y, out=out, casting="same_kind")
