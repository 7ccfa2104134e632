"""Replicas that start equal and step on one gradient are equal: a digest of their weights is compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed
from torch import nn

from nlcompanion.monitoring.alerts.alert import Alert, RunView, listed
from nlcompanion.monitoring.watch.sample import Sample

_KEPT = 16  # samples whose digests wait for slower processes
_UNITS = 64.0  # in the last place, by which sums of equal weights may differ between machines
_SILENT = 8  # samples without a word from another process, after which that is said


class Replicas:
    """Compares the squared norm of each tensor with that of the other processes, without a collective operation.

    The digests lie in the key-value store that ``torch.distributed`` has made for itself, so nothing waits, and a
    monitor on one process alone does no harm. The other digests of a sample are read when they are there.

    Args:
        ranks: of the replicas, this one included; empty without any.
    """

    kind = "replicas"

    def __init__(self, ranks: Sequence[int]):
        self._rank = torch.distributed.get_rank() if len(ranks) > 1 else 0
        self._others = [rank for rank in ranks if rank != self._rank]
        self._mine: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}  # by step
        self._silent: dict[int, int] = dict.fromkeys(self._others, 0)
        self._told: set[int] = set()

    def look(self, sample: Sample, run: RunView) -> list[Alert]:
        if not self._others:
            return []
        try:
            store = _store()
            self._send(store, sample)
            return self._compare(store, sample, run)
        except Exception as error:  # the store of a group that has ended, or none at all
            run.say(f"replicas are no longer compared from step {sample.step} on: {type(error).__name__}: {error}")
            self._others = []
            return []

    def _send(self, store: Any, sample: Sample) -> None:
        self._mine[sample.step] = sample.names, sample.squares
        store.set(_key(self._rank, sample.step), json.dumps([list(sample.names), sample.squares.tolist()]))
        for step in sorted(self._mine)[:-_KEPT]:
            del self._mine[step]
            store.delete_key(_key(self._rank, step))

    def _compare(self, store: Any, sample: Sample, run: RunView) -> list[Alert]:
        alerts = []
        for rank in self._others:
            heard = [step for step in self._mine if store.check([_key(rank, step)])]
            self._listen(rank, bool(heard), run)
            for step in sorted(heard):
                names, squares = json.loads(store.get(_key(rank, step)))
                alert = self._difference(rank, step, names, np.array(squares), sample, run)
                if alert is not None and rank not in self._told:
                    self._told.add(rank)
                    alerts.append(alert)
        return alerts

    def _listen(self, rank: int, heard: bool, run: RunView) -> None:
        self._silent[rank] = 0 if heard else self._silent[rank] + 1
        if self._silent[rank] == _SILENT:
            run.say(f"process {rank} is not heard of: it has no monitor, another stride, or other steps; not compared")

    def _difference(
        self, rank: int, step: int, names: list[str], squares: np.ndarray, sample: Sample, run: RunView
    ) -> Alert | None:
        mine_names, mine = self._mine[step]
        if list(mine_names) != names:
            return None  # a process whose groups have changed earlier is compared again when all have
        with np.errstate(all="ignore"):
            relative = np.abs(mine - squares) / np.maximum(np.maximum(mine, squares), 1e-300) / 2
        allowed = _UNITS * run.eps
        apart = [name for name, x in zip(names, relative, strict=True) if x > allowed]
        if not apart:
            return None
        most = float(np.nanmax(relative))
        return Alert(
            self.kind,
            "replicas that start equal and step on one gradient are equal",
            tuple(apart),
            most,
            allowed,
            step,
            sample.step,
            f"the norms of {listed(apart)} differ by up to {most:.2g} (relative) between processes {self._rank} and "
            f"{rank} before step {step}, where equal weights allow {allowed:.1g}: one of them started from other "
            "weights, took another step, or its gradients were not averaged; broadcast the weights, and look for what "
            "only one process does",
        )

    def state_dict(self) -> dict[str, Any]:
        return {"told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._told = {int(rank) for rank in state["told"]}


def replica_ranks(model: nn.Module, replicas: bool | None) -> list[int]:
    """The processes whose weights should be equal to those here.

    Args:
        model: ``DistributedDataParallel`` names its group; other models are compared when asked to.
        replicas: None for models in ``DistributedDataParallel`` alone.
    """
    if replicas is False or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return torch.distributed.get_process_group_ranks(module.process_group)
    return list(range(torch.distributed.get_world_size())) if replicas else []


def _key(rank: int, step: int) -> str:
    return f"nlcompanion/monitor/{rank}/{step}"


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()
