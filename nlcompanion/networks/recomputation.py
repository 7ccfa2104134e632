"""Activation checkpoints as plain calls: what is recomputed under other weights would give another gradient."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from torch.utils import checkpoint as checkpoints

# what torch.utils.checkpoint.checkpoint looks up at each call: from torch 2.14 on the first, before it the second
_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
_GENERATOR = next((name for name in _GENERATORS if hasattr(checkpoints, name)), "")


class PlainCheckpoints:
    """A context in which ``torch.utils.checkpoint`` keeps activations instead of computing them anew.

    A loss of one flat vector lends its values to the model for the forward pass alone. A checkpoint would run its part
    of the model again in the backward pass, under the model's own weights. The value of a loss is the same with and
    without checkpoints; only memory differs.

    Other threads go on checkpointing, and the functions of torch are put back by the last one out. Where a version of
    torch has other functions nothing is changed, and the check of the gradient finds a model that recomputes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._here = threading.local()
        self._original: tuple[Any, Any] | None = None
        self._ours: tuple[Any, Any] | None = None  # made once: a class costs more than a small gradient's call

    def __enter__(self) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._install()

    def __exit__(self, *exception: object) -> None:
        self._here.depth -= 1
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._put_back()

    def _install(self) -> None:
        without, reentrant = getattr(checkpoints, _GENERATOR, None), checkpoints.CheckpointFunction
        if without is None:
            return
        if self._original != (without, reentrant) or self._ours is None:
            self._original = (without, reentrant)
            self._ours = (self._generator(without), self._function(reentrant))
        setattr(checkpoints, _GENERATOR, self._ours[0])
        checkpoints.CheckpointFunction = self._ours[1]  # type: ignore[misc,assignment]

    def _put_back(self) -> None:
        if self._original is not None:
            setattr(checkpoints, _GENERATOR, self._original[0])
            checkpoints.CheckpointFunction = self._original[1]  # type: ignore[misc]

    def _plain(self) -> bool:
        return getattr(self._here, "depth", 0) > 0

    def _generator(self, original: Callable[..., Any]) -> Callable[..., Generator[None, None, None]]:
        def generate(*args: Any, **kwargs: Any) -> Generator[None, None, None]:
            if self._plain():
                yield
            else:
                yield from original(*args, **kwargs)

        return generate

    def _function(self, original: Any) -> Any:
        class Chosen:
            @staticmethod
            def apply(run: Callable[..., Any], preserve: bool, *args: Any) -> Any:
                return run(*args) if self._plain() else original.apply(run, preserve, *args)

        return Chosen


plain_checkpoints = PlainCheckpoints()
