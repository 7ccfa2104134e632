"""Sums on their way from the device to the CPU, without a step that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 8  # samples that other devices than CPU and CUDA keep before they are fetched together


@dataclass(frozen=True)
class _UnderWay:
    values: Tensor | np.ndarray
    done: Any  # an event of CUDA, or None
    about: Any


class Transfers:
    """A queue: what is put in comes out in order, once it has arrived.

    On a CPU it has arrived at once. On CUDA it is copied in the background, and comes out at a later call. On other
    devices some are kept and fetched together.
    """

    def __init__(self) -> None:
        self._queue: deque[_UnderWay] = deque()

    def put(self, values: Tensor | np.ndarray, about: Any) -> None:
        done = None
        if isinstance(values, Tensor) and values.device.type == "cuda":
            room = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values, done = room.copy_(values, non_blocking=True), torch.cuda.Event()
            done.record()
        self._queue.append(_UnderWay(values, done, about))

    def arrived(self, *, wait: bool = False) -> Iterator[tuple[np.ndarray, Any]]:
        """What has arrived, in order; ``wait`` for all of it."""
        while self._queue and (wait or self._is_here(self._queue[0])):
            first = self._queue.popleft()
            if first.done is not None and wait:
                first.done.synchronize()
            values = first.values
            yield values if isinstance(values, np.ndarray) else values.cpu().double().numpy(), first.about

    def _is_here(self, one: _UnderWay) -> bool:
        if one.done is not None:
            return one.done.query()
        return isinstance(one.values, np.ndarray) or one.values.device.type == "cpu" or len(self._queue) >= _AT_ONCE
