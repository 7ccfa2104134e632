"""Precision and devices: how a run computes, without a trace in the process that runs it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def in_precision(precision: str) -> Iterator[None]:
    """TensorFloat-32 in products and convolutions where it is asked for, and nowhere else: cuDNN's default is on.

    torch 2.9 has a second set of switches. Once they are used, the first refuses even to be read.
    """
    cudnn, wanted = torch.backends.cudnn, "tf32" if precision == "tf32" else "ieee"
    second = _switches()
    before, benchmark = [switch.fp32_precision for switch in second], cudnn.benchmark
    first = _first_set()
    try:
        cudnn.benchmark = True
        if first is None:
            for switch in second:
                switch.fp32_precision = wanted
        else:
            torch.set_float32_matmul_precision("high" if wanted == "tf32" else "highest")
            cudnn.allow_tf32 = wanted == "tf32"
        yield
    finally:
        if first is not None:
            torch.set_float32_matmul_precision(first[0])
            cudnn.allow_tf32 = first[1]
        for switch, value in zip(second, before, strict=True):
            switch.fp32_precision = value
        cudnn.benchmark = benchmark


def _first_set() -> tuple[str, bool] | None:
    """The older switches, for products and for convolutions; None where they refuse to be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API")  # torch 2.9 says so to all who read them
        try:
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        except RuntimeError:
            return None


def _switches() -> list[Any]:
    """torch 2.9's, of each kind of operation; none before."""
    backends = torch.backends
    places = [(backends.cuda, "matmul"), (backends.cudnn, "conv"), (backends.cudnn, "rnn")]
    places += [(backends.mkldnn, "matmul"), (backends.mkldnn, "conv")]
    found = [getattr(backend, operation, None) for backend, operation in places]
    return [switch for switch in found if hasattr(switch, "fp32_precision")]


@contextmanager
def apart(device: torch.device) -> Iterator[None]:
    """Whatever the caller has switched off or on around us: gradients, and no autocast but our own."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield


def on_device(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def find_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise RuntimeError(
                f'device is "{name}" and this machine shows torch {torch.__version__} {count} GPUs; take device="cpu", '
                "or install a CUDA build of torch where there is a GPU"
            )
    return device
