"""The wheel: built once, installed into an environment of its own, used with no more than the base's packages."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = [
    "attr",
    "attrs",
    "pooch",
    "requests",
    "sklearn",
    "tqdm",
    "PIL",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "distributed",
]

# tqdm and pillow are no strangers to torch, which does without them
ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({LEFT_OUT!r}))
"""

A_LAW = """
import torch
import nlcompanion
from nlcompanion import Ledger, flat_loss, homogeneous_law, integrate, mlp, ntk, sgd

x, y = torch.eye(4).double(), torch.arange(4) % 2
f = flat_loss(mlp((4, 3, 2), "relu"), x, y, torch.nn.functional.cross_entropy)
law = homogeneous_law(f, layer=1)
run = integrate(sgd(lr=0.01, momentum=0.9), f, f.q0, t_span=(0, 0.1))
print(nlcompanion.__file__)
print(law.under(sgd(0.1)).residual(f, t_span=(0, 0.1), rtol=1e-10).abs().max() < 1e-8)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    run = subprocess.run([*command, "--wheel-dir", folder, ROOT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An interpreter that has the wheel, and the libraries of this one behind it."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    run = subprocess.run(install, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (own / "behind.pth").write_text(sysconfig.get_path("purelib"))
    return python


def told(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, "-c", code], cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_and_nothing_of_the_studies(python, tmp_path):
    code = """
from importlib.resources import files
import importlib.util
room = files("nlcompanion")
print([(room / name).is_file() for name in ("py.typed", "__init__.pyi", "training/__init__.pyi", "book/claims.csv")])
print([importlib.util.find_spec(name) for name in ("studies", "tools", "tests")])
"""
    run = told(python, code, tmp_path)
    assert run.stdout.splitlines() == ["[True, True, True, True]", "[None, None, None]"], run.stderr


@pytest.mark.slow
def test_laws_need_torch_numpy_and_scipy_alone(python, tmp_path):
    run = told(python, ALONE + A_LAW, tmp_path)
    assert run.returncode == 0, run.stderr
    place, holds = run.stdout.splitlines()
    assert Path(place).is_relative_to(python.parents[1].resolve()) or Path(place).is_relative_to(python.parents[1])
    assert holds == "tensor(True)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import nlcompanion as nl; nl.digits()", "training"),
        ("import nlcompanion as nl; nl.train", "training"),
        ("import nlcompanion as nl; nl.TrainConfig", "training"),
        ("import nlcompanion as nl; nl.load_sweep", "training"),
        ("from nlcompanion.book import plotting", "book"),
    ],
)
def test_what_is_left_out_is_named_with_the_extra_that_brings_it(python, tmp_path, code, extra):
    run = told(python, ALONE + code, tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("ImportError: ")
    assert f"[{extra}]'" in run.stderr


@pytest.mark.slow
def test_commands_say_which_extra_they_need(python, tmp_path):
    main = "from nlcompanion.command_line import main; raise SystemExit(main({}))"
    run = told(python, ALONE + main.format(["train", "--dry-run"]), tmp_path)
    assert (run.returncode, run.stderr.count("\n"), "[training]'" in run.stderr) == (2, 1, True), run.stderr
    for words in (["--help"], ["check", "--help"], ["check", "math:sqrt"]):  # these need none
        run = told(python, ALONE + main.format(words), tmp_path)
        assert "[training]" not in run.stderr
        assert run.returncode == (2 if words[-1] == "math:sqrt" else 0), run.stderr
