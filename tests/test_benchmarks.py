"""The benchmarks fit the package as it stands; what they measure is not judged here."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("bench_*.py"))


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """As when one of them is the script."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("bench_", "_timing", "_torchdiffeq", "_digit_loop")):
            del sys.modules[name]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_finds_what_it_imports(name):
    if name in ("bench_flow_large", "bench_flow_small"):
        pytest.importorskip("torchdiffeq", reason="the extra `bench` brings it")
    assert callable(importlib.import_module(name).main)


def test_each_is_in_the_table():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in BENCHMARKS if f"| `{name}` |" not in text] == []


def test_the_gpu_benchmark_steps_without_one():
    """Its stepper on the CPU, where nothing is captured: the same calls of the package."""
    gpu = importlib.import_module("bench_training_gpu")
    made = gpu.stepper(2, compiled=False, count=4, device_name="cpu")
    step = gpu.step(made)
    step()
    first = made.losses.clone()
    step()
    assert made.finite()
    assert first[0] > 0
    assert made.losses[0] != first[0]  # of the same batch, after a step


def test_the_operations_of_the_gpu_benchmark_are_counted():
    """Of VGG-11 on 64 x 64, layer by layer: 2 x 9 x inputs x outputs x pixels, and the classifier's product."""
    gpu = importlib.import_module("bench_training_gpu")
    widths, sides = (3, 64, 128, 256, 256, 512, 512, 512, 512), (64, 32, 16, 16, 8, 8, 4, 4)
    forward = [18 * i * o * side**2 for i, o, side in zip(widths, widths[1:], sides, strict=False)] + [2 * 512 * 200]
    assert gpu.operations(gpu.vgg11(200, size=64)) == 3 * sum(forward) - forward[0]
