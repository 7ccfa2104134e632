"""Valid calls of ``nlcompanion.book``."""

from wrong_values import NUMBERS

from calls.table import NONE, PAIRS, call
from nlcompanion import book

MANY_NUMBERS = {"another shape", "ragged", "with gradient", "set", "generator"}
call(
    "claim",
    book.claim,
    {"measured": {"zero"}, "control": NONE | NUMBERS - {"zero"} | PAIRS | MANY_NUMBERS},
    id="gu-31",
    measured=[1e-9, -1e-9],
    control=0.3,
)
