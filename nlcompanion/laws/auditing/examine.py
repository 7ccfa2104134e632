"""The audit itself: copy, equations, search, confirmation, words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nlcompanion._arguments import seed_number
from nlcompanion.laws.auditing.confirm import confirm
from nlcompanion.laws.auditing.double_copy import AuditError, double_copy
from nlcompanion.laws.auditing.double_precision import undisturbed
from nlcompanion.laws.auditing.equations import Equations, collect, find_sources
from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.identities import identity_of
from nlcompanion.laws.auditing.limits import limits_of, of_the_data
from nlcompanion.laws.auditing.naming import SYMMETRIES, charge_text, counts_of, kind_of, laws_of
from nlcompanion.laws.auditing.own_weights import on_own_weights
from nlcompanion.laws.auditing.parameter_rows import rows_of
from nlcompanion.laws.auditing.probing import probe
from nlcompanion.laws.auditing.report import Audit, Line
from nlcompanion.laws.auditing.search import Search, draws_needed
from nlcompanion.laws.auditing.slices import SHIFT, Layout, layout_of
from nlcompanion.laws.auditing.statements import (
    AFFINE,
    FIXED,
    LINEAR,
    MOMENTUM,
    PAIRED,
    QUADRATIC,
    SHEARED,
    SOURCED,
    rates_of,
    statement,
)
from nlcompanion.networks.copies import unwrapped

_FORMS = {
    "dead": FIXED,
    "rotation": MOMENTUM,
    "shear": SHEARED,
    "source": SOURCED,
    "shift": LINEAR,
    "logit shift": LINEAR,
    "duplicate": LINEAR,
    "affine": AFFINE,
}


def audit(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Callable | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
) -> Audit:
    r"""Find the continuous symmetries of a model's loss, and say what they make of its training.

    Sought are the generators that scale or shift slices of parameters along any axis, alone or together, that mix
    slices by matrices (linear pairs, heads), turn them (rotary embedding) or move one bias into another, and the
    balances with a source that activations without a symmetry have. They are found as the null space of equations from
    gradients at random parameters and data in float64, where constants named ``eps`` are set to (almost) 0, and
    confirmed at other places and at a finite distance.

    Args:
        model: any module; it is copied and comes back untouched. ``torch.compile``, ``DataParallel`` and
            ``DistributedDataParallel`` are looked through. Its train or eval mode is kept.
        inputs: what the model takes: a tensor, a tuple (passed by position), a mapping (by keyword), or anything
            else as one argument.
        targets: what the loss takes beside the outputs; None if ``loss`` takes model and batch.
        loss: ``loss(outputs, targets) -> scalar``; with ``targets=None`` ``loss(model, inputs) -> scalar``; None for a
            model that returns its own loss (a scalar, or something with ``.loss``).
        optimizer: whose steps the statements are about; None for gradient flow.
        seed: of the random parameters, data and masks. The same seed gives the same audit.

    Returns:
        An :class:`Audit`: prints as a table; ``.laws`` are for a :class:`Ledger`, ``.parameters`` has a row for each
        parameter, ``.limits`` says what could not be examined.

    Raises:
        AuditError: a model or loss that fails, is not a function, not finite, or not one number; nothing to train.
        TypeError: a model that is no module, a loss that cannot be called, an optimizer that is none.

    Source: GU Section 4 and 5 for the laws of layers; TK Section 3 for scale, translation and rescaling; the laws of
    attention, gates, sources and discrete steps are this book's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> found = audit(model, x, y, nn.functional.cross_entropy)
        >>> sorted(line.symmetry for line in found.lines)
        ['logit shift', 'logit shift', 'rescaling of neurons']
        >>> found.count, found.complete
        (7, True)
        >>> [row.decay for row in found.parameters][0]
        'moves a charge: one side of a balance'
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}; leave it out for gradient flow"
        )
    seed = seed_number("seed", seed)
    began = time.perf_counter()
    with undisturbed():
        room = double_copy(model, inputs, targets, loss, seed=seed)
        probe(room)
        layout = layout_of(room.model, room.parameters)
        find_sources(room, layout, 900_100)
        equations = collect(room, layout, range(1, draws_needed(layout) + 1))
        _require_a_gradient(equations)
        search = Search(room, layout, equations)
        search.run()
        confirmed = confirm(room, layout, search.families)
        own = on_own_weights(room, layout, confirmed.families)
        families = own.families
        limits = [*room.limits, *search.limits, *limits_of(confirmed, own, layout)]
        limits += of_the_data(room, layout, search)
    named = [(_oriented(family), kind_of(family, layout)) for family in families]
    named.sort(key=lambda pair: list(SYMMETRIES).index(pair[1]))
    groups = _groups(unwrapped(model), optimizer)
    counts = counts_of(named, layout)
    lines = tuple(
        _line(family, kind, count, layout, optimizer, groups)
        for (family, kind), count in zip(named, counts, strict=True)
    )
    if not search.is_complete:
        limits.append(
            "too many slices for each to be an unknown of its own: laws whose coefficients differ from neuron to "
            "neuron, or that join slices of different order, were not sought; audit a small copy for those"
        )
    return Audit(
        laws=tuple(law for family, kind in named for law in laws_of(family, kind, layout)),
        identities=tuple(
            identity_of(family, kind, layout, charge_text(family, layout))
            for family, kind in named
            if kind in ("shear", "rotation")
        ),
        lines=lines,
        parameters=rows_of(named, layout),
        count=sum(line.count for line in lines),
        limits=tuple(dict.fromkeys(limits)),
        complete=search.is_complete,
        gap=search.smallest_gap,
        model=type(unwrapped(model)).__name__,
        optimizer="gradient flow" if optimizer is None else type(optimizer).__name__,
        size=sum(p.numel() for p in room.parameters.values()),
        seconds=time.perf_counter() - began,
    )


