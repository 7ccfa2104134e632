"""``python -m nlcompanion check package.module:factory``: what the factory names is held against its laws."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from nlcompanion._terminal import Mistake, say
from nlcompanion.testing.report import BROKEN, LAWFUL, Report

LAWFUL_CODE, BROKEN_CODE, WRONG_CODE, UNTOLD_CODE = 0, 1, 2, 3


def load(target: str) -> Any:
    """The object that ``package.module:name`` names; the current folder is searched too."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise Mistake(f"{target!r} names no factory; write package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Mistake(f"{target} cannot be loaded: {error}") from error
    if not callable(found):
        raise Mistake(f"{target} is {type(found).__name__}, not a function that makes what is checked")
    return found


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
