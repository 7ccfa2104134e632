"""The README: what it tells to type is there and runs. What its code prints is held against it in tests/pages."""

import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from nlcompanion.command_line import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUICK = ["--epochs", "1", "--subset", "64", "--batch-size", "32", "--width", "0.5", "--seed", "0"]

# lines to type: in blocks without a language, or between backticks
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED.findall(TEXT + CONTRIBUTING) if not language]
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
LINES += re.findall(r"`([^`\n]+)`", FENCED.sub("", TEXT + CONTRIBUTING))
LINES = [line for line in LINES if re.match(r"([A-Z_]+=\S+ )?(make|pip|python|pytest|jupyter)\b", line)]
OURS = [line for line in LINES if line.startswith("python -m nlcompanion ")]


def words_after(*start: str) -> list[list[str]]:
    """What follows in the lines that begin so, settings of the environment apart."""
    found = []
    for line in LINES:
        words = [word for word in shlex.split(line, posix=True) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if tuple(words[: len(start)]) == start:
            found.append(words[len(start) :])
    return found


def test_the_lines_to_type_are_found():
    assert len(OURS) == 3
    assert ["book"] in words_after("make")
    assert ["tools.build"] in words_after("python", "-m")


def test_every_target_of_make_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[0] for words in words_after("make") if words} <= targets


def test_every_module_that_is_run_is_there():
    modules = {words[0] for words in words_after("python", "-m")} - {"venv"}
    assert all(find_spec(module) for module in modules)


def test_every_file_that_is_read_is_there():
    files = [words[k + 1] for words in words_after("pip", "install") for k, word in enumerate(words) if word == "-r"]
    assert files
    assert all((ROOT / file).is_file() for file in files)


def test_every_extra_is_one():
    extras = set(re.findall(r"'?(?:nlcompanion|\.)\[([a-z,]+)\]", TEXT))
    assert extras
    assert extras <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("line", [line for line in OURS if " check " not in line])
def test_its_runs_run(line, tmp_path, monkeypatch, capsys):
    """With fewer epochs, samples and seeds: the later of two options holds."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[3:]
    if "--workers" in words:
        words[words.index("--workers") + 1] = "1"
    assert main([*words, *QUICK]) == 0
    runs = {"train": 1, "sweep": 3}[words[0]]
    assert len(list((tmp_path / "runs").glob("*.json"))) == runs


def test_its_check_checks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(
        "import torch\ndef factory(params):\n    return torch.optim.AdamW(params, lr=1e-3)\n"
    )
    (line,) = [line for line in OURS if " check " in line]
    assert main(shlex.split(line)[3:]) == 0
