"""The built book, page by page, and the tools that build it. Each check of a page is itself checked on a bad page."""

import base64
import hashlib
import importlib
import io
import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from sphinx.util.inventory import InventoryFile

from nlcompanion import __version__
from nlcompanion.book.register import register
from tools import environment, notebooks, pages, pin

ROOT = pages.ROOT
PLACE = {"book/index": "", "book/chapter": "Mechanics", "book/errata": "Reference"}

# --- the book of this repository --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built():
    if reason := pages.unfinished():
        pytest.fail(reason)


FIRST, *REST = pages.contents()


@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_page_holds_what_it_should(built, name):
    """``make book`` asks it of every page before it seals the book, and a book without its seal is not ``built``."""
    assert pages.page_faults(name) == []


def test_every_notebook_is_in_the_contents():
    found = {f"book/{path.stem}" for path in (ROOT / "book").glob("*.ipynb")}
    assert found <= set(pages.contents())


def test_first_page_leads_to_the_book(built):
    assert "book/index.html" in (pages.HTML / "index.html").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference(built):
    with (pages.HTML / "objects.inv").open("rb") as file:
        documented = InventoryFile.load(file, "", posixpath.join)
    names = {name.rpartition(".")[2] for kind in documented if kind.startswith("py:") for name in documented[kind]}
    for folder in (page.removeprefix("book/api/") for page in pages.contents() if page.startswith("book/api/")):
        if folder != "index":
            public = importlib.import_module(f"nlcompanion.{folder}").__all__
            assert set(public) <= names, folder


def test_folders_of_the_package_have_a_page_of_the_reference():
    folders = {path.parent.name for path in (ROOT / "nlcompanion").glob("*/__init__.py")}
    folders -= {"book", "_arguments"}  # for the chapters, and for the package itself
    assert folders == {page.removeprefix("book/api/") for page in pages.contents() if "book/api/" in page} - {"index"}


def test_words_lead_to_the_reference_and_to_the_glossary(built):
    page = pages.parse(pages.HTML / "book" / "euler_lagrange.html").select_one("article")
    links = {link["href"] for link in page.select("a[href]")}
    assert "glossary.html#term-Lagrangian" in links
    assert any(link.startswith("api/dynamics.html#nlcompanion.dynamics.") for link in links)
    assert not page.select("h1 .nl-term, h2 .nl-term, pre .nl-term, a a")


def test_the_search_finds_a_claim_by_its_id(built):
    script = (pages.HTML / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))
    for row in register():
        found = {index["docnames"][page] for page, *_ in index["indexentries"][row.id]}
        assert found == {"book/what_holds"}, row.id


# --- the checks of a page, on a good page and on bad ones ---------------------------------------------------------

GOOD = r"""<html><body><article class="bd-article"><h1>Title<a class="headerlink" href="#here">#</a></h1>
<p id="here">Text with <span class="math">\(x\)</span>, <code>$$</code> and a <a href="index.html#here">link</a>.</p>
<div class="cell"><div class="cell_output"><img src="figure.png"/><pre>tk-1 holds</pre></div></div>
<div class="cell"><div class="nl-explorer"></div></div></article></body></html>"""


@pytest.fixture
def site(tmp_path):
    """A small book that has been built without a fault."""
    root = tmp_path
    (root / "book").mkdir()
    for name in ("_config.yml", "requirements.txt"):
        (root / name).write_text("title: book\n")
    toc = {"root": "book/index", "parts": [{"chapters": []}]}
    toc["parts"] += [{"caption": PLACE[name], "chapters": [{"file": name}]} for name in ("book/chapter", "book/errata")]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    slider = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}, "metadata": {}}
    cells = [{"cell_type": "code", "metadata": {}, "source": "1", "outputs": outputs} for outputs in ([], [slider])]
    (root / "book" / "chapter.ipynb").write_text(json.dumps({"cells": cells}))
    (root / "book" / "errata.ipynb").write_text(json.dumps({"cells": cells[:1]}))
    html = root / "_build" / "html" / "book"
    html.mkdir(parents=True)
    (html / "figure.png").write_bytes(b"png")
    (html / "index.html").write_text(GOOD)
    (html / "chapter.html").write_text(GOOD)
    (html / "errata.html").write_text(
        '<article class="bd-article"><h1>Errata</h1><div class="cell">row</div></article>'
    )
    return root


def faults(site):
    return pages.faults(site, site / "_build" / "html")


