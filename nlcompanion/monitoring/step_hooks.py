"""Hearing the steps of optimisers: wrapped ones, steps with a closure, steps that call their parent's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

from torch.optim import Optimizer


class Listener(Protocol):
    """What is told of the steps of some optimizers, each by its number."""

    def before(self, k: int) -> None:
        """Weights are as they were, and the gradients of optimizer ``k`` are there."""

    def evaluated_again(self, k: int) -> None:
        """The closure of a step was called once more, at other weights."""

    def after(self, k: int) -> None:
        """The step is done."""


def innermost(optimizer: object) -> tuple[Optimizer, bool]:
    """The optimizer whose hooks run at every step, and whether something is wrapped around it.

    Wrappers (of accelerate, Lightning, Lookahead, SWA, ...) often are optimizers that never ran
    ``Optimizer.__init__``, hold another one, and call its ``step``.

    Raises:
        TypeError: if this is no optimizer.
        ValueError: if it runs no hooks and holds no optimizer either.
    """
    given, wrapped = optimizer, False
    while not _runs_hooks(optimizer):
        inside = [x for x in getattr(optimizer, "__dict__", {}).values() if isinstance(x, Optimizer)]
        if not inside and not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, got {type(given).__name__}; for descend() pass rule="
            )
        if len({id(x) for x in inside}) != 1:
            raise ValueError(
                f"{type(given).__name__} never ran Optimizer.__init__, so its steps cannot be heard, and it holds "
                f"{len(inside)} optimizers; pass the ones inside that move the weights"
            )
        optimizer, wrapped = inside[0], True
    assert isinstance(optimizer, Optimizer)
    return optimizer, wrapped


def _runs_hooks(optimizer: object) -> bool:
    return (
        isinstance(optimizer, Optimizer)
        and "_optimizer_step_pre_hooks" in vars(optimizer)
        and getattr(type(optimizer).step, "hooked", False)
    )


def steps_as_torch_does(optimizer: Optimizer) -> bool:
    """Whether its step is one of ``torch.optim``, and not a subclass's own."""
    kind = next(kind for kind in type(optimizer).__mro__ if "step" in vars(kind))
    return kind.__module__.startswith("torch.optim")


def listen(optimizers: Iterable[Optimizer], listener: Listener) -> list:
    """Tell a listener of every step; returns the handles that end it."""
    handles = []
    for k, optimizer in enumerate(optimizers):
        hooks = _StepHooks(k, listener)
        handles += [optimizer.register_step_pre_hook(hooks.pre), optimizer.register_step_post_hook(hooks.post)]
    return handles


class _StepHooks:
    """The hooks of one optimizer. A step within its own step, as a subclass takes its parent's, is part of it."""

    def __init__(self, k: int, listener: Listener):
        self.k, self.listener = k, listener
        self.open: FrameType | None = None  # of the step that is under way
        self.told = False

    def pre(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        frame = _caller()
        if self.open is not None and _is_within(frame, self.open):
            return None
        self.open, self.told = frame, False
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(given):
            self._tell()
            return None
        closure: Callable[[], Any] = given

        def watched() -> Any:
            loss = closure()
            self._tell()
            return loss

        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def post(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if _caller() is not self.open:
            return
        self.open = None
        if self.told:  # a closure that was never called moved nothing
            self.listener.after(self.k)

    def _tell(self) -> None:
        if self.told:
            self.listener.evaluated_again(self.k)
        else:
            self.told = True
            self.listener.before(self.k)


def _caller() -> FrameType | None:
    """The call of ``step`` that runs the hook that asks."""
    here = inspect.currentframe()
    hook = here and here.f_back
    return hook and hook.f_back


def _is_within(frame: FrameType | None, outer: FrameType) -> bool:
    """Whether a call was made from within another. A step that ended in an exception has no calls within it."""
    while frame is not None:
        if frame is outer:
            return True
        frame = frame.f_back
    return False
