"""Which tensor's gradient was scaled by itself: what one law tells of it, and what the laws beside it add."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from statistics import median

from nlcompanion.laws.law import Law
from nlcompanion.monitoring.cause import Cause

_ALIKE = 0.1  # of how far the factors of a law differ at most
_CLEAR = 0.1  # of the broken law's figure, below which another law is kept
_WHY = "(a hook, clipping or a gradient rule for one tensor); scale the gradients of a model together"


def cleared_by(laws: Iterable[tuple[Law, float]], broken: float, allowed: float) -> frozenset[str]:
    """Tensors that one scaled gradient cannot be that of: they keep a balance with another, or another law is broken
    that they have no part in.

    Args:
        laws: each with its figure, and NaN where it has none.
        broken: the figure of the law that is in question.
        allowed: by rounding.
    """
    laws = [(law, figure) for law, figure in laws if len(set(law.parameters)) > 1]
    kept = [law for law, figure in laws if figure <= min(allowed, _CLEAR * broken)]
    left = [set(law.parameters) for law, figure in laws if figure > allowed]
    cleared = {name for law in kept for name in law.parameters}
    shared = set.intersection(*left) if left else set()
    if shared:
        cleared |= set.union(*left) - shared
    return frozenset(cleared)


def scaled_apart(factors: Mapping[str, float], cleared: Collection[str]) -> Cause:
    """What is said of gradients that were multiplied by different numbers, as clipping by tensor does.

    A law tells the ratios of these numbers alone. The odd tensor is the one beside others that agree: those that the
    other laws clear, or else more than half. Two tensors of one law, without another law, may both be it.

    Args:
        factors: of the tensors of one law, up to a common factor.
        cleared: from :func:`cleared_by`.
    """
    sound = _sound(factors, cleared)
    if sound:
        unit = median(factors[name] for name in sound)
        odd = {name: factor / unit for name, factor in factors.items() if name not in sound}
        by_itself = "it was scaled by itself" if len(odd) == 1 else "they were scaled by themselves"
        text = f"{_times(odd)} times what belongs to that of {_listed(sound)}: {by_itself} {_WHY}"
        return Cause(text, blamed=tuple(odd))
    first, *others = factors
    one = _alike(first, factors)
    odd = {name: factors[name] / factors[first] for name in others if name not in one}
    inverse = {name: 1 / factor for name, factor in odd.items()}
    text = (
        f"{_times(odd)} times what belongs to that of {_listed(one)}, or that of {_listed(one)} is "
        f"{_listed(_numbers(inverse))} times what belongs to that of {_listed(odd)}: one of them was scaled by itself, "
        f"and no law that is watched tells which {_WHY}"
    )
    return Cause(text, blamed=tuple(factors))


def _sound(factors: Mapping[str, float], cleared: Collection[str]) -> list[str]:
    kept = [name for name in factors if name in cleared]
    if kept and len(kept) < len(factors):
        unit = kept[0]
        return [name for name in factors if name in kept or name in _alike(unit, factors)]
    most = max((_alike(name, factors) for name in factors), key=len)
    return most if 2 * len(most) > len(factors) else []


def _alike(name: str, factors: Mapping[str, float]) -> list[str]:
    """The tensors that were multiplied by the same number as one of them."""
    apart = max(factors.values()) / min(factors.values()) - 1
    return [other for other, factor in factors.items() if abs(factor / factors[name] - 1) <= _ALIKE * apart]


def _times(odd: Mapping[str, float]) -> str:
    if len(odd) == 1:
        return f"the gradient of {_listed(odd)} is {_listed(_numbers(odd))}"
    return f"the gradients of {_listed(odd)} are {_listed(_numbers(odd))}"


def _numbers(factors: Mapping[str, float]) -> list[str]:
    return list(dict.fromkeys(f"{factor:.6g}" for factor in factors.values()))


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)