def test_a_good_site_has_no_faults(site):
    assert pages.contents(site) == PLACE
    assert faults(site) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<h1>Title", "<h1>", "titles"),
        ("<h1>Title", "<h1>One</h1><h1>Two", "titles"),
        ("Text with", "Text with Traceback (most recent call last)", "a traceback"),
        ("<pre>tk-1 holds", "<pre>Traceback (most recent call last): ...", "a traceback"),
        ("Text with", "Text with $$x$$", r"raw \$\$"),
        ("Text with", "Text with {eq}<code>eq-1</code>", "an unread role"),
        ("Text with", "Text with\n:::note", "an unread directive"),
        ("Text with", "Text with ERROR: Unknown target", "a Sphinx message"),
        ("Text with", '<span class="problematic">oops</span>', "the message 'oops'"),
        ('src="figure.png"', 'src="missing.png"', "missing.png, which does not exist"),
        ("index.html#here", "nowhere.html", "nowhere.html, which does not exist"),
        ("index.html#here", "index.html#gone", "that anchor does not exist"),
        ("index.html#here", "#gone", "that anchor does not exist"),
        (r"\(x\)", "x", "no equation"),
        ('<img src="figure.png"/>', "", "no figure"),
        ('<div class="cell">', '<div class="other">', "0 of the notebook's 2 code cells"),
        ("nl-explorer", "other", "shows 0 of the notebook's 1 controls"),
        ("Text with", f"Text with<!--{'x' * pages.HEAVIEST}-->", "weighs 1.50 MB"),
        ("Text with", 'Text with<img src="https://cdn.example/x.png">', "loads https://cdn.example"),
    ],
)
def test_each_fault_is_seen(site, old, new, said):
    assert old in GOOD
    (site / "_build/html/book/chapter.html").write_text(GOOD.replace(old, new))
    found = faults(site)
    assert len(found) == 1
    assert re.search(said, found[0])
    assert found[0].startswith(("book/chapter ", "book/chapter.html "))


def test_a_page_that_was_not_built_is_seen(site):
    (site / "_build/html/book/errata.html").unlink()
    assert faults(site) == ["book/errata is in the table of contents and was not built"]


def test_an_unbuilt_and_an_outdated_book_are_refused(site):
    html = site / "_build" / "html"
    assert "run `make book`" in pages.unfinished(site, html)
    (html / pages.SEAL).write_text(pages.fingerprint(site))
    assert pages.unfinished(site, html) == ""
    (site / "book" / ".hidden").write_text("an editor's")
    (site / "book" / "chapter.py").write_text("a text copy")
    assert pages.unfinished(site, html) == ""
    (site / "book" / "new.md").write_text("# New")
    assert "other sources" in pages.unfinished(site, html)


# --- nothing from elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="https://cdn.example/x.css">',
        '<link rel="preload" as="script" href="https://cdn.example/x.js">',
        '<img src="https://cdn.example/x.png">',
        '<img src="x.png" srcset="x.png 1x, https://cdn.example/x.png 2x">',
        '<iframe src="https://cdn.example/"></iframe>',
        '<style>@import "https://cdn.example/x.css";</style>',
        '<p style="background: url(https://cdn.example/x.png)">',
        '<script>import("https://cdn.example/x.js")</script>',
        '<script type="module">import "https://cdn.example/x.js"</script>',
    ],
)
def test_what_a_page_loads_from_elsewhere_is_seen(tmp_path, page):
    (tmp_path / "page.html").write_text(page)
    assert len(pages.loaded_from_elsewhere(tmp_path)) == 1


def test_what_a_page_has_itself_and_links_to_click_are_allowed(tmp_path):
    (tmp_path / "page.html").write_text(
        '<script src="../_static/x.js"></script><img src="data:image/png;base64,AA"><a href="https://example.org">x</a>'
        '<link rel="canonical" href="https://example.org"><style>p { background: url("x.png") }</style>'
    )
    (tmp_path / "style.css").write_text("@font-face { src: url(font.woff2) }")
    assert pages.loaded_from_elsewhere(tmp_path) == []
    (tmp_path / "style.css").write_text("@font-face { src: url(https://cdn.example/font.woff2) }")
    assert pages.loaded_from_elsewhere(tmp_path) == ["style.css loads https://cdn.example/font.woff2"]


# --- executing the notebooks ------------------------------------------------------------------------------------


def slider_notebook(ids):
    """A slider linked to two pictures, with these ids, as a kernel leaves it."""
    box, bar, stack, first, second, link = ids
    refer = "IPY_MODEL_{}".format
    state = {
        box: {"model_name": "VBoxModel", "state": {"children": [refer(bar), refer(stack)]}},
        bar: {"model_name": "IntSliderModel", "state": {"value": 1}},
        stack: {"model_name": "StackModel", "state": {"children": [refer(first), refer(second)]}},
        first: {"model_name": "ImageModel", "state": {"format": "png"}},
        second: {"model_name": "ImageModel", "state": {"format": "png"}},
        link: {
            "model_name": "LinkModel",
            "state": {"source": [refer(bar), "value"], "target": [refer(stack), "index"]},
        },
    }
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": box}, "text/plain": ["f" * 32]}
    cell = nbformat.v4.new_code_cell("box", outputs=[nbformat.v4.new_output("display_data", data=view)], id="one")
    cell.metadata["execution"] = {"iopub.execute_input": "now"}
    metadata = {
        "widgets": {notebooks.WIDGETS: {"state": state}},
        "language_info": {"name": "python", "version": ids[0][:3]},
    }
    return nbformat.v4.new_notebook(cells=[cell], metadata=metadata)


