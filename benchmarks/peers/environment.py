"""Make .venv-peers hold exactly the pins of requirements.txt, or leave it alone if it does.

The peers stand on JAX and need versions of their own, so they live beside .venv and never in it. Their Python is the
one that runs this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / ".venv-peers"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> int:
    pins = HERE / "requirements.txt"
    stamp = FOLDER / "made-from"
    wanted = f"{sys.version}\n{hashlib.sha256(pins.read_bytes()).hexdigest()}\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and PYTHON.exists():
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, with_pip=True)
    quiet = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", pins]
    status = subprocess.run(quiet, check=False).returncode
    if status == 0:
        stamp.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
