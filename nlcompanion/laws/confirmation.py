"""A law read off the layers is confirmed by one inner product, at random parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlcompanion.laws.law import Law
from nlcompanion.networks.flat_loss import FlatLoss
from nlcompanion.networks.function_of_parameters import gradient_at, random_point

_COSINE = 1e-7  # rounding is 1e-13, what changes a layer 1e-3 and more
_NEGLIGIBLE = 1e-12  # of gradient times point: a neuron whose own gradient is rounding tells nothing


def confirmed(law: Law, f: FlatLoss) -> Law:
    """The law itself, if the gradient is orthogonal to its generator where no parameter is special.

    Raises:
        ValueError: it is not, or nothing could be measured; the message names what changes the layers.
    """
    q, g = _measured(law, f)
    slope = law.form(g, q).abs()
    cosine = law.cosine(g, q).abs()
    broken = (cosine > _COSINE) & (slope > _NEGLIGIBLE * g.norm() * q.norm())
    if not broken.any():
        return law
    worst = float(torch.where(broken, cosine, 0.0).max())
    raise ValueError(
        f"{law.statement!r} does not hold for this loss, whatever its layers are called: at random weights the "
        f"gradient has a cosine of {worst:.2g} with the symmetry, where 0 is needed. {_what_changes(f.model, law)}"
    )


def _measured(law: Law, f: FlatLoss) -> tuple[Tensor, Tensor]:
    """A random point, near the start if need be, and the gradient there."""
    for share in (0.3, 0.03, 0.0):
        q = random_point(f, share, seed=1)
        try:
            g = gradient_at(f, q)
        except ValueError:
            continue
        if math.isfinite(float(f(q).detach())) and torch.isfinite(g).all():
            return q, g
    raise ValueError(
        f"the loss or its gradient is not finite at the model's weights and near them, so {law.statement!r} cannot be "
        "confirmed; look for NaN in data and weights, or make them smaller"
    )


def _what_changes(model: nn.Module, law: Law) -> str:
    """The likely cause in words: hooks and replaced methods, the law's own layers first."""
    found = []
    for name, module in model.named_modules():
        where = f"{type(module).__name__} ({name or 'the model'})"
        if "forward" in vars(module):
            found.append(f"a forward set on the instance of {where}")
        if module._forward_hooks:
            found.append(f"a forward hook on {where}")
        if module._forward_pre_hooks:
            found.append(f"a forward pre-hook on {where}")
    if found:
        return f"Suspect: {'; '.join(found[:3])}. Remove it, or leave this law out"
    tensors = ", ".join(law.parameters)
    return (
        f"Something beside the layers reads {tensors}: a penalty on weights in the loss, or a loss that looks into the "
        "model; take it out of the loss (weight decay belongs into the optimizer), or leave this law out"
    )
