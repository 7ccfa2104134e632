"""Write requirements.txt: the newest versions that fit pyproject.toml, pinned, for every platform.

Run it with the oldest Python the project supports, so that the pins install on all of them::

    python3.11 -m venv /tmp/pin && /tmp/pin/bin/pip install packaging && /tmp/pin/bin/python tools/pin.py torch==2.13.0

Arguments are constraints for pip. It installs everything into a throw-away environment, freezes it, and adds the
packages that only another platform needs, each with its marker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ROOTS = (("nlcompanion", ("bench", "book", "dask", "test", "training")), ("jupytext", ()))
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
TAGS = {"linux": "manylinux2014_x86_64", "darwin": "macosx_11_0_arm64", "win32": "win_amd64"}
HEADER = """\
# Exactly what the book is built and tested with, transitive packages included.
# Written by tools/pin.py from the ranges in pyproject.toml; edit those, not this file.
# On Linux a plain install takes PyTorch with CUDA; README.md has the line for a smaller one.
"""
_METADATA = """
import json
from importlib.metadata import distributions
print(json.dumps({d.metadata["Name"]: [d.version, d.requires or []] for d in distributions()}))
"""

Installed = dict[str, tuple[str, list[str]]]


def closure(installed: Installed, platform: str) -> set[str]:
    """Names of everything that ``ROOTS`` need on a platform, as far as the metadata at hand tell."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    todo = [(canonicalize_name(name), extras) for name, extras in ROOTS]
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        for line in installed.get(item[0], ("", []))[1]:
            need = Requirement(line)
            environments = ({**PLATFORMS[platform], "extra": extra} for extra in item[1] or ("",))
            if need.marker is None or any(map(need.marker.evaluate, environments)):
                todo.append((canonicalize_name(need.name), tuple(sorted(need.extras))))
    return {name for name, _ in seen} - {"nlcompanion", "pip"}


def newest(pip: list[str], name: str, platform: str) -> str:
    """The newest version of a package that this machine cannot install."""
    where = ["--platform", TAGS[platform], "--only-binary=:all:", "--target", "unused", "--no-deps"]
    run = [*pip, "--quiet", "--dry-run", *where, "--report", "-", name]
    report = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return report["install"][0]["metadata"]["version"]


def pins(constraints: list[str]) -> list[str]:
    """Install, look, and return the lines of requirements.txt."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder, "Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
        name, extras = ROOTS[0]
        others = [name for name, _ in ROOTS[1:]]
        subprocess.run([*pip, "--quiet", *constraints, f"{ROOT}[{','.join(extras)}]", *others], check=True)
        output = subprocess.run([python, "-c", _METADATA], check=True, capture_output=True, text=True).stdout
        installed: Installed = {canonicalize_name(k): (v[0], v[1]) for k, v in json.loads(output).items()}
        needed = {platform: closure(installed, platform) for platform in PLATFORMS}
        lines = []
        for name in sorted(set().union(*needed.values())):
            on = [platform for platform in PLATFORMS if name in needed[platform]]
            version = installed[name][0] if name in installed else newest(pip, name, on[0])
            lines.append(f"{name}=={version.partition('+')[0]}{marker(on)}")
    return lines


def marker(platforms: list[str]) -> str:
    """The environment marker for a package needed on these platforms, empty for all.

    >>> marker(["win32"]), marker(["linux", "darwin"]), marker(["linux", "darwin", "win32"])
    (' ; sys_platform == "win32"', ' ; sys_platform != "win32"', '')
    """
    absent = sorted(set(PLATFORMS) - set(platforms))
    if not absent:
        return ""
    if len(absent) == 1:
        return f' ; sys_platform != "{absent[0]}"'
    return f' ; sys_platform == "{platforms[0]}"'


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(HEADER + "\n".join(pins(sys.argv[1:])) + "\n", encoding="utf-8")
