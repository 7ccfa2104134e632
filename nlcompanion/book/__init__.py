"""What the chapters use: claims and their verdicts, stored results, figures, sliders. The library never imports it."""

from importlib import import_module

from nlcompanion._extras import needs
from nlcompanion.book.claims import ClaimError, claim

__all__ = ["ClaimError", "claim"]


def __getattr__(name: str):
    if name not in ("explorers", "plotting", "results"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs("book"):
        return import_module(f"{__name__}.{name}")
