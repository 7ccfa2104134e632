"""``python -m nlcompanion audit``."""

import json
import sys

import pytest

from nlcompanion.command_line import main

MINE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    x, y = torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), x, y, nn.functional.cross_entropy

def own():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).square().mean()
    return Own(3, 2), torch.randn(5, 3)

def nothing():
    return nn.ReLU(), torch.randn(3), None, torch.sum

def wrong():
    return nn.Linear(2, 2)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_audited.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("mine_audited", None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine_audited:net"], "balance with a source"),
        (["mine_audited:net", "--optimizer", "sgd:lr=0.1,momentum=0.9,nesterov=true"], "under SGD"),
        (["mine_audited:net", "--optimizer", "AdamW:lr=1e-3,weight_decay=0.01"], "not conserved by AdamW"),
        (["mine_audited:own", "--seed", "3"], "weight decay"),
    ],
)
def test_it_prints_the_table(words, says, capsys):
    assert main(["audit", *words]) == 0
    assert says in capsys.readouterr().out


def test_json(capsys):
    assert main(["audit", "mine_audited:net", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine_audited"], "names no factory"),
        (["mine_audited:missing"], "cannot be loaded"),
        (["mine_audited:wrong"], "return (model, inputs, targets, loss)"),
        (["mine_audited:nothing"], "no trained parameter"),
        (["mine_audited:net", "--optimizer", "adamx"], "did you mean adamax?"),
        (["mine_audited:net", "--optimizer", "sgd:lr"], "write key=value"),
        (["mine_audited:net", "--optimizer", "sgd:rate=1"], "makes no optimizer"),
    ],
)
def test_mistakes_are_told_in_a_line(words, says, capsys):
    assert main(["audit", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
