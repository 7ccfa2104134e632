"""The house: which part may import which, and that no import hides a name, whatever is imported first."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

import nlcompanion

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports({config!r}, no_cache=True))"


def lint(config: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", LINT.format(config=str(config))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_wall_is_kept_and_nothing_goes_in_a_circle():
    run = lint(ROOT / "pyproject.toml")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "wall",
    [
        "type = forbidden\nsource_modules = nlcompanion.training\nforbidden_modules = nlcompanion.datasets",
        "type = layers\nlayers =\n  nlcompanion.mechanics\n  nlcompanion.dynamics",
    ],
)
def test_a_wall_that_is_not_there_is_missed(tmp_path, wall):
    """The control: imports that do happen are seen."""
    config = tmp_path / "setup.cfg"
    contract = f"[importlinter:contract:one]\nname = a wall through a room\n{wall}\n"
    config.write_text(f"[importlinter]\nroot_package = nlcompanion\n\n{contract}")
    run = lint(config)
    assert run.returncode == 1
    assert "a wall through a room BROKEN" in run.stdout


# --- private names ---------------------------------------------------------------------------------------------------

# torch's and NamedTuple's, where a name of ours is the same
OF_OTHERS = {"_version", "_replace", "_buffers", "_parameters"}


@cache
def sources() -> dict[str, str]:
    """Every module of the repository but the tests, by its path."""
    paths = [path for part in ("nlcompanion", "studies", "tools", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def nodes_of(source: str) -> list[ast.AST]:
    """All that makes, imports or takes a name."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Name, ast.Attribute, ast.ImportFrom)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def defined(nodes: Iterable[ast.AST]) -> set[str]:
    """The private names that a module makes: functions, classes, variables, attributes."""
    names = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if is_private(name)}


def trespasses(modules: Mapping[str, str]) -> list[str]:
    """Where a module takes a private name, or a private module, from another folder than its own.

    The underscored modules at the top of the package serve all of it.
    """
    nodes = {path: nodes_of(source) for path, source in modules.items()}
    makers: dict[str, set[str]] = {}
    for path, found_there in nodes.items():
        for name in defined(found_there):
            makers.setdefault(name, set()).add(path.rpartition("/")[0])
    found = []
    for path, found_there in nodes.items():
        folder = path.rpartition("/")[0]
        for node in found_there:
            match node:
                case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in (
                    "nlcompanion",
                    "studies",
                ):
                    home, _, last = module.rpartition(".")
                    foreign = home.replace(".", "/") != folder and module.replace(".", "/") != folder
                    taken = [name.name for name in names if is_private(name.name)]
                    if foreign and (taken or (is_private(last) and home != "nlcompanion")):
                        found.append(f"{path}: from {module} import {', '.join(name.name for name in names)}")
                case ast.Attribute(attr=name) if is_private(name) and name not in OF_OTHERS:
                    if makers.get(name) and folder not in makers[name]:
                        found.append(f"{path}: {ast.unparse(node)}")
    return found


def test_private_names_stay_in_their_folder():
    assert trespasses(sources()) == []


def test_a_private_name_that_leaves_its_folder_is_seen():
    """The control."""
    modules = {
        "nlcompanion/_help.py": "def check(): ...",
        "nlcompanion/laws/law.py": "class Law:\n    def _of(self): ...",
        "nlcompanion/laws/near.py": "from nlcompanion._help import check\nfrom nlcompanion.laws.law import _x\nlaw._of",
        "nlcompanion/laws/_deep.py": "y = 1",
        "nlcompanion/far/one.py": "law._of()\nself._own = 1\nself._own",
        "nlcompanion/far/two.py": "from nlcompanion.laws.law import Law, _x",
        "studies/three.py": "from nlcompanion.laws._deep import y",
    }
    assert trespasses(modules) == [
        "nlcompanion/far/one.py: law._of",
        "nlcompanion/far/two.py: from nlcompanion.laws.law import Law, _x",
        "studies/three.py: from nlcompanion.laws._deep import y",
    ]


# --- the map in CONTRIBUTING -----------------------------------------------------------------------------------------


def on_the_map(text: str) -> list[str]:
    """The folders that the map names, by their paths: what is indented lies in what stands above."""
    block = re.search(r"## The house\n.*?```\n(.*?)```", text, re.DOTALL)[1]
    folders, outer = [], ""
    for line in block.splitlines():
        name = line.split()[0].rstrip("/")
        outer = outer if line.startswith(" ") else name
        folders.append(f"{outer}/{name}" if line.startswith(" ") else name)
    return folders


