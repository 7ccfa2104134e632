"""The parameters that laws speak of, in a model that may be wrapped."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from nlcompanion.laws.terms import Term

_WITHIN = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch.compile and others, at any depth
_AROUND = {"module"}  # DataParallel and DDP, around the whole


def find_parameters(
    model: nn.Module, terms: Mapping[str, Term], held: Collection[int], *, any_dtype: bool = False
) -> dict[str, nn.Parameter]:
    """The laws' parameters in the model, or in the one part of it that has them all.

    Args:
        model: the model that the laws were made from, wrapped (``DistributedDataParallel``, ``torch.compile``), or
            with it inside, as a ``LightningModule`` has its network.
        terms: by the names that the laws use.
        held: ``id`` of the parameters that some optimizer holds; they decide between parts that are alike.
        any_dtype: whether half precision and several precisions at once will do.

    Raises:
        ValueError: if no part has them, if several have them, or if they are not all in float64 or all in float32.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, p in list(named.items()):
        named.setdefault(_bare(name), p)
    spellings = [{name: spell(name) for name in terms} for spell in (str, _bare, without_wrappers)]
    for spelling in spellings:
        prefixes = _places(named, terms, spelling)
        if prefixes:
            break
    else:
        raise _missing_error(named, terms)
    choices = [{name: named[prefix + spelling[name]] for name in terms} for prefix in prefixes]
    found = choices[0] if prefixes[0] == "" else _the_trained_one(prefixes, choices, held)
    if not any_dtype:
        _check_dtypes(found)
    return found


def _places(named: Mapping[str, nn.Parameter], terms: Mapping[str, Term], spelling: Mapping[str, str]) -> list[str]:
    """What stands before the laws' names where a part of the model has all of them; the model itself comes first."""
    first = next(iter(spelling.values()))
    prefixes = ["", *(name.removesuffix(first) for name in named if name.endswith("." + first))]
    return [
        prefix
        for prefix in dict.fromkeys(prefixes)
        if all(_has(named, prefix + spelling[name], term) for name, term in terms.items())
    ]


def _the_trained_one(
    prefixes: list[str], choices: list[dict[str, nn.Parameter]], held: Collection[int]
) -> dict[str, nn.Parameter]:
    """Of several parts that have the laws' parameters the one that an optimizer moves."""
    pairs = zip(prefixes, choices, strict=True)
    apart = {tuple(map(id, choice.values())): (prefix, choice) for prefix, choice in pairs}
    moved = [pair for ids, pair in apart.items() if all(x in held for x in ids)]
    left = moved or list(apart.values())
    if len(left) > 1:
        where = [prefix.removesuffix(".") for prefix, _ in left]
        raise ValueError(
            f"several parts of the model have the laws' parameters: {', '.join(where)}; pass the one that the laws "
            f"were made from, such as model.get_submodule({where[0]!r})"
        )
    return left[0][1]


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def without_wrappers(name: str) -> str:
    name = _bare(name)
    while name.partition(".")[0] in _AROUND:
        name = name.partition(".")[2]
    return name


def _has(named: Mapping[str, nn.Parameter], name: str, term: Term) -> bool:
    return name in named and tuple(named[name].shape) == term.shape


def _missing_error(named: Mapping[str, nn.Parameter], terms: Mapping[str, Term]) -> ValueError:
    name = next(name for name, term in terms.items() if not _has(named, name, term))
    got = f"one of shape {tuple(named[name].shape)}" if name in named else "none"
    return ValueError(
        f"the laws need a parameter {name} of shape {terms[name].shape}, the model has {got}; make the laws from "
        "this model's own flat_loss"
    )


def _check_dtypes(found: Mapping[str, nn.Parameter]) -> None:
    dtypes = {p.dtype for p in found.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float64, torch.float32}:
        raise ValueError(
            f"the laws' parameters are in {', '.join(sorted(str(d) for d in dtypes))}; the ledger needs all in float64 "
            "or all in float32: half precision rounds away more than a step changes. Keep the weights in float32 and "
            "use autocast"
        )
