"""Values that people hand over by mistake, by name; some are right for some arguments, most for none."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import torch


def of_nothing():
    """A function that takes no argument."""


def returns_none(*arguments, **named):
    """A function of anything that returns nothing."""


def returns_text(*arguments, **named):
    return "text"


def _tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


# each is made anew for each call, since generators run out
WRONG_VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "text": lambda: "abc",
    "digits as text": lambda: "1",
    "device": lambda: "cuda:0",
    "bytes": lambda: b"1",
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "minus inf": lambda: -math.inf,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "minus a half": lambda: -0.5,
    "a half": lambda: 0.5,
    "three": lambda: 3,
    "a huge integer": lambda: 10**400,
    "a large integer": lambda: 10**12,
    "complex": lambda: 1 + 2j,
    "decimal": lambda: Decimal("0.1"),
    "complex array": lambda: np.array([1 + 1j, 2.0]),
    "complex tensor": lambda: torch.tensor([1 + 1j, 2.0]),
    "empty list": list,
    "empty tensor": lambda: torch.zeros(0, dtype=torch.float64),
    "no rows": lambda: torch.zeros(0, 2, dtype=torch.float64),
    "another shape": lambda: torch.full((2, 3, 4), 0.5, dtype=torch.float64),
    "one number in a tensor": lambda: torch.tensor(0.5, dtype=torch.float64),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "nan inside": lambda: _tensor(math.nan, 1.0),
    "inf inside": lambda: np.array([math.inf, 1.0]),
    "integers": lambda: torch.tensor([1, 2]),
    "booleans": lambda: torch.tensor([True, False]),
    "half precision": lambda: _tensor(1.0, 2.0, dtype=torch.float16),
    "with gradient": lambda: torch.full((5, 7), 0.5, dtype=torch.float64, requires_grad=True),
    "without values": lambda: torch.ones(2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "objects": lambda: np.array([object(), 1.0], dtype=object),
    "texts": lambda: ["a", "b"],
    "dict": dict,
    "set": lambda: {1.0, 2.0},
    "generator": lambda: (x for x in (1.0, 2.0)),
    "object": object,
    "slice": lambda: slice(0, 10**6),
    "class": lambda: torch.nn.Linear,
    "of nothing": lambda: of_nothing,
    "returns none": lambda: returns_none,
    "returns text": lambda: returns_text,
}

NUMBERS = {"zero", "minus one", "minus a half", "a half", "three", "a large integer", "one number in a tensor"}
POSITIVE = NUMBERS - {"zero", "minus one", "minus a half"}
FUNCTIONS = {"of nothing", "returns none", "returns text"}
