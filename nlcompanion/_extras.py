"""What the base installation leaves out: errors that name the extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages that come with an extra.

    Raises:
        ImportError: a package is missing; the message names it and the command that brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ImportError(
            f"{package} is not installed, which comes with the extra {extra!r} of nlcompanion: "
            f"pip install 'nlcompanion[{extra}]'"
        ) from error
