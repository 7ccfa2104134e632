"""What a kernel asks of a network and of its inputs, with errors that name the cause."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nlcompanion._arguments import as_tensor, described
from nlcompanion.networks.flat_loss import FlatLoss, outputs_of


def checked_network(model: nn.Module | FlatLoss, x1: Tensor, x2: Tensor | None, q: Tensor | None):
    """The network as a function of one flat vector, the point, and both inputs in its precision."""
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) == 0:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a tensor of inputs, samples first and at least one, got {got}")
        if x.is_complex() or x.is_meta or x.layout != torch.strided:
            raise ValueError(f"{name} must hold real numbers or integers, got {described(x)}")
    f = model if isinstance(model, FlatLoss) else _outputs_of(model, x1)
    q = f.q0 if q is None else as_tensor("q", q).detach()
    if q.shape != f.q0.shape:
        raise ValueError(f"q has shape {tuple(q.shape)}, this model's parameters make {tuple(f.q0.shape)}")
    return f, q, checked_inputs(f, q, x1, "x1"), None if x2 is None else checked_inputs(f, q, x2, "x2")


def _outputs_of(model: nn.Module, x: Tensor) -> FlatLoss:
    """Not ``flat_loss``: its trial of the loss would run on all samples at once, and a kernel has trials of its own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return FlatLoss(model, x[:1], x[:1], lambda outputs, targets: outputs.sum())


def checked_inputs(f: FlatLoss, q: Tensor, x: Tensor, name: str) -> Tensor:
    """``x`` in the precision of ``q``, after a look whether a sample's outputs depend on its neighbours."""
    for where, module in f.model.named_modules():  # a single sample, or equal ones, would not show it
        if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)):
            raise ValueError(
                f"{type(module).__name__} ({where}) is in train mode, where outputs depend on the batch or on chance "
                "and there is no kernel between samples; call model.eval() first"
            )
    x = x.to(q.dtype) if x.is_floating_point() else x
    few = x[:3]
    try:
        together = outputs_of(f, q, few)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"this module cannot run on {name} of shape {tuple(x.shape)} and {x.dtype} ({str(error).splitlines()[0]}); "
            "give inputs as it takes them, samples first (integers only for an embedding, else x.double())"
        ) from error
    if not isinstance(together, Tensor):
        raise TypeError(
            f"the module returns a {type(together).__name__}, and a kernel needs one tensor of outputs; wrap it in a "
            "module that returns the tensor you mean"
        )
    if together.ndim == 0 or len(together) != len(few):
        raise ValueError(
            f"the module gives outputs of shape {tuple(together.shape)} for {len(few)} sample(s) of {name}, and a "
            "kernel between samples needs those first; take a module that does not average over samples, one member of "
            "an ensemble"
        )
    check_finite(f"the output for {name}", together)
    together = together.reshape(len(few), -1)
    if len(few) == 1:
        return x
    try:
        alone = torch.cat([outputs_of(f, q, sample[None]).reshape(1, -1) for sample in few])
        apart = (together - alone).abs().max() / together.abs().max().clamp(min=torch.finfo(q.dtype).tiny)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"this module cannot run on {name} sample by sample ({str(error).splitlines()[0]}), and a kernel needs the "
            "outputs of single samples; put whatever looks at the whole batch into evaluation mode with model.eval()"
        ) from error
    if not apart <= 1e3 * torch.finfo(q.dtype).eps ** 0.75:
        raise ValueError(
            f"the outputs of a sample alone and among others differ by {apart:.2g} of their size, so there is no "
            "kernel between samples: the module mixes or draws at random; call model.eval() first, or take that out"
        )
    return x


def check_finite(what: str, x: Tensor) -> None:
    if not all(torch.isfinite(end) for end in x.detach().aminmax()):  # a NaN is both ends; needs no memory
        raise ValueError(
            f"{what} is not finite in {x.dtype}, so nothing follows from it; look for NaN in the inputs and weights, "
            "or make them smaller"
        )


def picked_outputs(output: str | int, width: int) -> range:
    if isinstance(output, str) and output in ("full", "trace"):
        return range(width)
    if isinstance(output, int) and not isinstance(output, bool) and 0 <= output < width:
        return range(output, output + 1)
    raise ValueError(f"output must be 'full', 'trace' or an integer from 0 to {width - 1}, got {described(output)}")
