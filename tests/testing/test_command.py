"""``python -m nlcompanion check``: its exit status is the verdict."""

import sys

import pytest

from nlcompanion.command_line import main

MINE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double(), torch.randn(6, 4).double()

def kernel():
    return {"function": lambda x: x ** 2, "inputs": (torch.randn(5).double(),), "kind": "homogeneous", "degree": 1.0}

def gelu():
    return nn.GELU(), torch.randn(5)

def adamw(params):
    return torch.optim.AdamW(params, lr=0.01)

def broken():
    raise OSError("no disk")

def two(a, b):
    pass

number = 3
"""


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("mine:model", 0, "xᵀ dx = dWᵀ W"),
        ("mine:adamw", 0, "a shift shrinks"),
        ("mine:kernel", 1, "broken"),
        ("mine:gelu", 3, "cannot tell"),
        ("mine:broken", 2, "OSError: no disk"),
        ("mine:two", 2, "takes a, b"),
        ("mine:number", 2, "not a function"),
        ("mine:absent", 2, "cannot be loaded"),
        ("no_such_module:x", 2, "cannot be loaded"),
        ("mine", 2, "write package.module:factory"),
    ],
)
def test_the_exit_status_is_the_verdict(target, status, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert main(["check", target]) == status
    out, err = capsys.readouterr()
    assert said in out + err
