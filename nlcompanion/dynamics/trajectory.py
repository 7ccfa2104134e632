"""What a flow or a descent leaves behind: states at times, or what was recorded of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlcompanion._arguments import counted

__all__ = ["FlowError", "Trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """A trajectory, continuous or discrete.

    Attributes:
        t: times, shape ``(T,)``.
        q: points, shape ``(T, n)``; the last one only, ``(1, n)``, where ``record`` replaced the stored states.
        v: velocities, same shape as ``q``. Of a discrete run: ``(q[n+1] - q[n]) / dt``.
        record: what ``record`` returned, as a dict of tensors of shape ``(T,)``.
        nfev: gradient evaluations (or calls of the right-hand side) spent.
        method: solver or algorithm.
        integral: what was integrated beside the state, from 0 at the start: shape ``(T, ...)``; None if nothing was.
        stopped: whether a condition ``stop=`` ended the run before its last time.

    All are float64 CPU tensors without gradient.
    """

    t: Tensor
    q: Tensor
    v: Tensor
    record: dict[str, Tensor] = field(default_factory=dict)
    nfev: int = 0
    method: str = ""
    integral: Tensor | None = None
    stopped: bool = False

    def __repr__(self) -> str:
        span = f"t = {self.t[0]:.4g} .. {self.t[-1]:.4g}" if len(self.t) else "empty"
        times = counted(len(self.t), "time")
        return f"Trajectory({self.method}, {times}, {span}, n = {self.q.shape[-1]}, nfev = {self.nfev})"


class FlowError(RuntimeError):
    """An integration that could not be finished; ``trajectory`` holds what was reached."""

    def __init__(self, message: str, trajectory: Trajectory):
        super().__init__(message)
        self.trajectory = trajectory


class Recorder:
    """What a trajectory keeps: states, or what ``record`` makes of them. Shared with the discrete algorithms."""

    def __init__(self, record, n: int):
        self.record, self.n = record, n
        self.t: list[float] = []
        self.q: list[Tensor] = []
        self.v: list[Tensor] = []
        self.rows: list[dict[str, float]] = []

    def add(self, t: float, q: Tensor, v: Tensor) -> None:
        self.t.append(float(t))
        if self.record is None:
            self.q.append(q)
            self.v.append(v)
        else:
            self.q, self.v = [q], [v]  # the last state stays at hand, the others would fill the memory
            self.rows.append(self._row(self.record(float(t), q, v)))

    def _row(self, row) -> dict[str, float]:
        if not isinstance(row, dict):
            raise TypeError(f"record(t, q, v) must return a dict of scalars, got {type(row).__name__}")
        if self.rows and row.keys() != self.rows[0].keys():
            raise ValueError(
                f"record returned the names {sorted(row)} after {sorted(self.rows[0])}; return the same each time"
            )
        try:
            return {name: float(value) for name, value in row.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"record(t, q, v) must return scalars: {error}") from error

    def trajectory(self, nfev: int, method: str) -> Trajectory:
        stack = lambda rows: torch.stack(rows) if rows else torch.empty(0, self.n).double()  # noqa: E731
        names = self.rows[0] if self.rows else ()
        record = {name: torch.tensor([row[name] for row in self.rows], dtype=torch.float64) for name in names}
        times = torch.tensor(self.t, dtype=torch.float64)
        return Trajectory(times, stack(self.q), stack(self.v), record, nfev, method)
