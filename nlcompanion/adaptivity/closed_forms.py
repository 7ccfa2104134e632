r"""Size and memory of updates under white gradients, where they follow from the optimiser's settings alone.

An optimiser whose updates are a linear filter of the gradients, :math:`u_n = \sum_k h_k g_{n-k}`, has
:math:`U^2 = g^2\sum h_k^2` and :math:`\rho_l = \sum_k h_k h_{k+l}/\sum_k h_k^2`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nlcompanion.adaptivity.update_memory import UpdateMemory

NEGLIGIBLE = 1e-12
LONGEST = 20_000  # steps of a filter


def closed_form(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], grad_rms: float | None
) -> UpdateMemory | None:
    """Of the optimisers that have one; None for the others, and for SGD where nobody knows its gradients' size.

    Args:
        grad_rms: root mean square of an entry of the gradient; of no account where updates are normalised.
    """
    name = type(optimizer).__name__
    if name == "SGD" and group["momentum"] < 1:
        size = 1.0 if grad_rms is None else grad_rms
        response = sgd_response(group["momentum"], group["dampening"], group["nesterov"])
        return of_filter(size * response)
    if name in ("Adam", "AdamW") and not group["amsgrad"]:
        beta = float(group["betas"][0])
        return of_filter((1 - beta) * powers(beta))
    if name == "Lion" and "betas" in group:
        return lion(*(float(beta) for beta in group["betas"]))
    return None


def powers(ratio: float) -> Tensor:
    """``ratio ** k`` until it is negligible."""
    count = 1 if ratio == 0 else min(math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)), LONGEST)
    return ratio ** torch.arange(count, dtype=torch.float64)


def sgd_response(momentum: float, dampening: float, nesterov: bool) -> Tensor:
    """What one gradient does to the updates of the steps from its own on."""
    response = (1 - dampening if momentum else 1.0) * powers(momentum)
    if nesterov:
        response = momentum * response
        response[0] += 1
    return response


def of_filter(response: Tensor) -> UpdateMemory:
    """Of updates that are a linear filter of white gradients of size 1."""
    padded = torch.fft.rfft(response, n=2 * len(response))
    products = torch.fft.irfft(padded.abs().square())[: len(response)]
    return UpdateMemory(float(products[0].sqrt()), products / products[0], "closed form")


def lion(first: float, second: float) -> UpdateMemory:
    r"""Signs of a filter of noise: :math:`\rho_l = \frac2\pi\arcsin r_l` with its correlation :math:`r_l`."""
    response = torch.cat([torch.tensor([1 - first], dtype=torch.float64), first * (1 - second) * powers(second)])
    inner = of_filter(response).autocorrelation
    return UpdateMemory(1.0, 2 / math.pi * torch.asin(inner.clamp(-1, 1)), "closed form")
