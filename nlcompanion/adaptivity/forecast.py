r"""Where the norm of a weight and its effective rate will be, from what a run has measured so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from nlcompanion._arguments import choice, flag, fraction, integer, number_from, numbers
from nlcompanion.adaptivity.norm_law import NORMALIZED, SGD, law_of
from nlcompanion.adaptivity.norm_record import record_of
from nlcompanion.adaptivity.projection import Forecast, project

__all__ = ["Forecast", "forecast"]


def forecast(
    steps,
    norms,
    *,
    rule: str,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    decoupled: bool = False,
    lrs=None,
    schedule: Callable[[int], float] | Sequence[float] | Tensor | None = None,
    grad_norms=None,
    persistence=None,
    update_norms=None,
    memory=None,
    horizons: Sequence[int] = (100, 300, 1000),
    coverage: float = 0.9,
) -> Forecast:
    r"""Forecast the norms of one weight, or of many, and their effective rates, from their measured past.

    .. math:: y = |W|^p, \qquad y_{n+1} = e^{-p\kappa\eta_n} y_n + \eta_n^2\,G + \eta_n F

    Under SGD a scale-invariant weight has :math:`p = 4` and
    :math:`G = \frac{2(1+\beta)}{(1-\beta)^3}P|\hat g|^2` with :math:`\hat g = |W| g` (TK Eq. 17), and :math:`F = 0`.
    Under Adam, AdamW, Lion, Muon and whatever else normalises its updates :math:`p = 2`, :math:`G = |u|^2 S`, and
    :math:`F` is a lasting pull along the weight: what the norms gained beyond :math:`G`, as far as it is no chance.
    All are measured over the last quarter of the record and held; the rate ahead is the schedule's. Without the
    measurements that make :math:`G` all of the gain counts as :math:`G`, taken from the norms' own past.

    The interval comes from the record alone. Forecasts are made at earlier steps of it, from what was known there; the
    errors of their gains at an eighth, a quarter and half of the record give the spread, which grows as the horizon
    beyond that. A schedule that changes the rate adds a doubt. Nothing is fitted to what follows.

    Args:
        steps: the steps at which was measured, shape ``(T,)``, increasing, in any spacing; weights as they are
            before that step.
        norms: :math:`|W|`, shape ``(T,)`` or ``(T, ...)`` for many weights, filters for example.
        rule: ``"sgd"`` for updates that are linear in the gradient, of scale-invariant weights; ``"normalized"`` for
            Adam, AdamW, Lion, Muon and the like, of any weight.
        lr, weight_decay: :math:`\eta` and :math:`\lambda`, now.
        momentum: :math:`\beta` in [0, 1), of SGD.
        decoupled: decay that acts on the weight alone, as AdamW's, Lion's, Muon's. A normalised rule with coupled
            decay has no law of this kind and gets no forecast.
        lrs: the rates at the recorded steps, shape ``(T,)``; ``lr`` all along when None.
        schedule: the rates ahead: a function of the step, or a sequence that begins with the rate of the next step.
            ``lr`` is held when None.
        grad_norms: :math:`|g|` at the weight as it is, in the shape of ``norms`` (SGD).
        persistence: :math:`P` of the gradients (SGD), a number or anything that broadcasts with ``norms``.
        update_norms: :math:`|u|`, with :math:`W' = (1-\eta\lambda)W - \eta u`, in the shape of ``norms``.
        memory: :math:`S = 1 + 2\sum_l(1-\eta\lambda)^l\rho_l` of the updates, as ``persistence``.
        horizons: steps ahead, increasing.
        coverage: the probability that the interval is to have, in (0, 1).

    Returns:
        A :class:`Forecast`. A weight whose future cannot be told has NaN and a reason in ``refusals``: a record that
        is too short, a burst, a norm that does not follow the law.

    Raises:
        ValueError: shapes that do not fit, steps that do not increase, settings out of range, a schedule that ends
            before the last horizon.
        TypeError: values of a wrong kind.

    Source: TK Eq. 17 with a measured persistence; for normalised optimisers Kosson et al. (arXiv 2305.17212) with
    measured updates; the intervals are this book's.

    Example:
        >>> import torch
        >>> steps = torch.arange(0, 400, 10)
        >>> norms = (1 + 0.01 * steps.double()) ** 0.25                # SGD without decay and with a constant gradient
        >>> ahead = forecast(steps, norms, rule="sgd", lr=0.1, horizons=[400])
        >>> round(ahead.norm.item(), 3), round((1 + 0.01 * 790) ** 0.25, 3)
        (1.727, 1.727)
    """
    choice("rule", rule, SGD, NORMALIZED)
    decay = number_from("weight_decay", weight_decay, 0, "negative decay makes weights grow without end")
    beta = fraction("momentum", momentum, "at 1 the buffer never forgets")
    share = number_from("coverage", coverage, 0, "it is the probability of the interval, such as 0.9")
    if not 0 < share < 1:
        raise ValueError(f"coverage = {share:g} is no probability between 0 and 1; give 0.9 for intervals of 90%")
    law = law_of(rule, decay, beta, flag("decoupled", decoupled))
    record = record_of(rule, beta, steps, norms, lr, lrs, grad_norms, persistence, update_norms, memory)
    coupled = rule == NORMALIZED and decay > 0 and not decoupled
    return project(law, record, schedule, _horizons(horizons), share, coupled)


def _horizons(horizons: Sequence[int]) -> list[int]:
    given = numbers("horizons", horizons)
    if given.ndim != 1:
        raise TypeError(f"horizons are numbers of steps ahead in a list, such as (100, 300, 1000), got {horizons!r}")
    ahead = [integer("horizons", int(item) if item == item.round() else float(item), 1, 10**6) for item in given]
    if sorted(set(ahead)) != ahead:
        raise ValueError(f"horizons must increase, got {ahead}")
    return ahead
