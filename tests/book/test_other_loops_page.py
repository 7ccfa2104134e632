"""The page "In other people's loops": each of its snippets runs, in order, against the real libraries."""

import logging
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "book" / "other_loops.md"
FRAMEWORKS = ("lightning", "accelerate", "transformers")
SHOWN = (  # what must stand in the output of each block, or how many steps its ledger must have booked
    "40 steps of AdamW",
    "1 step left out; allowed is 0.0625",
    20,
    "16 steps of AdamW",
    8,
    "20 steps of AdamW",
    "3.weight was frozen (requires_grad is off) from step 6 on",
    "ALERT broken gradient, since step 60: the gradient of 1.1.weight and 1.3.weight",
    "alerts; 44 records handed on, the last of step 200",
    "16 steps of AdamW, watched every 5",
)


def snippets():
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_snippet_of_the_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if find_spec("transformers"):  # to which the folder tests/datasets looks like the library of that name
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)
    blocks, names, missing = snippets(), {"__name__": "other_loops"}, []
    for code, shown in zip(blocks, SHOWN, strict=True):
        needed = [name for name in FRAMEWORKS if re.search(rf"^(import|from) {name}\b|= {name}\.", code, re.MULTILINE)]
        absent = [name for name in needed if find_spec(name) is None]
        if absent:
            missing += absent
            continue
        exec(compile(code, str(PAGE), "exec"), names)
        printed = capsys.readouterr().out
        assert names["ledger"].steps == shown if isinstance(shown, int) else shown in printed
    assert not list(tmp_path.iterdir())
    if missing:
        pytest.skip(f"all but the blocks of {', '.join(missing)} ran; pip install 'nlcompanion[test]'")


def test_the_page_speaks_of_each_framework():
    text = "\n".join(snippets())
    assert all(re.search(rf"^(import|from) {name}\b", text, re.MULTILINE) for name in FRAMEWORKS)
