"""Which tensors of a model its optimizers hold, and what becomes of that during a run."""

from __future__ import annotations

import torch
from torch import nn

from nlcompanion._arguments import counted
from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.alerts.alert import listed
from nlcompanion.monitoring.watch.tensors import Tensors


def at_the_start(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: Tensors) -> list[str]:
    """What is to be noted of optimizers that hold too much or too little.

    Raises:
        ValueError: if they hold nothing of the model.
    """
    name = " and ".join(type(one).__name__ for one in optimizers)
    if not tensors.parameters:
        raise ValueError(
            f"{name} holds none of the parameters of this {type(model).__name__}, so none of them moves; make the "
            "optimizer from this model's parameters(), after it was copied, moved or wrapped"
        )
    notes = []
    if tensors.left_out:
        notes.append(f"no optimizer holds {', '.join(tensors.left_out)}, which will not move")
    if tensors.foreign:
        notes.append(f"{name} holds {counted(tensors.foreign, 'tensor')} that the model lacks, not watched")
    return notes


def notes(before: Tensors, now: Tensors, step: int) -> list[str]:
    """What came and what went."""
    found = []
    came = [name for name in now.parameters if name not in before.parameters]
    if came:
        found.append(f"from step {step} on the optimizer holds {', '.join(came)} too")
    lost = _lost(before, now)
    gone = [name for name in before.parameters if name not in now.parameters and name not in lost]
    if gone:
        found.append(f"from step {step} on {', '.join(gone)} is no longer held by optimizer and model")
    if lost and now.foreign <= before.foreign:
        found.append(f"from step {step} on no optimizer holds {', '.join(lost)}")
    return found


def replaced(before: Tensors, now: Tensors, step: int) -> Alert | None:
    """The model computes with other tensors than its optimizer moves."""
    lost = _lost(before, now)
    if not lost or now.foreign <= before.foreign:
        return None
    return Alert(
        "replaced",
        "the model computes with the tensors that the optimizer moves",
        tuple(lost),
        float(len(lost)),
        0.0,
        step,
        step,
        f"the model's {listed(lost)} was replaced, and the optimizer still moves the old tensor, which computes "
        "nothing; make the optimizer after the model is complete, or add_param_group the new one",
    )


def _lost(before: Tensors, now: Tensors) -> list[str]:
    """Tensors that the model still has, by name, and that no optimizer holds any more."""
    return [name for name in before.parameters if name in now.left_out]
