"""The table of planted bugs fits the code, and what plants them tells a bug that is noticed from one that is not."""

import ast
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tools.planted_bugs import ROOT, SURVIVES, Bug, bugs, hunt

ALL = bugs()
FORMULAS = (
    *("mechanics", "dynamics", "symmetries", "noether", "networks", "laws"),
    *("adaptivity", "monitoring", "testing", "datasets", "training"),
)


def test_each_bug_fits_the_code_as_it_stands():
    misfits = []
    for bug in ALL:
        try:
            bug.planted(ROOT)
        except (OSError, ValueError) as error:
            misfits.append(str(error))
    assert not misfits, "\n".join(misfits)


def test_each_bug_has_a_reason_and_is_another_one():
    assert all(bug.why for bug in ALL)
    assert Counter((bug.file, bug.old, bug.new) for bug in ALL).most_common(1)[0][1] == 1


@cache
def functions_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_the_tests_that_have_to_notice_are_there():
    for bug in ALL:
        assert bug.tests, bug.name
        for test in bug.tests:
            file, *names = test.split("::")
            assert (ROOT / file).is_file(), f"{bug.name}: there is no {file}"
            assert set(names) <= functions_in(ROOT / file), f"{bug.name}: there is no {test}"


def test_the_tests_that_have_to_notice_mirror_the_bugs_folder():
    for bug in ALL:
        folder = Path(bug.file).relative_to("nlcompanion").parts[0]
        if (ROOT / "tests" / folder).is_dir():
            assert all(Path(test).parts[1] == folder for test in bug.tests), bug.name


def test_every_part_with_formulas_has_its_bugs():
    count = Counter(Path(bug.file).parts[1] for bug in ALL)
    assert len(ALL) >= 100
    assert min(count[part] for part in FORMULAS) >= 10, count


# --- the hunt --------------------------------------------------------------------------------------------------------

HALF = Bug(
    "half", "nlcompanion/energy.py", "0.5 * v", "v", "the factor of the kinetic energy", ("tests/test_energy.py",)
)


@pytest.fixture
def project(tmp_path):
    for folder in ("nlcompanion", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nlcompanion" / "__init__.py").touch()
    (tmp_path / "nlcompanion" / "energy.py").write_text("def kinetic(v):\n    return 0.5 * v * v\n")
    return tmp_path


@pytest.mark.parametrize(("speed", "verdict"), [(2, "tests/test_energy.py::test_kinetic"), (0, SURVIVES)])
def test_a_bug_is_noticed_or_survives(project, speed, verdict):
    """The same bug twice: at rest nobody sees the factor."""
    sound = (project / HALF.file).read_text()
    test = f"def test_kinetic():\n    assert kinetic({speed}) == {speed**2 / 2}\n"
    test = f"from nlcompanion.energy import kinetic\n\n{test}"
    (project / "tests" / "test_energy.py").write_text(test)
    name, file, caught, _ = hunt(HALF, project)
    assert (name, file, caught) == ("half", "energy.py", verdict)
    assert (project / HALF.file).read_text() == sound


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old": "v", "new": "u"}, "stands 3 times"),
        ({"old": "0.25 * v"}, "stands 0 times"),
        ({"new": "0.5 *"}, "is no Python"),
        ({"new": "(0.5 * v)"}, "is the same program"),
    ],
)
def test_a_bug_that_does_not_fit_is_refused(project, change, words):
    with pytest.raises(ValueError, match=words):
        replace(HALF, **change).planted(project)
