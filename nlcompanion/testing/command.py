"""``python -m nlcompanion check package.module:factory``: what the factory names is held against its laws."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from nlcompanion._target import load
from nlcompanion._terminal import Mistake, say
from nlcompanion.testing.report import BROKEN, LAWFUL, Report

LAWFUL_CODE, BROKEN_CODE, WRONG_CODE, UNTOLD_CODE = 0, 1, 2, 3


def check(target: str, *, resolution: float = 0.5, seed: int = 0) -> Report:
    """The report of what ``package.module:factory`` makes."""
    from nlcompanion.testing import check_gradients, check_optimizer

    factory = load(target)
    parameters = inspect.signature(factory).parameters.values()
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) == 1:
        return check_optimizer(factory, seed=seed)
    if required:
        names = ", ".join(p.name for p in required)
        raise Mistake(f"{target} takes {names}; a factory takes nothing, or the parameters of an optimiser")
    made = factory()
    if isinstance(made, Report):
        return made
    if isinstance(made, Mapping):
        settings = {"resolution": resolution, "seed": seed, **made}
        function, inputs = settings.pop("function"), settings.pop("inputs", ())
        return check_gradients(function, *inputs, **settings)
    if isinstance(made, tuple) and made and callable(made[0]):
        return check_gradients(made[0], *made[1:], resolution=resolution, seed=seed)
    raise Mistake(f"{target} returned {type(made).__name__}; return (model, *inputs), or a dict with 'function'")


def run(target: str, *, resolution: float = 0.5, seed: int = 0) -> int:
    """Print the report; the exit status."""
    try:
        report = check(target, resolution=resolution, seed=seed)
    except Mistake:
        raise
    except Exception as error:  # the user's code may raise anything; what it was is said, and no verdict given
        say(f"error: {target} could not be checked: {type(error).__name__}: {error}")
        return WRONG_CODE
    print(f"{report}\n{report.verdict}")
    return {LAWFUL: LAWFUL_CODE, BROKEN: BROKEN_CODE}.get(report.verdict, UNTOLD_CODE)
