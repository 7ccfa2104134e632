"""What rounding is to be expected of a run, from its dtypes and from what its gradients carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# of a residual, relative to the squares of the weights; a gradient's component is judged alike
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
HALF = {torch.float16: 13, torch.bfloat16: 16}  # bits that a float32 leaves at 0 when it was made from one of these
_UNITS = 8.0  # of a half-precision number's last place, that a gradient's component along a symmetry may have
_SAMPLE, _LEAST, _EVERY = 256, 8, 64
_SIZEABLE = 1e-4  # of the largest gradient; float32 rounds off less, so that what is smaller may be rounding alone


class GradientPrecision:
    """Whether the gradients are numbers of half precision, whatever made them so (autocast, a compressed exchange).

    A gradient in float32 that was computed in half precision has zeros in its last bits. A few entries are looked at
    in the backward pass, before anything clips or adds them up, of the first pass and then of one in 64.

    So has a gradient that is a difference of equal sums, as that of a bias before a normalisation is: it counts small
    multiples of the sums' last digit. It tells nothing, and is known by its size.

    Args:
        parameters: whose gradients are looked at, see :func:`telling`.

    Attributes:
        handles: of the hooks.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.handles: list[RemovableHandle] = []
        self._found: dict[str, _Digits] = {}
        self._dtype: torch.dtype | None = None
        self._names = {name for name, p in parameters.items() if p.dtype == torch.float32}
        for name, p in parameters.items():
            if name in self._names and p.requires_grad:
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
        largest = max((float(found.largest) for found in self._found.values()), default=0.0)
        sizeable = [found for found in self._found.values() if float(found.largest) >= _SIZEABLE * largest]
        for dtype in (torch.bfloat16, torch.float16):
            if any(bool(found.fits[dtype]) for found in sizeable):
                return dtype
        return None

    def look_at(self, name: str, gradient: Tensor | None) -> None:
        """Look at a gradient now, if it is one of those that are looked at."""
        if name not in self._names or gradient is None:
            return
        if gradient.dtype == torch.float32 and gradient.layout == torch.strided:
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
        fits = {dtype: enough & ((bits & (2**n - 1)) == 0).all() for dtype, n in HALF.items()}
        self._found[name] = _Digits(fits, sample.abs().max() if len(sample) else sample.new_zeros(()))


@dataclass(frozen=True)
class _Digits:
    """A sample of a gradient: of which half precisions its entries are, and how large they are at most."""

    fits: dict[torch.dtype, Tensor]
    largest: Tensor


def telling(of_laws: Mapping[str, nn.Parameter], of_model: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters whose gradients show how they were computed: matrices and filters, which products make.

    Those of the laws if there are any, else those of the model, else all of the laws.
    """
    for parameters in (of_laws, of_model):
        matrices = {name: p for name, p in parameters.items() if p.ndim > 1}
        if matrices:
            return matrices
    return dict(of_laws)