def _require_a_gradient(equations: Equations) -> None:
    if not equations.sizes[SHIFT].any():
        raise AuditError(
            f"the gradient of the loss is exactly 0 at all {equations.draws} random places where it was looked at: the "
            "loss is constant there and tells no law from any other motion; look for a product with 0, a detached part "
            "or an activation that nothing opens"
        )


def _oriented(family: Family) -> Family:
    """What writes to a neuron counts positive, what reads from it negative."""
    writes = [c for atom, c in family.atoms if atom.role == "out"]
    if family.balances and writes and all(c < 0 for c in writes):
        flipped = tuple((atom, -c) for atom, c in family.atoms)
        return replace(family, atoms=tuple(sorted(flipped, key=lambda pair: -pair[1])))
    if family.balances:
        return replace(family, atoms=tuple(sorted(family.atoms, key=lambda pair: pair[1] < 0)))
    return family


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, dict]:
    if optimizer is None:
        return {}
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


def _line(family: Family, kind: str, count: int, layout: Layout, optimizer, groups: dict[str, dict]) -> Line:
    names = family.names(layout)
    missing = optimizer is not None and any(name not in groups for name in names)
    if missing:
        verdict, formula = "not conserved: the optimizer does not have all its parameters", "no law"
    else:
        rates = rates_of(optimizer, [groups[name] for name in names if name in groups])
        verdict, formula = statement(_form_of(family, kind, layout), rates)
    return Line(
        kind,
        SYMMETRIES[kind],
        count,
        family.generators(layout),
        names,
        family.moves(layout),
        charge_text(family, layout),
        verdict,
        formula,
        family.defect,
        family.moved,
        family.gap,
    )


def _form_of(family: Family, kind: str, layout: Layout) -> str:
    form = _FORMS.get(kind, QUADRATIC)
    if form != LINEAR:
        return form
    numbers = sum(atom.index.shape[1] * layout.axes[atom.axis].weights_per_slice for atom, _ in family.atoms)
    same = {abs(c) for _, c in family.atoms}
    return PAIRED if numbers == 2 and len(same) == 1 else LINEAR
