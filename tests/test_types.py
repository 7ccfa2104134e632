"""Types that are true: the package is clean to mypy, and a user's editor sees real signatures."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

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


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[str]:
    """What mypy says of the package, and of a user's file: its first lines in order, then a mistake in each line."""
    user = tmp_path_factory.mktemp("user") / "user.py"
    user.write_text(USE + "\n".join(MISTAKES) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--hide-error-codes", "--no-pretty", "nlcompanion", str(user)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (run.stdout + run.stderr).splitlines()


def test_the_package_is_clean(said):
    errors = [line for line in said if line.startswith("nlcompanion") and ": error:" in line]
    assert not errors, "\n".join(errors)
    assert "errors in 1 file (checked " in said[-1], said


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error(said, mistake):
    line = len(USE.splitlines()) + 1 + list(MISTAKES).index(mistake)
    errors = [text for text in said if f"user.py:{line}: error:" in text]
    assert any(MISTAKES[mistake] in error for error in errors), errors


def test_right_use_is_none(said):
    assert not [
        text for text in said if any(f"user.py:{k}: error:" in text for k in range(1, len(USE.splitlines()) + 1))
    ]
