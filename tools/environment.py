"""Make .venv hold exactly the pins and this package, or leave it alone if it does.

Runs on the reader's own Python before anything is installed, so it needs nothing but the standard library.

A stamp inside .venv, written last, says which Python, folder, pins and project file it was made from. Whatever
differs from that, or is missing from the installed files, is not trusted: .venv is made anew. Only a change of
pyproject.toml alone is cheaper, since the package itself is installed without its dependencies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM = (3, 11)
STAMP = "nlcompanion-installed.json"

# Every file that pip recorded must be there; compiled files may come and go. Prints the first ones missing.
_AUDIT = """
import os
from importlib.metadata import distributions
files = (d.locate_file(f) for d in distributions() for f in d.files or () if f.suffix != ".pyc")
print(*[os.fspath(f) for f in files if not os.path.exists(f)][:3], sep=os.linesep)
"""


def wanted(root: Path) -> dict[str, str]:
    """What an environment of this folder must have been made from."""
    return {
        "python": f"{sys.version} in {os.path.realpath(sys.base_prefix)}",  # the same from inside .venv
        "folder": str(root.resolve()),  # scripts inside .venv carry their absolute path
        "requirements": hashlib.sha256((root / "requirements.txt").read_bytes()).hexdigest(),
        "project": hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest(),
    }


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def installed(venv: Path) -> dict[str, str]:
    """The stamp of a finished installation, or an empty dictionary."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def missing_files(venv: Path) -> list[str]:
    """Up to three installed files that are gone; the interpreter itself counts as one."""
    python = python_of(venv)
    try:
        run = subprocess.run([python, "-c", _AUDIT], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [str(python)]
    return run.stdout.split("\n")[:-1] if run.stdout.strip() else []


def state(venv: Path, want: dict[str, str]) -> tuple[str, str]:
    """What is to be done, ``nothing``, ``package`` or ``everything``, and why."""
    have = installed(venv)
    if not have:
        return "everything", "an installation that never finished" if venv.exists() else "no environment yet"
    changed = sorted(key for key in want if have.get(key) != want[key])
    if changed not in ([], ["project"]):
        return "everything", f"made from another {' and '.join(key for key in changed if key != 'project')}"
    gone = missing_files(venv)
    if gone:
        return "everything", f"{gone[0]} is gone"
    return ("package", "pyproject.toml changed") if changed else ("nothing", "")


def make(venv: Path, root: Path) -> None:
    """Bring ``venv`` up to date; raises ``CalledProcessError`` when pip or venv fail."""
    want = wanted(root)
    todo, why = state(venv, want)
    if todo == "nothing":
        return
    pip = [str(python_of(venv)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    (venv / STAMP).unlink(missing_ok=True)  # from here on it counts as unfinished
    if todo == "everything":
        print(f"Making {venv.name} ({why}); the first time this downloads PyTorch.", flush=True)
        if venv.is_symlink():
            venv.unlink()
        elif venv.exists():
            shutil.rmtree(venv)
        # Not sys.executable: that may be the very .venv that was just removed.
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([base, "-m", "venv", str(venv)], check=True)
        subprocess.run([*pip, "--requirement", "requirements.txt"], cwd=root, check=True)
    else:
        print(f"Reinstalling the package ({why}).", flush=True)
    subprocess.run([*pip, "--no-deps", "--editable", "."], cwd=root, check=True)
    unfinished = venv / (STAMP + ".part")
    unfinished.write_text(json.dumps(want, indent=1), encoding="utf-8")
    os.replace(unfinished, venv / STAMP)


def main() -> int:
    if sys.version_info < MINIMUM:
        need, have = ".".join(map(str, MINIMUM)), ".".join(map(str, sys.version_info[:3]))
        print(
            f"nlcompanion needs Python {need} or newer, {sys.executable} is {have}; "
            "name a newer one, for example: make book PYTHON=python3.12",
            file=sys.stderr,
        )
        return 1
    try:
        make(ROOT / ".venv", ROOT)
    except subprocess.CalledProcessError as error:
        print(
            f"The environment was not finished: {' '.join(map(str, error.cmd[1:5]))} ... "
            f"ended with status {error.returncode}; its message stands above. "
            "Mend the cause and run the same command again: nothing half-made is used, .venv is made anew.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Interrupted: nothing half-made is used, the next command makes .venv anew.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
