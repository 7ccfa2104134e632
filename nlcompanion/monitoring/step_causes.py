"""What moves a charge in a step, cause by cause, from the step's settings and a few pairings."""

from __future__ import annotations

import torch
from torch import Tensor

from nlcompanion.monitoring.stacked_forms import StackedForms
from nlcompanion.monitoring.step_states import Ahead, Moving


def causes_of(
    ahead: Ahead, moving: Moving, charges: Tensor, along: Tensor | None, forms: StackedForms, exact: Tensor
) -> dict[str, Tensor]:
    """What momentum, decay, unequal rates and sources make of a step, entry by entry of all laws.

    Args:
        ahead: the step.
        moving: what it moved.
        charges: before it.
        along: pairings of the gradients with the weights, where they were read.
        forms: of the laws.
        exact: which entries have a formula for their steps.
    """
    rates, names = ahead.settings.rates, list(ahead.settings.rates)
    signs = {name: -1.0 if group.get("maximize") else 1.0 for name, group in ahead.settings.groups.items()}
    causes: dict[str, Tensor] = {}
    if ahead.memory is not None:
        pairs, scales = ahead.memory
        of_buffer = [scales[name] * rates[name].buffer for name in names]
        causes["momentum"] = -2 * forms.form(moving.of(pairs), of_buffer)
    of_decay = [rates[name].parameter for name in names]
    if any(of_decay):
        if len(set(of_decay)) == 1 and moving.pairs is None and not forms.has_shifts:
            causes["decay"] = -2 * of_decay[0] * charges
        else:
            causes["decay"] = -2 * forms.form(moving.of(forms.as_steps(ahead.rest.squares)), of_decay)
    if along is not None and bool(exact.any()):
        excess = -2 * forms.excess(along, [signs[name] * rates[name].gradient for name in names], moving.whole)
        causes["rates"] = torch.where(exact, excess, 0.0)
    if ahead.sources is not None:
        of_gradient = [signs[name] * rates[name].gradient for name in names]
        source = -2 * forms.first_rates(of_gradient) * ahead.sources
        causes["source"] = source if moving.whole is None else torch.where(moving.whole, source, 0.0)
    return causes
