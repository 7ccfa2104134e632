"""The package as a whole: light to import, complete, typed."""

import ast
import builtins
import doctest
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

import nlcompanion

MODULES = [module.name for module in pkgutil.walk_packages(nlcompanion.__path__, "nlcompanion.")]
FOLDERS = [name for name in nlcompanion.__all__ if f"nlcompanion.{name}" in MODULES]
NAMES = [name for name in nlcompanion.__all__ if name not in FOLDERS]


def test_import_loads_neither_torch_nor_scipy():
    code = (
        "import sys, nlcompanion; dir(nlcompanion); print([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(nlcompanion, name)
    assert value.__doc__, f"{name} has no docstring"
    assert value.__module__.startswith("nlcompanion.")


@pytest.mark.slow
def test_help_works_without_what_only_the_book_needs():
    code = """
import pydoc, sys
sys.modules |= dict.fromkeys(("matplotlib", "ipywidgets", "IPython"))
import nlcompanion
assert "dynamics" in pydoc.render_doc(nlcompanion)
try:
    nlcompanion.book.plotting
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "matplotlib is not installed" in out
    assert "pip install 'nlcompanion[book]'" in out


def loose_names(source: str, own: str) -> set[str]:
    """Names that an example uses without having imported or made them."""
    tree, known = ast.parse(source), {*dir(builtins), own, "_"}
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            case ast.Name(ctx=ast.Store()):
                known.add(node.id)
            case ast.FunctionDef() | ast.ClassDef():
                known.add(node.name)
            case ast.arg():
                known.add(node.arg)
            case ast.ExceptHandler():
                known.add(node.name)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known


def test_the_search_for_loose_names_finds_them():
    assert loose_names("import torch\nx = [torch.ones(n) for n in (1, 2)]\nf = lambda q: q + y\nf(own)", "own") == {"y"}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_imports_all_it_uses_but_its_own_name(name):
    value = getattr(nlcompanion, name)
    methods = [x for key, x in vars(value).items() if key[0] != "_"] if isinstance(value, type) else []
    for part in (value, *methods):
        examples = doctest.DocTestParser().get_examples(inspect.getdoc(part) or "")
        assert loose_names("".join(example.source for example in examples), name) == set()


def test_public_functions_carry_an_example():
    missing = [
        name
        for name in NAMES
        if callable(getattr(nlcompanion, name))
        and not isinstance(getattr(nlcompanion, name), type)
        and ">>>" not in getattr(nlcompanion, name).__doc__
    ]
    assert not missing


# --- nothing public is there for the tests alone ----------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]


def words_of(path: Path) -> set[str]:
    """The names in a module's code or a notebook's cells: not in docstrings, nor in what exports them."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return set(re.findall(r"\w+", text))
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return {word for cell in cells for word in re.findall(r"\w+", "".join(cell["source"]))}
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
    return names


@cache
def uses() -> dict[str, set[str]]:
    """Where each name is used, tests and lists of exports apart; a function's own module counts if it uses it."""
    places = [ROOT / "README.md", ROOT / "book" / "other_loops.md"]
    for part, pattern in (("book", "*.ipynb"), ("studies", "*.py"), ("tools", "*.py"), ("benchmarks", "*.py")):
        places += (ROOT / part).glob(pattern)
    places += [path for path in (ROOT / "nlcompanion").rglob("*.py") if path.name != "__init__.py"]
    found: dict[str, set[str]] = {}
    for place in places:
        for word in words_of(place):
            found.setdefault(word, set()).add(place.relative_to(ROOT).as_posix())
    return found


def public() -> set[str]:
    """Of the package and of its folders."""
    folders = [getattr(nlcompanion, name) for name in FOLDERS]
    return {name for room in (nlcompanion, *folders) for name in room.__all__} - set(FOLDERS)


# counterparts of names in use, which a reader would miss
COUNTERPARTS = {
    "law_of": "Law.symmetry the other way",
    "loss_below": "stops a motion by its loss, as steady by its speed",
    "ntk_product": "ntk for so many samples that its matrix would not fit",
}


def test_every_public_name_is_used_by_somebody_else_than_the_tests():
    assert len(public()) > 100
    assert {name for name in public() if name not in uses()} <= set(COUNTERPARTS)


def test_a_name_that_nobody_uses_is_seen(tmp_path):
    """The control: a definition, a docstring and an export are no use."""
    module = tmp_path / "module.py"
    module.write_text('__all__ = ["lonely"]\n\ndef lonely():\n    """lonely() does it."""\n\nhelper = used\n')
    assert words_of(module) == {"__all__", "helper", "used"}


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="No nlcompanion attribute teleport"):
        nlcompanion.teleport  # noqa: B018


def test_typed_and_versioned():
    assert (files("nlcompanion") / "py.typed").is_file()
    assert nlcompanion.__version__.count(".") == 2


def test_code_and_notebooks_are_clean():
    root = Path(__file__).resolve().parents[1]
    for arguments in (["check", "."], ["format", "--check", "."]):
        run = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=root, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
