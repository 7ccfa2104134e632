"""The tensors that a monitor watches: those of the model that an optimizer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from nlcompanion.monitoring.find_parameters import without_wrappers


@dataclass(frozen=True)
class Tensors:
    """What is watched, as it was found at one time.

    Attributes:
        parameters: by name, without the names of wrappers.
        owners: the number of the optimizer that holds each.
        left_out: trainable tensors of the model that no optimizer holds.
        foreign: how many tensors the optimizers hold that the model lacks.
        key: changes when groups or tensors do.
        sizes: numbers of tensors of the groups.
    """

    parameters: dict[str, nn.Parameter]
    owners: dict[str, int]
    left_out: tuple[str, ...]
    foreign: int
    key: tuple
    sizes: list[int]

    def of(self, optimizer: int) -> list[str]:
        return [name for name, owner in self.owners.items() if owner == optimizer]


def held_key(optimizers: Sequence[Optimizer]) -> tuple:
    """Which tensors the optimizers hold; another one after a group was added or taken away."""
    return tuple(tuple(map(id, group["params"])) for one in optimizers for group in one.param_groups)


def held_sizes(optimizers: Sequence[Optimizer]) -> list[int]:
    """The same in short: how many tensors each group has."""
    return [len(group["params"]) for one in optimizers for group in one.param_groups]


def tensors_of(model: nn.Module, optimizers: Sequence[Optimizer]) -> Tensors:
    """The tensors to watch now.

    Raises:
        ValueError: for tensors that are split over machines.
    """
    owner = {id(p): k for k, one in enumerate(optimizers) for group in one.param_groups for p in group["params"]}
    parameters: dict[str, nn.Parameter] = {}
    owners: dict[str, int] = {}
    left_out = []
    for spelled, p in model.named_parameters():
        name = without_wrappers(spelled)
        if is_sharded(p, spelled):
            raise ValueError(
                f"{name} is split over machines (FSDP, a DTensor): its norm, its rows and its gradient's laws are "
                "those of no single shard, and a monitor of one shard would show wrong numbers; watch an unsharded run "
                "of the same model, or DistributedDataParallel"
            )
        if isinstance(p, UninitializedParameter) or p.numel() == 0 or p.device.type == "meta":
            continue
        if id(p) not in owner:
            left_out += [name] if p.requires_grad else []
            continue
        parameters[name], owners[name] = p, owner[id(p)]
    found = {id(p) for p in parameters.values()}
    foreign = len(set(owner) - found)
    return Tensors(parameters, owners, tuple(left_out), foreign, held_key(optimizers), held_sizes(optimizers))


def is_sharded(p: torch.Tensor, name: str) -> bool:
    """Whether a tensor is one machine's part of a larger one."""
    return type(p).__name__ == "DTensor" or hasattr(p, "placements") or "_flat_param" in name
