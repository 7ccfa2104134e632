"""The table: one valid call of each public function or method, and the wrong values that an argument may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wrong_values import NUMBERS, POSITIVE


@dataclass(frozen=True)
class Call:
    """A function with valid arguments by name.

    Attributes:
        right: the wrong values that an argument takes: each is answered.
        either: those that it may take or refuse, as another library or the size of the machine decides.
        untried: those that it takes and that are not tried: slow, or on the network.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    right: dict[str, set[str]] = field(default_factory=dict)
    either: dict[str, set[str]] = field(default_factory=dict)
    untried: dict[str, set[str]] = field(default_factory=dict)

    def __call__(self, **replaced: Any) -> Any:
        return self.function(**{**self.arguments, **replaced})


CALLS: dict[str, Call] = {}
UNTRIED = {
    "train": {"compiled": {"True"}},
    "kmnist": {"download": {"True"}},
    "tiny_imagenet": {"download": {"True"}},
    "vgg11": {"width": {"three"}},
}
# the data sets that are not there: the calls are valid all the same
WITHOUT_DATA = {"kmnist", "tiny_imagenet"}


def call(
    name: str,
    function: Callable[..., Any],
    right: dict[str, set[str]] | None = None,
    either: dict[str, set[str]] | None = None,
    /,
    **arguments: Any,
) -> None:
    """A row: ``name`` is that of a public function, of a class, or ``Class.method``; more words tell rows apart."""
    assert name not in CALLS, name
    CALLS[name] = Call(function, arguments, right or {}, either or {}, UNTRIED.get(name, {}))


# --- sets of wrong values that are right for many arguments -----------------------------------------------------------

NONE = {"None"}
COUNTS = {"three"}
ANY_COUNT = {"three", "a large integer", "a huge integer"}
SEEDS = {"three", "zero", "a large integer"}
FROM_ZERO = POSITIVE | {"zero"}
LAYER_INPUTS = {"empty tensor", "no rows", "another shape", "one number in a tensor", "nan inside", "half precision"}
LAYER_INPUTS |= {"with gradient"}  # a layer takes what its neighbours make
PAIRS = {"integers", "half precision"}  # two numbers, exact in any precision
BELOW_ONE = {"zero", "a half", "one number in a tensor"}
TEXTS = {"text", "digits as text", "device"}
NAMES = {"texts"}
ANY_TIME = {"t": NUMBERS}
SHIFT = {"s": NUMBERS - {"a large integer"}}
# what is linear or a loss hands NaN on, for its reader to see, and computes in the precision of its argument
HANDED_ON = {"nan inside", "half precision"}
SGD = {"lr": POSITIVE, "momentum": BELOW_ONE, "weight_decay": FROM_ZERO}
