r"""Where weights settle under any optimiser with decay, from the size and the memory of its updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nlcompanion._arguments import described, instance, positive_number, real_number
from nlcompanion.adaptivity.closed_forms import closed_form
from nlcompanion.adaptivity.update_memory import UpdateMemory, white_updates
from nlcompanion.laws.under_optimizers import is_decoupled

__all__ = ["UpdateEquilibrium", "equilibrium_of", "equilibrium_of_updates"]


@dataclass(frozen=True)
class UpdateEquilibrium:
    r"""Where a weight settles; made by :func:`equilibrium_of` and :func:`equilibrium_of_updates`.

    Attributes:
        rms: root mean square of an entry of the weight; NaN where the size of the updates is not known.
        angular_update: turn per step, in radians. It needs the memory only, and no size.
        time_constant_steps: steps in which the distance of :math:`|W|^2` from equilibrium falls by e,
            :math:`1/(-2\log(1-\eta\lambda))`.
        update_rms: :math:`U`, NaN where it is not known.
        memory: :math:`S`.
        source: where U and S come from: "closed form", "white gradients", "recorded" or "given".
    """

    rms: float
    angular_update: float
    time_constant_steps: float
    update_rms: float
    memory: float
    source: str


def equilibrium_of_updates(
    updates: UpdateMemory | tuple[float, float], *, lr: float, weight_decay: float
) -> UpdateEquilibrium:
    r"""The equilibrium of any optimiser with decoupled decay, from its updates.

    .. math:: W_{n+1} = (1 - \eta\lambda) W_n - \eta u_n, \qquad S = 1 + 2\sum_{l\ge1}(1-\eta\lambda)^l\rho_l

    .. math:: \mathrm{RMS}(W)^2 = \frac{\eta^2 U^2 S}{1 - (1-\eta\lambda)^2}, \qquad
              \text{angle}^2 = \frac{\eta^2U^2}{\mathrm{RMS}(W)^2} - (\eta\lambda)^2

    Both are exact for updates whose statistics do not change; no gradient, loss or symmetry occurs. Scale invariance
    enters for SGD: gradients at right angles to the weight make
    :math:`S = \frac{1+(1-\eta\lambda)\beta}{1-(1-\eta\lambda)\beta}` **however long gradients persist**, and their
    persistence is in :math:`U^2 = P g^2/(1-\beta)^2` alone. With :math:`g = |\hat g|/r` this is TK Eq. 30 with the
    factor :math:`P` of :func:`equilibrium`, for a decay that acts as :math:`\lambda = k/(1-\beta)`.

    Args:
        updates: from :func:`update_memory` or :func:`white_updates`; or a pair of :math:`U` and :math:`S`.
        lr: :math:`\eta > 0`.
        weight_decay: :math:`\lambda > 0`, decoupled, with :math:`\eta\lambda < 1`.

    Returns:
        An :class:`UpdateEquilibrium`.

    Raises:
        ValueError: no decay, or decay of 1 or more in a step; a memory that is not positive.

    Source: Kosson et al. (arXiv 2305.17212) for white gradients; with measured memory this book's, as far as we know.

    Example:
        >>> settled = equilibrium_of_updates((0.2294, 19.0), lr=1e-3, weight_decay=0.1)      # AdamW's
        >>> round(settled.rms / (1e-3 / 0.2) ** 0.5, 3), round(settled.angular_update, 5)
        (1.0, 0.00324)
    """
    rate, decay = positive_number("lr", lr), positive_number("weight_decay", weight_decay)
    fading = rate * decay
    if not fading < 1:
        raise ValueError(f"lr weight_decay = {fading:g} leaves nothing of a weight after one step; lower one of them")
    size, memory, source = _size_and_memory(updates, fading)
    if not memory > 0:
        raise ValueError(
            f"S = {memory:.3g}: updates that undo one another to this degree let no norm settle; record more lags"
        )
    forgotten = 1 - (1 - fading) ** 2
    return UpdateEquilibrium(
        rms=rate * size * math.sqrt(memory / forgotten),
        angular_update=math.sqrt(max(forgotten / memory - fading**2, 0.0)),
        time_constant_steps=-1 / (2 * math.log1p(-fading)),
        update_rms=size,
        memory=memory,
        source=source,
    )


def _size_and_memory(updates: UpdateMemory | tuple[float, float], fading: float) -> tuple[float, float, str]:
    if isinstance(updates, UpdateMemory):
        return updates.rms, updates.memory(fading), updates.source
    if not isinstance(updates, tuple | list) or len(updates) != 2:
        raise TypeError(f"updates must be an UpdateMemory or the pair (U, S), got {described(updates)}")
    size, memory = real_number("U", updates[0]), positive_number("S", updates[1])
    if not (size > 0 or math.isnan(size)):
        raise ValueError(f"U = {size:g} is no size of updates; give a positive one, or NaN where it is not known")
    return size, memory, "given"


def equilibrium_of(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter | None = None, *, grad_rms: float | None = None
) -> UpdateEquilibrium:
    r"""Where a parameter settles under an optimiser with its own settings, for white gradients.

    SGD, Adam(W) and Lion have closed forms; others, Muon for example, are simulated on white gradients in the
    parameter's own shape. Training is not white: measured updates (:func:`update_memory`) say where a run goes.

    Args:
        optimizer: with decay that acts on the weights alone (AdamW, Lion, Muon), or SGD, whose coupled decay
            :math:`k` acts as :math:`k/(1-\beta)`.
        parameter: one of its parameters; the first when None.
        grad_rms: root mean square of an entry of the gradient, where the updates follow it (SGD).

    Returns:
        An :class:`UpdateEquilibrium`; ``rms`` is NaN for SGD without ``grad_rms``.

    Raises:
        TypeError: something else than an optimizer.
        ValueError: no decay, coupled decay that is normalised (Adam's), a parameter that the optimizer does not hold.

    Source: as :func:`equilibrium_of_updates`.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(8, 8))
        >>> settled = equilibrium_of(torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1))
        >>> round(settled.rms, 4), round((1e-3 / 0.2) ** 0.5, 4)
        (0.0707, 0.0707)
    """
    instance("optimizer", optimizer, torch.optim.Optimizer, "torch.optim.AdamW(model.parameters())")
    weight, group = group_of(optimizer, parameter)
    known = None if grad_rms is None else positive_number("grad_rms", grad_rms)
    updates = updates_of(optimizer, group, tuple(weight.shape), known)
    return equilibrium_of_updates(updates, lr=float(group["lr"]), weight_decay=decay_alone(optimizer, group))


def updates_of(
    optimizer: torch.optim.Optimizer, group: dict, shape: tuple[int, ...], grad_rms: float | None
) -> UpdateMemory:
    """Size and memory of an optimiser's updates in one of its groups, under white gradients."""
    found = closed_form(optimizer, group, grad_rms)
    if found is None:
        return white_updates(lambda p: _like(optimizer, group, p), shape, grad_rms=grad_rms or 1.0)
    if isinstance(optimizer, torch.optim.SGD) and grad_rms is None:
        return UpdateMemory(math.nan, found.autocorrelation, found.source)
    return found