def test_two_runs_of_a_notebook_leave_the_same_text():
    ids = [hashlib.md5(name.encode()).hexdigest() for name in "abcdef"]
    first = nbformat.writes(notebooks.regular(slider_notebook(ids)))
    assert first == nbformat.writes(notebooks.regular(slider_notebook(ids[::-1])))
    assert nbformat.writes(slider_notebook(ids)) != nbformat.writes(slider_notebook(ids[::-1]))
    assert "f" * 32 in first  # no model has this name, so it is somebody's data
    assert first == nbformat.writes(notebooks.regular(nbformat.reads(first, as_version=4)))


@pytest.mark.slow
def test_a_notebook_that_fails_keeps_its_outputs(tmp_path, capsys):
    for name, code in (("a", "raise ValueError('no')"), ("b", "1 + 1")):
        cell = nbformat.v4.new_code_cell(code, id="one")
        kernel = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(
            nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / f"{name}.ipynb"
        )
    before = (tmp_path / "a.ipynb").read_text()
    assert notebooks.main([str(tmp_path / "a.ipynb"), str(tmp_path / "b.ipynb")]) == 1
    assert (tmp_path / "a.ipynb").read_text() == before
    assert nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[0].outputs[0].data == {"text/plain": "2"}
    assert "ValueError" in capsys.readouterr().err
    assert notebooks.execute(tmp_path / "b.ipynb") is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb", "b.ipynb"]


# --- the environment --------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose commands are recorded and not run; ``project.fails`` names the one that ends badly."""

    class Project:
        root, venv, ran, fails = tmp_path, tmp_path / ".venv", [], None

        def make(self):
            self.ran.clear()
            environment.make(self.venv, self.root)
            return self.ran

    project = Project()
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text("x")

    def run(command, **options):
        what = next(word for word in ("venv", "--requirement", "--editable", "-c") if word in map(str, command))
        project.ran.append(what)
        if what == project.fails:
            raise subprocess.CalledProcessError(1, command)
        if what == "venv":
            (project.venv / "bin").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "\n", "")

    monkeypatch.setattr(environment.subprocess, "run", run)
    return project


EVERYTHING = ["venv", "--requirement", "--editable"]


def test_an_environment_is_made_once(project):
    assert project.make() == EVERYTHING
    assert project.make() == ["-c"]


def test_new_pins_or_another_folder_make_it_anew(project):
    project.make()
    (project.root / "requirements.txt").write_text("y")
    assert project.make() == EVERYTHING
    stamp = project.venv / environment.STAMP
    stamp.write_text(stamp.read_text().replace(str(project.root), "/elsewhere"))
    assert project.make() == EVERYTHING


def test_a_new_project_file_reinstalls_the_package_alone(project):
    project.make()
    (project.root / "pyproject.toml").write_text("y")
    assert project.make() == ["-c", "--editable"]
    assert project.make() == ["-c"]


@pytest.mark.parametrize("step", EVERYTHING)
def test_a_half_finished_installation_is_not_taken_for_a_finished_one(project, step):
    project.make()
    (project.root / "requirements.txt").write_text("y")
    project.fails = step
    with pytest.raises(subprocess.CalledProcessError):
        project.make()
    project.fails = None
    assert project.make() == EVERYTHING
    assert project.make() == ["-c"]


def test_a_stamp_that_is_no_stamp_is_not_trusted(project):
    project.make()
    for text in ("", "{", "[]"):
        (project.venv / environment.STAMP).write_text(text)
        assert project.make() == EVERYTHING


