"""The house: which part may import which, and that no import hides a name, whatever is imported first."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nlcompanion

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports({config!r}, no_cache=True))"


def lint(config: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LINT.format(config=str(config))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_wall_is_kept_and_nothing_goes_in_a_circle():
    run = lint(ROOT / "pyproject.toml")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "wall",
    [
        "type = forbidden\nsource_modules = nlcompanion.training\nforbidden_modules = nlcompanion.datasets",
        "type = layers\nlayers =\n  nlcompanion.mechanics\n  nlcompanion.dynamics",
    ],
)
def test_a_wall_that_is_not_there_is_missed(tmp_path, wall):
    """The control: imports that do happen are seen."""
    config = tmp_path / "setup.cfg"
    contract = f"[importlinter:contract:one]\nname = a wall through a room\n{wall}\n"
    config.write_text(f"[importlinter]\nroot_package = nlcompanion\n\n{contract}")
    run = lint(config)
    assert run.returncode == 1
    assert "a wall through a room BROKEN" in run.stdout


MODULES = [module.name for module in pkgutil.walk_packages(nlcompanion.__path__, "nlcompanion.")]

# each child of a process that has loaded the libraries, and nothing of ours, imports one module first
FIRST = """
import importlib, os, sys
import matplotlib.pyplot, scipy.integrate, scipy.optimize, scipy.signal, scipy.special, torch.func
torch.set_num_threads(1)
assert not [name for name in sys.modules if name.startswith("nlcompanion")]

def look(first):
    importlib.import_module(first)
    import nlcompanion
    folders = {name for name in nlcompanion.__all__ if f"nlcompanion.{name}" in MODULES}
    for name in nlcompanion.__all__:
        is_module = type(getattr(nlcompanion, name)) is type(sys)
        assert is_module == (name in folders), f"{name} is a module after import {first}: {is_module}"
    for folder in folders:
        room = getattr(nlcompanion, folder)
        for name in room.__all__:
            assert type(getattr(room, name)) is not type(sys), f"{folder}.{name} after import {first}"

for first in MODULES:
    child = os.fork()
    if not child:
        try:
            look(first)
        except BaseException as error:
            print(f"import {first}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_whatever_is_imported_first_every_public_name_is_what_it_should_be():
    modules = [name for name in MODULES if not name.endswith("__main__")]
    assert len(modules) > 60
    code = f"MODULES = {modules!r}\n{FIRST}"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
