"""What a command line names as ``package.module:name``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from nlcompanion._terminal import Mistake


def load(target: str) -> Callable[..., Any]:
    """The function that ``package.module:name`` names; the current folder is searched too."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise Mistake(f"{target!r} names no factory; write package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Mistake(f"{target} cannot be loaded: {error}") from error
    if not callable(found):
        raise Mistake(f"{target} is {type(found).__name__}, not a function that makes what is examined")
    return found
