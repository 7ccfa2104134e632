"""What a diagnosis says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why a law was left.

    Attributes:
        text: the cause, and what to do about it, in one sentence.
        blamed: the tensors where it lies, if it says so; several where it cannot tell which.
        is_evident: whether it rests on evidence of one cause, and not on the lack of any.
    """

    text: str
    blamed: tuple[str, ...] = ()
    is_evident: bool = True