def in_the_tree() -> set[str]:
    """The folders that hold something under version control, to a depth of two in the package."""
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a checkout")
    folders = {str(parent) for path in run.stdout.splitlines() for parent in Path(path).parents} - {"."}
    return {f for f in folders if f.count("/") == 0 or (f.startswith("nlcompanion/") and f.count("/") == 1)}


def test_the_map_names_every_folder_and_no_other():
    folders = on_the_map((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(folders) == len(set(folders)) < 40  # it fits a screen
    assert set(folders) == in_the_tree()


def test_the_map_is_in_the_order_of_the_walls():
    """Each folder of the package imports what stands above it, and nothing below."""
    rooms = [name.partition("/")[2] for name in on_the_map((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]
    rooms = [room for room in rooms if room]
    for path, source in sources().items():
        room = path.split("/")[1]
        if not path.startswith("nlcompanion/") or room not in rooms:
            continue
        for node in ast.parse(source).body:  # not those within functions or TYPE_CHECKING, which wait for a call
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nlcompanion."):
                other = node.module.split(".")[1]
                if other in rooms:
                    assert rooms.index(other) <= rooms.index(room), f"{path} imports {node.module}"


# --- imports in any order --------------------------------------------------------------------------------------------

MODULES = [module.name for module in pkgutil.walk_packages(nlcompanion.__path__, "nlcompanion.")]

# Each child of a process that has loaded the libraries, and nothing of ours, imports one module first. Which libraries
# that takes tells a first child, which imports all of ours.
LOOK = """
import gc, importlib, os, sys
import matplotlib.pyplot, scipy.integrate, scipy.optimize, scipy.signal, scipy.special, torch.func
torch.set_num_threads(1)

def libraries():
    reading, writing = os.pipe()
    if not os.fork():
        for name in MODULES:
            if not name.endswith("__main__"):
                importlib.import_module(name)
        loaded = [name for name in sys.modules if name.partition(".")[0] not in ("nlcompanion", "__main__")]
        os.write(writing, " ".join(loaded).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as told:
        names = told.read().split()
    os.wait()
    assert names, "the first child failed"
    return names

for name in libraries():
    importlib.import_module(name)
assert not [name for name in sys.modules if name.startswith("nlcompanion")]
gc.freeze()  # and no child copies what all share

def look(first):
    importlib.import_module(first)
    import nlcompanion
    folders = {name for name in nlcompanion.__all__ if f"nlcompanion.{name}" in MODULES}
    for name in nlcompanion.__all__:
        is_module = type(getattr(nlcompanion, name)) is type(sys)
        assert is_module == (name in folders), f"{name} is a module after import {first}: {is_module}"
    for folder in folders:
        room = getattr(nlcompanion, folder)
        for name in room.__all__:
            assert type(getattr(room, name)) is not type(sys), f"{folder}.{name} after import {first}"

for first in FIRST:
    child = os.fork()
    if not child:
        try:
            look(first)
        except BaseException as error:
            print(f"import {first}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


def with_a_namesake() -> list[str]:
    """The modules that are called like a name which their folder offers. No other can hide one."""
    found = []
    for module in MODULES:
        folder, _, name = module.rpartition(".")
        if name in getattr(importlib.import_module(folder), "__all__", ()):
            found.append(module)
    return found


def names_after(first: list[str]) -> None:
    """Each of these is imported first, in a process of its own; then every public name is looked at."""
    pytest.importorskip("ipywidgets", reason="the book's modules need what the book needs")
    code = f"MODULES = {MODULES!r}\nFIRST = {first!r}\n{LOOK}"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


HIDING = ["nlcompanion.laws", "nlcompanion.networks.mlp"]  # a folder and a module that could


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_a_module_imported_first_hides_no_public_name():
    assert set(HIDING) <= set(with_a_namesake())
    names_after(HIDING)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_nor_does_any_other_module():
    modules = {name for name in MODULES if not name.endswith("__main__")} - set(HIDING)
    assert len(modules) > 60
    assert set(with_a_namesake()) <= modules | set(HIDING)
    names_after(sorted(modules))


def test_no_function_hides_the_folder_that_it_comes_from():
    """Each folder is an attribute of the one above it, not a function of the same name."""
    folders = [module.name for module in pkgutil.walk_packages(nlcompanion.__path__, "nlcompanion.") if module.ispkg]
    for name in folders:
        folder = importlib.import_module(name)
        above, _, own = name.rpartition(".")
        assert getattr(importlib.import_module(above), own) is folder, name
