"""Types that are true: package and studies are clean to mypy, and a user's editor sees real signatures."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nlcompanion

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["nlcompanion", "studies"]

USE = """\
import nlcompanion as nl

rule: nl.LearningRule = nl.sgd(0.1)
run: nl.Trajectory = nl.integrate(rule, lambda q: q @ q, [1.0], t_span=(0, 1))
config: nl.TrainConfig = nl.TrainConfig(lr=0.1)
"""

MISTAKES = {
    "nl.integrate(1, 2, 3, nonsense=4)": 'Unexpected keyword argument "nonsense"',
    "nl.sgd(lr='fast')": 'Argument "lr" to "sgd" has incompatible type "str"',
    "nl.sgd(0.1).steps.memory_of(1)": 'Item "None" of "Steps | None" has no attribute "memory_of"',
    "nl.teleport": 'Module has no attribute "teleport"',
    "nl.TrainConfig(learning_rate=0.1)": 'Unexpected keyword argument "learning_rate"',
    "nl.training.trian": 'Module has no attribute "trian"',
}
# these return callbacks of other libraries, which mypy is told not to read here
OF_OTHERS = {"hugging_face_callback", "lightning_callback"}
TYPES = [f"reveal_type(nl.{name})" for name in nlcompanion.__all__ if name not in OF_OTHERS]
LINES = [*USE.splitlines(), *MISTAKES, *TYPES]


def mypy(*arguments: object) -> list[str]:
    command = [sys.executable, "-m", "mypy", "--hide-error-codes", "--no-pretty", *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (run.stdout + run.stderr).splitlines()


def at(line: str, said: list[str]) -> list[str]:
    """What is said of one line of the user's file."""
    return [text for text in said if f"user.py:{LINES.index(line) + 1}: " in text]


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """Right use, then a mistake in each line, then every public name."""
    file = tmp_path_factory.mktemp("user") / "user.py"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def said(user) -> list[str]:
    """What mypy says of the package and of that file."""
    return mypy(*FOLDERS, user)


@pytest.fixture(scope="module")
def said_without_the_stub(user, tmp_path_factory) -> list[str]:
    """The control: what it says of the file where the package is its lazy exports alone."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "nlcompanion").mkdir()
    shutil.copy(ROOT / "nlcompanion" / "__init__.py", folder / "nlcompanion")
    shutil.copy(user, folder)
    command = [sys.executable, "-m", "mypy", "--hide-error-codes", "--no-pretty", "--ignore-missing-imports", "user.py"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return run.stdout.splitlines()


def test_the_package_is_clean(said):
    errors = [line for line in said if line.startswith(tuple(FOLDERS)) and ": error:" in line]
    assert not errors, "\n".join(errors)
    assert "errors in 1 file (checked " in said[-1], said


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error(said, mistake):
    assert any(MISTAKES[mistake] in text for text in at(mistake, said)), at(mistake, said)


def test_right_use_is_none(said):
    assert not [text for line in USE.splitlines() if line for text in at(line, said) if ": error:" in text]


@pytest.mark.parametrize("name", [name for name in nlcompanion.__all__ if name not in OF_OTHERS])
def test_a_public_name_has_a_type(said, name):
    (text,) = at(f"reveal_type(nl.{name})", said)
    revealed = re.search(r'Revealed type is "(.*)"$', text)[1]
    assert revealed.startswith(("def (", "types.ModuleType")), revealed
    assert not revealed.endswith("-> Any"), revealed


def test_without_the_stub_every_name_would_be_any_and_no_mistake_an_error(said_without_the_stub):
    said = said_without_the_stub
    assert said[-1].startswith("Success"), said
    for line in TYPES:
        assert at(line, said)[0].endswith('Revealed type is "Any"')
    assert not [text for mistake in MISTAKES for text in at(mistake, said)]
