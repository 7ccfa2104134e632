"""What the chapters use: claims and their verdicts, stored results, figures, sliders. The library never imports it."""

from importlib import import_module

from nlcompanion.book.claims import ClaimError, claim

__all__ = ["ClaimError", "claim"]


def __getattr__(name: str):
    if name not in ("explorers", "plotting", "results"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{__name__}.{name} draws the book's figures with {error.name}, which the package alone does not "
            "install: pip install '.[book]' in its folder brings it"
        ) from error