def test_files_that_are_gone_are_missed(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    assert environment.missing_files(venv) == []
    site = next(venv.rglob("site-packages"))
    (site / "thing-1.dist-info").mkdir()
    (site / "thing-1.dist-info" / "METADATA").write_text("Name: thing\nVersion: 1\n")
    (site / "thing-1.dist-info" / "RECORD").write_text("thing.py,,\nthing.pyc,,\n")
    assert [Path(name).name for name in environment.missing_files(venv)] == ["thing.py"]
    (site / "thing.py").write_text("")
    assert environment.missing_files(venv) == []
    environment.python_of(venv).unlink()
    assert environment.missing_files(venv) == [str(environment.python_of(venv))]


def test_make_from_inside_an_activated_environment_wants_the_same(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    ask = "import json; from tools import environment as e; print(json.dumps(e.wanted(e.ROOT)))"
    inside = subprocess.run(
        [environment.python_of(tmp_path), "-c", ask], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert json.loads(inside.stdout) == environment.wanted(ROOT)


def test_an_old_python_is_refused_with_the_fix(monkeypatch, capsys):
    monkeypatch.setattr(environment.sys, "version_info", (3, 9, 2))
    assert environment.main() == 1
    assert "make book PYTHON=" in capsys.readouterr().err


# --- the pins and the papers of the project -----------------------------------------------------------------------


def project_file():
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_is_pinned_within_its_range():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(pin.name): pin for line in lines if not line.startswith("#") for pin in [Requirement(line)]
    }
    versions = {name: re.fullmatch(r"==([\w.]+)", str(pin.specifier)) for name, pin in pins.items()}
    assert all(versions.values())
    project = project_file()
    wanted = [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]
    for need in map(Requirement, wanted):
        if need.name == project["name"]:  # an extra that brings another
            continue
        assert need.specifier.contains(versions[canonicalize_name(need.name)][1]), need
    assert {"pexpect": 'sys_platform != "win32"', "pywinpty": 'sys_platform == "win32"'}.items() <= {
        name: str(pin.marker) for name, pin in pins.items()
    }.items()


def test_pins_are_looked_for_on_every_platform():
    installed = {
        "nlcompanion": ("1", ['a; extra == "book"', 'unused; extra == "other"']),
        "a": ("1", ['b; sys_platform == "win32"', 'c; os_name != "nt"', "d[x]"]),
        "d": ("1", ['e; extra == "x"']),
    }
    common = {"a", "d", "e", "jupytext"}
    assert pin.closure(installed, "win32") == common | {"b"}
    assert pin.closure(installed, "linux") == pin.closure(installed, "darwin") == common | {"c"}


def test_citation_and_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "title", "authors", "license", "message"} <= set(citation)
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def same_text(shown: str, printed: str) -> bool:
    """Whether two texts agree: words to the letter, numbers within two units of the last digit shown.

    What is smaller than 1e-12 is rounding, which every processor does in its own way: there any such number will do.
    """
    number = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?")
    if number.sub("#", re.sub(r"[ \t]+", " ", shown)) != number.sub("#", re.sub(r"[ \t]+", " ", printed)):
        return False
    for left, right in zip(number.findall(shown), number.findall(printed), strict=True):
        digits = left.partition("e")[0].partition(".")[2]
        unit = 10.0 ** (int(left.partition("e")[2] or 0) - len(digits)) if digits or "e" in left else 0.0
        rounding = max(abs(float(left)), abs(float(right))) < 1e-12
        if not rounding and abs(float(left) - float(right)) > 2.001 * unit:
            return False
    return True


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("off by 0.0893", "off by 0.0891", True),
        ("off by 0.0893", "off by 0.0890", False),
        ("residual  -5.1e-16   8e-17", "residual  2.2e-17  0", True),
        ("residual -5.1e-16", "residual -5.1e-11", False),
        ("100 steps", "101 steps", False),
        ("a 1.5", "b 1.5", False),
        ("6.17406 -0.0312272", "6.17406 0.0312272", False),
    ],
)
def test_texts_are_compared_as_the_readme_promises(shown, printed, same):
    assert same_text(shown, printed) is same


def test_the_readme_prints_what_its_code_prints(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```\s+```\n(.*?)```", text, re.DOTALL)
    assert len(shown) == text.count("```python")
    for code, expected in shown:
        exec(compile(code, "README.md", "exec"), {})
        printed = capsys.readouterr().out
        assert same_text(expected, printed), f"README.md shows\n{expected}\nand its code prints\n{printed}"
    assert shown
    assert not list(tmp_path.iterdir())  # what a stranger pastes first leaves no files behind


def test_every_target_of_the_makefile_has_a_line_of_help():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) - {"FORCE"}
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


def test_pictures_are_kept_with_few_colours():
    drawn = io.BytesIO()
    random = Random(0)
    picture = Image.frombytes("RGB", (128, 128), random.randbytes(3 * 128 * 128))
    picture.save(drawn, format="png")
    before = base64.b64encode(drawn.getvalue()).decode()
    after = notebooks.lighter(before)
    assert len(after) < len(before)
    with Image.open(io.BytesIO(base64.b64decode(after))) as light:
        assert light.size == (128, 128)
        assert len(light.convert("RGB").getcolors()) <= 256
