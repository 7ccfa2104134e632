"""``python -m nlcompanion audit package.module:factory``: the laws of what the factory makes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from difflib import get_close_matches

import torch

from nlcompanion._target import load
from nlcompanion._terminal import Mistake
from nlcompanion.laws.auditing.double_copy import AuditError
from nlcompanion.laws.auditing.examine import audit


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``audit`` takes beside its target."""
    parser.add_argument("target", metavar="PACKAGE.MODULE:FACTORY", help="returns (model, inputs, targets, loss)")
    parser.add_argument(
        "--optimizer",
        metavar="NAME[:KEY=VALUE,...]",
        help="one of torch.optim, as in sgd:lr=0.1,momentum=0.9 (default: gradient flow)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON and no tables")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Print the audit; the exit status."""
    made = load(options.target)()
    if not isinstance(made, tuple) or not 2 <= len(made) <= 4:
        raise Mistake(
            f"{options.target} returned {type(made).__name__}; return (model, inputs, targets, loss), or (model, "
            "inputs) of a model that returns its own loss"
        )
    model, inputs, targets, loss = (*made, None, None)[:4]
    try:
        found = audit(model, inputs, targets, loss, optimizer=optimizer_of(options.optimizer, model), seed=options.seed)
    except (AuditError, TypeError) as error:
        raise Mistake(f"{options.target} cannot be audited: {error}") from error
    print(found.to_json() if options.json else found)
    return 0


def optimizer_of(text: str | None, model) -> torch.optim.Optimizer | None:
    """The optimiser that ``name:key=value,...`` describes, over the model's trained parameters."""
    if text is None:
        return None
    name, _, rest = text.partition(":")
    known: dict[str, Callable[..., torch.optim.Optimizer]] = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise Mistake(f"torch.optim has no optimizer {name!r}; {hint}")
    settings: dict[str, bool | int | float | str] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise Mistake(f"{pair!r} is no setting of an optimizer; write key=value, as in sgd:lr=0.1,momentum=0.9")
        settings[key.strip()] = _value(value.strip())
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        return known[name.lower()](trained, **settings)
    except (TypeError, ValueError) as error:
        raise Mistake(f"{text} makes no optimizer: {error}") from error


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
