"""The package as a whole: light to import, complete, typed."""

import importlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import nlcompanion


def test_import_loads_neither_torch_nor_scipy():
    code = (
        "import sys, nlcompanion; dir(nlcompanion); print([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", nlcompanion.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(nlcompanion, name)
    if callable(value):
        assert value.__doc__, f"{name} has no docstring"
        assert value.__module__.startswith("nlcompanion.")


def test_every_listed_name_is_in_its_modules_all():
    for module, names in nlcompanion._EXPORTS.items():
        listed = importlib.import_module(f"nlcompanion.{module}").__all__
        assert set(names) <= set(listed), module


def test_public_functions_carry_an_example():
    missing = [
        name
        for name in nlcompanion.__all__
        if callable(getattr(nlcompanion, name))
        and not isinstance(getattr(nlcompanion, name), type)
        and ">>>" not in getattr(nlcompanion, name).__doc__
    ]
    assert not missing


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        nlcompanion.teleport  # noqa: B018


def test_typed_and_versioned():
    assert (files("nlcompanion") / "py.typed").is_file()
    assert nlcompanion.__version__.count(".") == 2


def test_code_and_notebooks_are_clean():
    root = Path(__file__).resolve().parents[1]
    for arguments in (["check", "."], ["format", "--check", "."]):
        run = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=root, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
