"""The package's tests with the oldest and with the newest versions of what it stands on.

``python -m tools.versions [oldest] [newest] [--python PATH] [-- PYTEST ARGUMENTS]``. *Oldest* takes the lowest torch,
NumPy and SciPy that ``pyproject.toml`` allows, under Python 3.11; *newest* all that can be had now, under the newest
Python of this machine. Each has an environment of its own, ``.venv-oldest`` and ``.venv-newest``. The table at the end
says what was had; what could not be had stands there too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
PYTHONS = [(3, minor) for minor in range(20, 10, -1)]
SUBJECTS = ("torch", "numpy", "scipy")  # whose oldest versions are asked for; the rest may be newer
EXTRAS = "training,dask,test"
TESTS = ("tests", "nlcompanion", *(f"--ignore={part}" for part in ("tests/book", "tests/pages", "nlcompanion/book")))

_VERSIONS = """
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), *map(version, ("torch", "numpy", "scipy"))]))
"""


class NotHad(RuntimeError):
    """An interpreter or a package that this machine cannot get; the message says which, and why."""


def lower_bounds() -> list[str]:
    """``torch==2.9`` and its like: the lowest version of each subject that the project file allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = []
    for need in map(Requirement, project["dependencies"]):
        if need.name in SUBJECTS:
            lowest = [part.version for part in need.specifier if part.operator == ">="]
            bounds.append(f"{need.name}=={lowest[0]}")
    return bounds


def interpreter(version: tuple[int, int]) -> str | None:
    """The path of a Python of this version that runs, or None."""
    name = f"python{version[0]}.{version[1]}"
    candidates = [shutil.which(name), *Path.home().glob(f".pyenv/versions/{version[0]}.{version[1]}.*/bin/python")]
    for path in filter(None, candidates):
        try:
            if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                return str(path)
        except OSError:
            continue
    return None


def pythons(kind: str) -> list[str]:
    """The interpreters to try, the wanted one first."""
    wanted = [OLDEST_PYTHON] if kind == "oldest" else PYTHONS
    found = [path for version in wanted if (path := interpreter(version))]
    if not found:
        raise NotHad(f"no Python {'.'.join(map(str, wanted[0]))} runs here; name one with --python PATH")
    return found


def environment(kind: str, python: str) -> Path:
    """Make the environment anew and return its interpreter.

    Raises:
        NotHad: pip could not install; says what it said last.
    """
    folder = ROOT / f".venv-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    bounds = lower_bounds() if kind == "oldest" else []
    command = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += [*bounds, "--editable", f"{ROOT}[{EXTRAS}]"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        last = (installed.stderr.strip().splitlines() or ["no word from pip"])[-1]
        raise NotHad(f"{Path(python).name}: {last}")
    return inside


def run(kind: str, python: str | None, arguments: Sequence[str]) -> list[list[str]]:
    """Rows of the table: what could not be had, then what was tested."""
    rows, began = [], time.perf_counter()
    for candidate in [python] if python else pythons(kind):
        try:
            inside = environment(kind, candidate)
            break
        except NotHad as error:
            rows.append([kind, f"could not be had: {error}", "", ""])
    else:
        return rows
    had = json.loads(subprocess.run([inside, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | threads
    command = [str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=surroundings).returncode
    names = ("Python", *SUBJECTS)
    versions = ", ".join(f"{name} {version}" for name, version in zip(names, had, strict=True))
    verdict = "green" if status == 0 else f"FAILED (pytest's status {status})"
    return [*rows, [kind, versions, verdict, f"{(time.perf_counter() - began) / 60:.1f}"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Test the named kinds, or both; 1 if one is not green or could not be had at all."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="oldest or newest; both when none is named")
    parser.add_argument("--python", help="the interpreter to use, instead of the one that is looked for")
    options = parser.parse_args(words[:split])
    kinds = options.kinds or ["oldest", "newest"]
    if unknown := set(kinds) - {"oldest", "newest"}:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are oldest and newest")
    rows = [row for kind in kinds for row in run(kind, options.python, words[split + 1 :])]
    print(tabulate(rows, ("", "versions", "verdict", "minutes"), tablefmt="github", disable_numparse=True))
    return int(sum(row[2] == "green" for row in rows) < len(kinds))


if __name__ == "__main__":
    raise SystemExit(main())
