"""What surrounds a forward pass in float64: casts and eps on the way, the random state before and after."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nlcompanion.laws.sources import ElementwiseCall, noticed, source_of

LOW = (torch.float32, torch.float16, torch.bfloat16)
TINY = 1e-30  # what an eps is set to
_NORMS = {"layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"}
_CASTS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}


class Activation:
    """One call of an elementwise function in a forward pass; ``delta`` is the gradient at its output, once there."""

    def __init__(self, module: str, call: ElementwiseCall):
        self.module, self.name, self.function, self.z = module, call.name, call.function, call.z
        self.delta: Tensor | None = None
        call.out.register_hook(self._keep)  # of this very output, also where later something is written over it

    def _keep(self, delta: Tensor) -> None:
        self.delta = delta.detach()

    def source(self) -> Tensor:
        """``delta (z s'(z) - s(z))``, elementwise; zero where nothing depends on the output."""
        if self.delta is None:
            return torch.zeros_like(self.z)
        return source_of(self.function, self.z, self.delta)


class InDouble(TorchFunctionMode):
    """Casts to lower precision lead to float64; normalisations called as functions lose their eps."""

    def __init__(self, exact: bool, record: list[Activation] | None, path: list[str]):
        super().__init__()
        self.exact, self.record, self.path = exact, record, path

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func in _CASTS:
            return torch.Tensor.double(args[0])
        args = tuple(torch.float64 if isinstance(a, torch.dtype) and a in LOW else a for a in args)
        if kwargs.get("dtype") in LOW:
            kwargs["dtype"] = torch.float64
        if self.exact and name in _NORMS:
            args, kwargs = _without_eps(func, args, kwargs)
        if self.record is None or not self.path:
            return func(*args, **kwargs)
        out, call = noticed(func, args, kwargs)
        if call is not None:
            self.record.append(Activation(self.path[-1], call))
        return out


def _without_eps(func, args, kwargs):
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except (TypeError, ValueError):
        if kwargs.get("eps") is not None:
            kwargs["eps"] = TINY
        elif getattr(func, "__name__", "") == "layer_norm" and len(args) >= 5:
            args = (*args[:4], TINY, *args[5:])
        return args, kwargs
    bound.apply_defaults()
    if "eps" in bound.arguments:
        bound.arguments["eps"] = TINY
    return bound.args, bound.kwargs


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, the default precision and the gradient's mode are afterwards what they were."""
    python, numpy_state, default = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(deterministic)
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002


def seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
