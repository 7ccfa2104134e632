"""Checkpoints of training runs (private): written in one move, read without running code, verified."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from nlcompanion._storage import replacing, set_aside

_FORMAT = 1
_PARTS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "data": dict,
    "pace": list,
    "status": str,
    "epoch": int,
    "steps": int,
    "model": dict,
    "momentum": (list, tuple),
    "norms": (list, tuple),
    "records": dict,
    "epochs": list,
    "duration": (float, int),
    "watch": object,
}


def write(path: Path, content: dict[str, Any]) -> None:
    """Store a checkpoint; whoever is killed meanwhile leaves the one before."""
    with replacing(path) as temporary:
        try:
            torch.save({"format": _FORMAT, **content}, temporary)
        except RuntimeError as error:  # torch's own writer, whose words about a full disk do not name it
            reason = str(error).partition("\n")[0]
            raise OSError(f"the checkpoint {path} could not be written ({reason}); is the disk full?") from error
        if content["watch"] is not None:
            _readable(temporary)
    if content["status"] != "running":
        for partial in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed while they wrote
            partial.unlink(missing_ok=True)


def _readable(path: Path) -> None:
    """Raise TypeError if the watch's state, the one part that is not ours, could not be read without running code."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TypeError(
            "the state_dict of watch holds more than tensors, numbers, texts, lists and dictionaries, and a checkpoint "
            f"with it could not be read again without running code ({_culprit(error)}); convert it to those"
        ) from error


def _culprit(error: Exception) -> str:
    found = re.search(r"Unsupported (?:global|class|operand)\S* .*?(?= was not| Please|$)", str(error))
    return found.group() if found else str(error).partition("\n")[0]


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
    if not isinstance(content, dict) or content.get("format") != _FORMAT or not content.keys() >= _PARTS.keys():
        raise ValueError("it is a torch file, but not a checkpoint of this version")
    odd = [name for name, kind in _PARTS.items() if not isinstance(content[name], kind)]
    odd += [name for name in ("epoch", "steps", "duration") if name not in odd and not content[name] >= 0]
    if odd or content["status"] not in ("running", "finished", "diverged"):
        raise ValueError(f"no run leaves such values of {', '.join(odd or ['status'])}")
    return content
