"""A model's copy to compute with, or the reason why there is none."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_SPARSE = (nn.Embedding, nn.EmbeddingBag)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``: the same function."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, free of graphs and of sparse gradients."""
    _refuse_what_has_no_values(model)
    # weight_norm of old and pruning keep a weight that was computed in the last call; a graph cannot be copied
    memo = {id(x): x.detach().clone() for _, _, x in loose_tensors(model) if not x.is_leaf}
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module's own __deepcopy__, or pickling, makes of it
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({str(error).splitlines()[0]}), and a loss must not change with "
            "the model it was made from; give a module that copy.deepcopy can copy: without open files, locks, "
            "loggers or trainers among its attributes"
        ) from error
    for module in twin.modules():
        if isinstance(module, _SPARSE) and module.sparse:
            module.sparse = False  # the same numbers, in the flat vector's layout
    return twin


def loose_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Tensors that are plain attributes of a module, neither parameter nor buffer."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield module, name, value


def other_names(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Of tensors that several modules share: ``(further name, the name that named_parameters gives)``.

    A module that stands in two places is one module, and its second name none of a tensor's own.
    """
    first: dict[int, str] = {}
    others = []
    for prefix, module in model.named_modules():
        for name, x in (*module._parameters.items(), *module._buffers.items()):
            if x is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            known = first.setdefault(id(x), full)
            if known != full:
                others.append((full, known))
    return tuple(others)


def _refuse_what_has_no_values(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or 'the model'} is a scripted or traced module ({module.original_name}), whose weights cannot "
                "be lent other values; give the nn.Module that it was made from"
            )
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(x, UninitializedParameter | UninitializedBuffer):
            raise ValueError(f"{name} of a lazy module has no shape yet; run the model on a batch once, then make this")
        if x.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values; load the weights first")


def refuse_complex_parameters(model: nn.Module) -> None:
    """Those that are trained, which a real flat vector cannot hold."""
    for name, p in model.named_parameters():
        if p.is_complex() and p.requires_grad:
            raise TypeError(
                f"{name} is complex ({p.dtype}), and the flat vector of laws and flows is real: its imaginary part "
                "would be lost; store real and imaginary part as real parameters and join them with "
                "torch.view_as_complex in forward"
            )


def refuse_random_draws(model: nn.Module) -> None:
    """Layers that are known to draw anew in every call."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        share = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
        drops = isinstance(module, _DropoutNd | nn.RNNBase | nn.MultiheadAttention)
        if drops and isinstance(share, float | int) and share > 0:
            raise ValueError(
                f"{type(module).__name__} ({name or 'the model'}) drops at random in train mode and draws anew at each "
                "call, so the loss is no function of the parameters; call model.eval() first. Laws made in evaluation "
                "mode hold for every mask: the model can go on in train mode, flat_loss keeps its own copy"
            )
