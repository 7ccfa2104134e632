"""Sums over those backward passes whose gradient a step is made with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Sums = dict[tuple, Tensor]


class GradientSums:
    """Numbers that are added up in backward passes, and follow what becomes of the gradient in ``witness.grad``.

    Those of a pass count once it has accumulated into ``.grad``: a pass of ``torch.autograd.grad`` never does. They
    are scaled when ``.grad`` is (unscaled, clipped by its norm) and dropped when it is emptied. While the witness is
    frozen, all passes since the last step count.

    Args:
        witness: a parameter that stands for all; its hooks are ``handles``.
    """

    def __init__(self, witness: nn.Parameter):
        self.witness = witness
        self.handles = [
            witness.register_hook(self._before_accumulation),
            witness.register_post_accumulate_grad_hook(self._accumulated),
        ]
        self._kept: Sums = {}  # of the passes that are in .grad
        self._norm: Tensor | None = None  # of .grad, when that was last looked at
        self._taken = False
        self._outer: int | None = None
        self._pass: int | None = None  # under way, or the last one
        self._pending: Sums = {}  # of that pass
        self._counts = False  # whether it has come to .grad

    def forward(self) -> None:
        """A module runs. Within a backward pass it is a checkpoint, and the pass that it starts is part of that one."""
        number = torch._C._current_graph_task_id()
        if number == -1:
            self._outer = None
        elif self._outer is None:
            self._outer = number

    def add(self, place: tuple, value: Tensor) -> None:
        """Within a backward pass."""
        self._notice_pass()
        _add(self._kept if self._counts else self._pending, place, value)

    def take(self) -> Sums:
        """The sums as the gradient is now."""
        if self.witness.requires_grad:
            self._follow_gradient(of_zeros=1.0)
        else:
            self._forget_taken()
        self._taken = True
        return dict(self._kept)

    def _notice_pass(self) -> None:
        number = torch._C._current_graph_task_id() if self._outer is None else self._outer
        if number == self._pass:
            return
        self._pass, self._pending, self._counts = number, {}, False
        if not self.witness.requires_grad:
            self._forget_taken()
            self._counts = True

    def _forget_taken(self) -> None:
        if self._taken:
            self._kept, self._taken = {}, False

    def _before_accumulation(self, _: Tensor) -> None:
        self._follow_gradient(of_zeros=0.0)

    def _accumulated(self, p: nn.Parameter) -> None:
        self._notice_pass()
        for place, value in self._pending.items():
            _add(self._kept, place, value)
        self._pending, self._counts = {}, True
        self._norm = torch.linalg.vector_norm(p.grad).double()

    def _follow_gradient(self, of_zeros: float) -> None:
        """Scale the sums as ``.grad`` was scaled since the last look, by ``of_zeros`` if it was 0 then."""
        if self.witness.grad is None:
            self._kept = {}
        if not self._kept or self._norm is None:
            return
        now = torch.linalg.vector_norm(self.witness.grad).double()
        factor = torch.where(self._norm == 0, of_zeros, now / self._norm)
        # sums of an overflow are no numbers, and times 0 they would stay so
        self._kept = {place: torch.where(factor > 0, value * factor, 0.0) for place, value in self._kept.items()}
        self._norm = now


def _add(sums: Sums, place: tuple, value: Tensor) -> None:
    sums[place] = sums[place] + value if place in sums else value
