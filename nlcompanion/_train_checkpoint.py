"""Checkpoints of training runs (private): written in one move, read without running code, verified."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from nlcompanion._files import replacing, set_aside

_FORMAT = 1
_KEYS = {"format", "config", "data", "pace", "status", "epoch", "steps", "model", "momentum", "norms"} | {
    "records",
    "epochs",
    "duration",
    "watch",
}


def write(path: Path, content: dict[str, Any]) -> None:
    """Store a checkpoint; whoever is killed meanwhile leaves the one before."""
    with replacing(path) as temporary:
        torch.save({"format": _FORMAT, **content}, temporary)
    if content["status"] != "running":
        for partial in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed while they wrote
            partial.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none or a damaged one, which is renamed with a warning that names it."""
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"the checkpoint {path} is no file; name one inside it: {path / 'run.pt'}")
    try:
        return _read(path)
    except OSError:
        raise  # a disk or a permission: the file may be whole
    except Exception as error:  # zipfile and torch raise many kinds on damaged files; each means the same here
        aside = set_aside(path)
        warnings.warn(
            f"the checkpoint {path} is damaged ({error}) and was not used; it was renamed to {aside.name}, and the run "
            "starts from the beginning",
            stacklevel=4,
        )
        return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as parts:  # torch itself does not compare the checksums in its files
        if (bad := parts.testzip()) is not None:
            raise ValueError(f"its part {bad} does not have its checksum")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not content.keys() >= _KEYS:
        raise ValueError("it is a torch file, but not a checkpoint of this version")
    return content
