"""Where a number comes from: versions, machine, time."""

from __future__ import annotations

import platform
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads."""
    import torch  # not before it is needed: a list of runs does without

    from nlcompanion import __version__

    return {
        "nlcompanion": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def provenance(duration: float) -> dict:
    """Versions, machine, date and duration in seconds."""
    from nlcompanion import __version__  # its own is known without an installation too

    packages = ("torch", "numpy", "scipy")
    return {
        "nlcompanion": __version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": "cpu",
        "threads": 1,
        "made": date.today().isoformat(),
        "duration_seconds": round(duration, 1),
    }
