"""What rounding is to be expected of a run, from its dtypes and from what its gradients carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# of a residual, relative to the squares of the weights; a gradient's component is judged alike
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
HALF = {torch.float16: 13, torch.bfloat16: 16}  # bits that a float32 leaves at 0 when it was made from one of these
_UNITS = 8.0  # of a half-precision number's last place, that a gradient's component along a symmetry may have
_SAMPLE, _LEAST, _EVERY = 256, 8, 64


class GradientPrecision:
    """Whether the gradients are numbers of half precision, whatever made them so (autocast, a compressed exchange).

    A gradient in float32 that was computed in half precision has zeros in its last bits. A few entries are looked at
    in the backward pass, before anything clips or adds them up, of the first pass and then of one in 64.

    Attributes:
        handles: of the hooks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.handles: list[RemovableHandle] = []
        self._found: dict[str, dict[torch.dtype, Tensor]] = {}
        self._dtype: torch.dtype | None = None
        for name, p in parameters.items():
            if p.dtype == torch.float32 and p.requires_grad:
                self.handles.append(p.register_hook(self._hook(name)))

    def decide(self) -> None:
        """From now on :attr:`dtype` is what was found so far."""
        self._dtype = self.latest()

    def assume(self, dtype: torch.dtype | None) -> None:
        """From now on :attr:`dtype` is what was found in an earlier part of the run."""
        self._dtype = dtype

    @property
    def dtype(self) -> torch.dtype | None:
        """The half precision of the gradients when the run began; None for full precision."""
        return self._dtype

    @property
    def tolerance(self) -> float | None:
        """For residuals relative to the step, made from the dtype; None for full precision."""
        return None if self._dtype is None else _UNITS * torch.finfo(self._dtype).eps

    def latest(self) -> torch.dtype | None:
        """The half precision of the gradients looked at last; the coarsest of several."""
        for dtype in (torch.bfloat16, torch.float16):
            if any(bool(found[dtype]) for found in self._found.values()):
                return dtype
        return None

    def look_at(self, name: str, gradient: Tensor | None) -> None:
        """Look at a gradient now."""
        if gradient is not None and gradient.dtype == torch.float32 and gradient.layout == torch.strided:
            self._look(name, gradient.detach().reshape(-1)[:_SAMPLE])

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        calls = 0

        def look(gradient: Tensor) -> None:
            nonlocal calls
            calls += 1
            if calls % _EVERY == 1:
                self.look_at(name, gradient)

        return look

    def _look(self, name: str, sample: Tensor) -> None:
        enough = (sample != 0).sum() >= _LEAST
        bits = sample.contiguous().view(torch.int32)
        self._found[name] = {dtype: enough & ((bits & (2**n - 1)) == 0).all() for dtype, n in HALF.items()}
