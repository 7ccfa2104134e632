"""The page "In other people's loops": each of its snippets runs, in order, against the real libraries."""

import logging
import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "book" / "other_loops.md"
FRAMEWORKS = ("lightning", "accelerate", "transformers")
ROUNDING = 1e-12  # what is left of an account: the last bits, and every processor's own
CLOSE = 0.05  # relative, of all other numbers: the loops train in float32
OF_ROUNDING = "0.0.bias"  # a bias before a normalisation: its gradient is rounding, and all figures of it with that


def snippets():
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def outputs():
    """What the page says that each snippet prints."""
    return re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def is_number(word):
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def words_of(text):
    lines = [line for line in text.splitlines() if OF_ROUNDING not in line]
    return [word.strip(",;()[]") for word in "\n".join(lines).split()]


def same(said, printed):
    """Whether two texts agree word by word; numbers closely, or both as rounding."""
    said_words, printed_words = words_of(said), words_of(printed)
    pairs = list(zip(said_words, printed_words, strict=False))
    numbers = [(float(a), float(b)) for a, b in pairs if is_number(a) and is_number(b)]
    words = [(a, b) for a, b in pairs if not (is_number(a) and is_number(b))]
    close = all(math.isclose(a, b, rel_tol=CLOSE, abs_tol=ROUNDING) for a, b in numbers)
    return len(said_words) == len(printed_words) and close and all(a == b for a, b in words)


def test_every_snippet_of_the_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if find_spec("transformers"):  # to which the folder tests/datasets looks like the library of that name
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    blocks, names, missing = snippets(), {"__name__": "other_loops"}, []
    for code, said in zip(blocks, outputs(), strict=True):
        needed = [name for name in FRAMEWORKS if re.search(rf"^(import|from) {name}\b|= {name}\.", code, re.MULTILINE)]
        absent = [name for name in needed if find_spec(name) is None]
        if absent:
            missing += absent
            continue
        exec(compile(code, str(PAGE), "exec"), names)
        lines = capsys.readouterr().out.splitlines()
        printed = "\n".join(line for line in lines if not line.startswith("{"))  # the trainer's own record, with times
        assert same(said, printed), f"the page shows\n{said}\nand the snippet prints\n{printed}"
    assert not list(tmp_path.iterdir())
    if missing:
        pytest.skip(f"all but the blocks of {', '.join(missing)} ran; pip install 'nlcompanion[test]'")


def test_the_page_speaks_of_each_framework():
    text = "\n".join(snippets())
    assert all(re.search(rf"^(import|from) {name}\b", text, re.MULTILINE) for name in FRAMEWORKS)


def test_outputs_are_compared_word_by_word():
    assert same("40 steps 1.00 3e-17", "40 steps 1.01 -2e-16")
    assert not same("40 steps 1.00", "40 steps 1.20")
    assert not same("40 steps", "40 steps more")
    assert not same("a residual 3e-17", "a residual 3e-7")
