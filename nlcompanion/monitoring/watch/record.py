"""What a monitor keeps of a run, in constant memory: fewer samples, further apart, as the run grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Entry:
    """What is kept of one sample.

    Attributes:
        step: its number.
        names: of the tensors.
        values: shape ``(tensors, COLUMNS)``; NaN where there is none.
        laws: in writing.
        of_laws: charge (of a stack the sum) and largest defect of each law, shape ``(laws, 2)``; of judged steps only.
    """

    step: int
    names: tuple[str, ...]
    values: np.ndarray
    laws: tuple[str, ...]
    of_laws: np.ndarray


class Record:
    """At most ``keep`` entries. When they are full every second one goes, and from then on only every second comes.

    Args:
        every: the stride at which samples come.
        keep: how many entries; None keeps all.
    """

    def __init__(self, every: int, keep: int | None):
        self.every, self.keep = every, keep
        self.entries: list[Entry] = []
        self.latest: Entry | None = None
        self.stride = every

    def add(self, entry: Entry) -> None:
        self.latest = entry
        if entry.step % self.stride and self.stride > self.every:
            return
        self.entries.append(entry)
        if self.keep is not None and len(self.entries) > self.keep:
            self.stride *= 2
            self.entries = [kept for kept in self.entries if kept.step % self.stride == 0]

    def all_entries(self) -> list[Entry]:
        """What is kept, and the latest."""
        if self.latest is None or (self.entries and self.entries[-1] is self.latest):
            return list(self.entries)
        return [*self.entries, self.latest]

    def state_dict(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "entries": [
                {
                    "step": entry.step,
                    "names": list(entry.names),
                    "values": torch.from_numpy(entry.values.copy()),
                    "laws": list(entry.laws),
                    "of_laws": torch.from_numpy(entry.of_laws.copy()),
                }
                for entry in self.all_entries()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stride = max(int(state["stride"]), self.every)
        self.entries = [
            Entry(
                int(one["step"]),
                tuple(one["names"]),
                one["values"].numpy(),
                tuple(one["laws"]),
                one["of_laws"].numpy(),
            )
            for one in state["entries"]
        ]
        self.latest = self.entries[-1] if self.entries else None