def _like(optimizer: torch.optim.Optimizer, group: dict, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A new optimiser of the same class, with the settings of a group."""
    settings = {name: value for name, value in group.items() if name != "params"}
    kind: Callable[..., torch.optim.Optimizer] = type(optimizer)
    return kind([{"params": parameters, **settings}])


def decay_alone(optimizer: torch.optim.Optimizer, group: dict) -> float:
    """The decay as it acts on the weight: of SGD's coupled decay what comes through the momentum."""
    decay = float(group.get("weight_decay") or 0.0)
    if not decay > 0:
        raise ValueError(
            "weight_decay is 0, so nothing holds the norm and it grows for ever; there is an equilibrium only with "
            "decay"
        )
    if is_decoupled(optimizer, group):
        return decay
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        return decay * (1 - float(group["dampening"]) if momentum else 1.0) / (1 - momentum)
    raise ValueError(
        f"{type(optimizer).__name__}'s decay joins the gradient and is normalised with it, so that its pull depends on "
        "the gradients and no equilibrium follows from the settings; use decoupled decay, as AdamW"
    )


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter | None) -> tuple[nn.Parameter, dict]:
    """A parameter of an optimiser and its group."""
    for group in optimizer.param_groups:
        for held in group["params"]:
            if parameter is None or held is parameter:
                return held, group
    shape = described(parameter)
    raise ValueError(f"the optimizer does not hold this parameter ({shape}); give the parameter itself, not a copy")
