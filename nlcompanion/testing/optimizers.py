"""``check_optimizer``: does an update rule obey its own laws?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nlcompanion._arguments import choice, flag, function, instance, integer, seed_number
from nlcompanion.testing import optimizer_sizes as sizes
from nlcompanion.testing import optimizer_symmetries as symmetries
from nlcompanion.testing.optimizer_families import FAMILIES, known_laws, laws_of_family
from nlcompanion.testing.optimizer_laws import OptimizerLaws
from nlcompanion.testing.optimizer_trials import Trial
from nlcompanion.testing.report import LawCheck, LawError, Report

_MOST_STEPS = 10_000
SHAPES = ((8, 6), (6, 8), (5,), (4, 4))


def check_optimizer(
    factory: Callable[[Sequence[Tensor]], torch.optim.Optimizer],
    parameters: Sequence[Tensor] | None = None,
    *,
    laws: OptimizerLaws | str | None = None,
    steps: int = 6,
    seed: int = 0,
    raise_error: bool = False,
) -> Report:
    r"""Hold an update rule against its own laws, on gradients that are made up; it needs no reference.

    1. Weights shifted with the gradients fixed: the shift shrinks by :math:`(1-\eta\lambda)^n` and nothing else
       (decoupled decay), or decay is a gradient :math:`\lambda\theta` (L2), or the shift stays.
    2. From zero weights the first step does not know :math:`\lambda`.
    3. The first step has the family's size (Adam's is :math:`\eta`).
    4. Gradients times c change nothing, or everything by c.
    5. Flipped, permuted, rotated parameters and gradients take the flipped, permuted, rotated path.
    6. White gradients give the family's root mean square of the update.
    7. Another order, shape or group, a state saved and loaded, and None gradients change nothing; a learning rate
       of 0 moves nothing.

    Args:
        factory: makes the optimiser of a list of parameters (fused, foreach or your own), all in one group; where it
            makes groups of its own, check the settings of each apart.
        parameters: whose shapes, dtype and device are used; None takes four small float64 tensors.
        laws: what the rule promises: declared, or the name of a family for a rule of your own that is meant to be it
            (``"AdamW"`` for a fused one; ``"Lion"``, ``"Shampoo"`` and ``"SOAP"``, which torch lacks as of 2.13). None
            looks up its class in the table, and for a class that is not there checks the seventh item alone, and says
            so.
        steps: of each trial.
        seed: of weights and gradients.
        raise_error: raise for a broken law.

    Returns:
        A :class:`Report`.

    Raises:
        LawError: with ``raise_error``, if a law is broken.
        TypeError: an optimiser that needs a closure (LBFGS), sparse gradients (SparseAdam), or is none; a factory that
            makes groups of its own; parameters without gradients.
        ValueError: a learning rate of 0, under which every step is 0.

    Source: this book's; the equilibrium of decoupled decay in Kosson et al. (arXiv:2305.17212) rests on the first law.

    Example:
        >>> import torch
        >>> from nlcompanion import OptimizerLaws
        >>> check_optimizer(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)).verdict
        'lawful'
        >>> class L2(torch.optim.Adam):  # takes decay for L2 and calls itself decoupled
        ...     pass
        >>> promised = OptimizerLaws(decay="decoupled")
        >>> report = check_optimizer(lambda p: L2(p, lr=0.01, weight_decay=0.1), laws=promised)
        >>> report.broken[0].law
        'a shift shrinks by (1 - lr*decay)^n'
    """
    if not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)):
        function("factory", factory, "of a list of parameters, which returns a torch.optim.Optimizer", 1)
    if isinstance(laws, str):
        choice("laws", laws, *FAMILIES)
    elif laws is not None:
        instance("laws", laws, OptimizerLaws, 'OptimizerLaws(decay="decoupled"), or the name of a family')
    integer("steps", steps, 1, _MOST_STEPS)
    seed = seed_number("seed", seed)
    flag("raise_error", raise_error)
    start = _start(parameters, laws, factory, seed)
    trial = Trial(factory, start, steps, seed)
    optimizer = trial.fresh()[0]
    if optimizer.param_groups[0].get("lr", 1.0) == 0:
        raise ValueError("lr is 0, so every step is 0 and no law can be told from it; check it at a larger lr")
    limits = []
    if isinstance(laws, str):
        laws = laws_of_family(laws, optimizer.param_groups[0])
    if laws is None and (laws := known_laws(optimizer)) is None:
        laws = OptimizerLaws(decay="unknown", elementwise=False)
        limits.append(f"{type(optimizer).__name__} is in no table: declare its laws=OptimizerLaws(...)")
    if laws.decay == "unknown":
        limits.append("how the weights enter the step is not promised, so weight decay is not checked")
    report = Report(tuple(_all_checks(trial, laws)), tuple(limits))
    if raise_error:
        report.raise_if_broken()
    return report


def _all_checks(trial: Trial, laws: OptimizerLaws) -> list[LawCheck]:
    """Every trial that the laws promise something for, in the order of the list above."""
    base = trial.run()
    return [
        *sizes.shift(trial, laws, base),
        *sizes.first_step(trial, laws),
        *sizes.scaling(trial, laws),
        *symmetries.equivariance(trial, laws, base),
        *sizes.white(trial, laws),
        *symmetries.bookkeeping(trial, laws, base),
    ]


def _start(parameters, laws, factory, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if parameters is not None:
        given = list(parameters) if isinstance(parameters, list | tuple | Iterator) else []
        plain = [isinstance(p, Tensor) and p.is_floating_point() and p.layout == torch.strided for p in given]
        if not given or not all(plain) or not all(p.numel() and not p.is_meta and p.isfinite().all() for p in given):
            raise TypeError("parameters must be floating-point tensors with finite values in a list, one at least")
        return [p.detach().clone() for p in given]
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    start = [draw(shape) for shape in SHAPES]
    matrices = [p for p in start if p.ndim == 2]
    if laws in ("Muon", "Shampoo", "SOAP") or (isinstance(laws, OptimizerLaws) and laws.ndim == 2):
        return matrices
    try:
        factory([torch.nn.Parameter(p) for p in start])
    except ValueError:  # Muon and its kin take matrices only
        return matrices
    return start


def assert_optimizer_lawful(factory: Callable, *args: Any, **settings: Any) -> Report:
    """:func:`check_optimizer` for a test: raises :class:`LawError` unless every law was seen to hold.

    Example:
        >>> import torch
        >>> assert_optimizer_lawful(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)).verdict
        'lawful'
    """
    report = check_optimizer(factory, *args, **settings, raise_error=True)
    report.raise_unless_lawful()
    if report.limits:
        raise LawError("not every law was checked: " + "; ".join(report.limits))
    return report
