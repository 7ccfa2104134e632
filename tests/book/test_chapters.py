r"""The book keeps its promises: every notebook, its verdicts, the page made from them, and the built pages.

What a chapter's author has to know (each rule is a function ``rule_...`` below, and each is shown to bite):

*Checks.* Put a target in the Markdown cell above the check cells, ``(check-euler-lagrange)=`` for the chapter
``euler_lagrange``, or several with a suffix, ``(check-euler-lagrange-orders)=``, followed by a heading or a sentence in
the same cell. ``what_holds.md`` links a verdict to the nearest such target above it. Call ``claim("tk-3", measured,
control=...)`` with a literal id, once per id, in the chapter that the register names; a control is required for every
kind but ``figure``. Pass residuals, slopes and ratios, never a bool.

*Cells.* One thought a cell, names that say what they hold; two lambdas at most in a cell, lines up to 100 characters;
1,200 to 3,000 words of running text. No trailing ``;`` (end with ``plt.show()`` or assign to ``_``), nothing on
standard error.

*Figures.* A cell that draws, or makes a control, carries the tag ``hide-input`` (or ``hide-cell``, in a solution) and
an alternative text in its metadata, ``{"mystnb": {"image": {"alt": "..."}}}``. Its caption is the next cell, a figure
without a picture (``tools/captions.py``). Code that the page folds away is folded in JupyterLab too: ``"jupyter":
{"source_hidden": true}``. Colours come from ``plotting.COLORS``.

*Links.* A link has a text, ``[Notation](notation.md)``; JupyterLab would show an empty one as a file's name.

*Exercises.* Two or more solutions in dropdowns: code cells tagged ``hide-cell`` (executed) or ``{dropdown}``
directives. Nothing of a solution stands outside of them.

*Before committing.* ``python -m tools.notebooks book/NAME.ipynb``, then ``python -m tools.what_holds``.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nlcompanion.book.register import register
from tools.captions import caption_of, shows
from tools.pages import parse
from tools.what_holds import main, shown_text, verdicts

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
BUILT = ROOT / "_build" / "html"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
REFERENCE = {"errata"}  # no chapter: free in length and anatomy
WRITTEN = {
    "data_symmetry",
    "euler_lagrange",
    "homogeneity",
    "implicit_adaptivity",
    "kinetic_symmetry_breaking",
    "lie_groups",
    "linear_layers",
    "noethers_learning_dynamics",
    "time_symmetry",
    "your_own_model",
}  # chapters that must exist
DUE = {row.id for row in register() if row.chapter in WRITTEN}  # every claim of the finished chapters
ROWS = {row.id: row for row in register()}
CONTROL = "application/vnd.jupyter.widget-view+json"

Notebook = nbformat.NotebookNode


# --- reading notebooks --------------------------------------------------------------------------------------------


def code_cells(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook: Notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def tags(cell: Notebook) -> list[str]:
    return cell.metadata.get("tags", [])


def parsed(cell: Notebook) -> ast.Module:
    return ast.parse(re.sub(r"^\s*[%!].*$", "pass", cell.source, flags=re.MULTILINE))


def calls(cell: Notebook, *names: str) -> list[ast.Call]:
    """Calls of functions with one of these names, however they were imported."""
    return [
        node
        for node in ast.walk(parsed(cell))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) in names or getattr(node.func, "attr", None) in names)
    ]


def draws(cell: Notebook) -> bool:
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


def verdict_ids(cell: Notebook) -> list[str]:
    found = re.findall(r"^(\S+) · .+$", shown_text(cell), flags=re.MULTILINE)
    return [id for id in found if id in ROWS]


def claimed_id(call: ast.Call) -> str | None:
    given = call.args[:1] + [keyword.value for keyword in call.keywords if keyword.arg == "id"]
    value = given[0].value if given and isinstance(given[0], ast.Constant) else None
    return value if isinstance(value, str) else None


def has_control(call: ast.Call) -> bool:
    given = call.args[2:3] + [keyword.value for keyword in call.keywords if keyword.arg == "control"]
    return any(not (isinstance(value, ast.Constant) and value.value is None) for value in given)


# --- the rules: each yields what is wrong with a notebook -----------------------------------------------------------


def rule_format(stem: str, notebook: Notebook) -> Iterator[str]:
    nbformat.validate(notebook)
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec is not python3; a stranger's Jupyter would not find the kernel"
    for i, cell in enumerate(notebook.cells):
        if {"execution", "ExecuteTime"} & set(cell.metadata):
            yield f"cell {i} records when it ran; execute with --ExecutePreprocessor.record_timing=False"


def rule_executed(stem: str, notebook: Notebook) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if not counts or counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1..n; restart the kernel and run all cells"


def rule_outputs(stem: str, notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        if calls(cell, "print", "claim", "display", "show") and not cell.outputs:
            yield f"cell [{cell.execution_count}] prints or shows something but its output is missing"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell [{cell.execution_count}] failed: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"cell [{cell.execution_count}] wrote to standard error: {output.text[:80]!r}"


def rule_claims(stem: str, notebook: Notebook) -> Iterator[str]:
    seen = Counter()
    for cell in code_cells(notebook):
        here = []
        for call in calls(cell, "claim"):
            id = claimed_id(call)
            here.append(id)
            if id is None:
                yield f"cell [{cell.execution_count}] calls claim without a literal id; nobody can look it up"
            elif id not in ROWS:
                yield f"claim {id!r} is not in the register"
            elif ROWS[id].chapter != stem:
                yield f"claim {id} belongs to the chapter {ROWS[id].chapter}"
            elif ROWS[id].kind != "figure" and not has_control(call):
                yield f"claim {id} has no control, so nothing shows that it could fail"
        seen.update(here)
        if set(here) - {None} != set(verdict_ids(cell)):
            yield f"cell [{cell.execution_count}] calls claim for {here} and prints verdicts for {verdict_ids(cell)}"
    yield from (f"claim {id} is checked {n} times; once is enough" for id, n in seen.items() if id and n > 1)


def rule_check_targets(stem: str, notebook: Notebook) -> Iterator[str]:
    wanted = f"check-{stem.replace('_', '-')}"
    above = None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for label, rest in re.findall(r"^\((check-[^)\s]+)\)=[ \t]*$(.*)", cell.source, re.MULTILINE | re.DOTALL):
                above = label
                if label != wanted and not label.startswith(wanted + "-"):
                    yield f"the target ({label})= should start with {wanted}"
                if not rest.strip():
                    yield f"nothing follows the target ({label})= in its cell; put a heading or a sentence there"
        elif cell.cell_type == "code" and calls(cell, "claim") and above is None:
            yield f"no target ({wanted})= stands in the text above cell [{cell.execution_count}]"


def rule_cells(stem: str, notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        here = f"cell [{cell.execution_count}]"
        if cell.source.rstrip().endswith(";"):
            yield f"{here} ends with ';', which hides nothing under nbval; assign to _"
        lambdas = sum(isinstance(node, ast.Lambda) for node in ast.walk(parsed(cell)))
        if lambdas > 2:
            yield f"{here} has {lambdas} lambdas; give them names with def (two at most)"
        for line in cell.source.splitlines():
            if len(line) > 100:
                yield f"{here} has a line of {len(line)} characters, 100 at most: {line[:60]}..."


def words(text: str) -> int:
    """Words of running text: no captions, tables, code and mathematics."""
    blocks = (
        r"^:::\{figure\}.*?^:::$|^\|[^\n]*\|$|```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|^:::[^\n]*$|^\([^\n]*\)=$|\]\([^)]*\)"
    )
    text = re.sub(blocks, " ", text, flags=re.S | re.M)
    return len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text))


def rule_words(stem: str, notebook: Notebook) -> Iterator[str]:
    count = words(text_of(notebook))
    if stem not in REFERENCE and not 1200 <= count <= 3000:
        yield f"{count} words of text; a chapter has 1,200 to 3,000, about 2,000"


MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|Users|root|tmp|work|mnt|usr|var|opt|private)/\w|\b[A-Z]:\\\w")


def rule_paths(stem: str, notebook: Notebook) -> Iterator[str]:
    for i, cell in enumerate(notebook.cells):
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts += [output.get("text", ""), "\n".join(output.get("traceback", []))]
            texts += [
                str(data) for kind, data in output.get("data", {}).items() if kind not in ("image/png", "image/jpeg")
            ]
        for text in texts:
            if found := MACHINE_PATH.search(text):
                yield f"cell {i} names a path of one machine: {text[found.start() : found.end() + 30]!r}"


def rule_figures(stem: str, notebook: Notebook) -> Iterator[str]:
    below = dict(zip(range(len(notebook.cells)), notebook.cells[1:], strict=False))
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not (draws(cell) or shows(cell, CONTROL)):
            continue
        here = f"the figure of cell [{cell.execution_count}]"
        if not {"hide-input", "hide-cell"} & set(tags(cell)):
            yield f"{here} is drawn with its code unfolded; tag it hide-input"
        if not cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip():
            yield f"{here} has no alternative text (metadata mystnb.image.alt)"
        if i not in below or caption_of(below[i]) is None:
            yield f"{here} has no caption in the cell below it"


def rule_folded(stem: str, notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if folded != bool({"hide-input", "hide-cell"} & set(tags(cell))):
            yield f"cell [{cell.execution_count}] is folded in JupyterLab or on the page, and not in the other"


def rule_colours(stem: str, notebook: Notebook) -> Iterator[str]:
    for cell in code_cells(notebook):
        for colour in re.findall(r"#[0-9a-fA-F]{6}\b", cell.source):
            yield f"cell [{cell.execution_count}] has the colour {colour}; take one of plotting.COLORS"


def rule_links(stem: str, notebook: Notebook) -> Iterator[str]:
    for target in re.findall(r"\[\]\(([^)]+)\)", text_of(notebook)):
        yield f"the link to {target} has no text, and JupyterLab shows the file's name"


READ_BY_BOTH = {"admonition", "cite", "cite:t", "dropdown", "eq", "figure", "note", "numref", "ref"}


def rule_roles(stem: str, notebook: Notebook) -> Iterator[str]:
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", " ", text_of(notebook), flags=re.DOTALL)
    roles = re.findall(r"\{([a-z][a-z:]*)\}`", text)
    directives = re.findall(r"^(?:`{3,}|:{3,})\{([a-z:-]+)\}", text, flags=re.MULTILINE)
    for name in sorted({*roles, *directives} - READ_BY_BOTH):
        yield f"the role or directive {name} was not seen to work in JupyterLab (jupyterlab-myst) too"


SOLVED = "\0"  # stands for a dropdown, or for a code cell folded as a whole


def open_text_of_exercises(notebook: Notebook) -> str:
    """What a reader sees of the exercises before opening anything."""
    cells = [SOLVED if "hide-cell" in tags(cell) else cell.source for cell in notebook.cells]
    text = re.sub(
        r"^(`{3,}|:{3,})\{dropdown\}.*?^\1[ \t]*$", SOLVED, "\n\n".join(cells), flags=re.DOTALL | re.MULTILINE
    )
    found = re.search(r"^## Exercises$(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def rule_exercises(stem: str, notebook: Notebook) -> Iterator[str]:
    if stem in REFERENCE:
        return
    solutions = [cell for cell in code_cells(notebook) if "hide-cell" in tags(cell)]
    dropdowns = len(re.findall(r"^(?:`{3,}|:{3,})\{dropdown\}", text_of(notebook), flags=re.MULTILINE))
    if len(solutions) + dropdowns < 2:
        yield f"{len(solutions)} cells tagged hide-cell and {dropdowns} dropdowns; two or more exercises need solutions"
    if not re.search(r"\bexercises?\b", text_of(notebook), flags=re.IGNORECASE):
        yield "the text names no exercise"
    for exercise in re.split(r"^(?=\*\*\d+\.)", open_text_of_exercises(notebook), flags=re.MULTILINE)[1:]:
        question, *rest = exercise.split(SOLVED)
        if any(part.strip() for part in rest):
            yield f"after the solution of {question[:40]!r} stands {rest[0].strip()[:60]!r}, outside of a dropdown"
    for cell in solutions:
        if not cell.outputs:
            yield f"the solution in cell [{cell.execution_count}] shows nothing; print what it finds"


RULES: dict[str, Callable[[str, Notebook], Iterator[str]]] = {
    name.removeprefix("rule_"): rule for name, rule in list(globals().items()) if name.startswith("rule_")
}


def problems(stem: str, notebook: Notebook) -> dict[str, list[str]]:
    found = {name: list(rule(stem, notebook)) for name, rule in RULES.items()}
    return {name: complaints for name, complaints in found.items() if complaints}


# --- the notebooks --------------------------------------------------------------------------------------------------


def test_the_written_chapters_exist():
    missing = WRITTEN - {path.stem for path in NOTEBOOKS}
    assert not missing, f"book/ lacks the notebooks {sorted(missing)}; the tests below would pass on nothing"


def test_every_notebook_is_a_chapter_of_the_register_or_a_reference():
    known = {row.chapter for row in register()} | REFERENCE
    assert {path.stem for path in NOTEBOOKS} <= known


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, rule: str):
    complaints = list(RULES[rule](path.stem, nbformat.read(path, as_version=4)))
    assert not complaints, f"{path.name}:\n  " + "\n  ".join(complaints)


def test_check_targets_are_unique_in_the_book():
    pattern = re.compile(r"^\((check-[^)\s]+)\)=", re.MULTILINE)
    labels = Counter(
        label for path in NOTEBOOKS for label in pattern.findall(text_of(nbformat.read(path, as_version=4)))
    )
    assert [label for label, n in labels.items() if n > 1] == []


def test_due_claims_have_verdicts():
    missing = DUE - set(verdicts(NOTEBOOKS))
    assert not missing, f"no verdict line for {sorted(missing)}"


def test_what_holds_is_up_to_date(capsys):
    assert main(["--book", str(BOOK), "--check"]) == 0, capsys.readouterr().err


# --- the built pages ------------------------------------------------------------------------------------------------

needs_build = pytest.mark.skipif(
    not (BUILT / "index.html").exists(), reason="no built book to look at; `make test` builds it first (make book)"
)


class Page(HTMLParser):
    """What the tests ask of a page: its ids, its links, its classes, its visible text, its images."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.classes, self.images = set(), [], set(), []
        self._pieces: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = "".join(self._pieces)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if attrs.get("id") else set()
        self.classes |= set((attrs.get("class") or "").split())
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag == "img":
            self.images.append(attrs)

    def handle_data(self, data):
        self._pieces.append(data)


@cache
def page_at(path: Path) -> Page:
    """Each page is read once, whatever is asked of it."""
    return Page(path)


def toc_files() -> list[str]:
    def walk(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


@needs_build
def test_every_page_of_the_contents_is_built_without_a_trace_of_failure():
    files = toc_files()
    assert {f"book/{stem}" for stem in WRITTEN} | {"book/what_holds"} <= set(files)
    for file in files:
        page = page_at(BUILT / f"{file}.html")
        assert not {"system-message", "problematic"} & page.classes, f"{file} carries a Sphinx error"
        if not file.startswith("book/api/"):  # examples of the reference show errors on purpose
            assert "Traceback (most recent call last)" not in page.text, f"{file} shows a traceback"


@needs_build
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_built_chapter_shows_its_equations_figures_and_verdicts(path: Path):
    page = page_at(BUILT / "book" / f"{path.stem}.html")
    assert "math" in page.classes
    figures = [image for image in page.images if "_images/" in image.get("src", "")]
    assert figures or path.stem in REFERENCE
    assert all(image.get("alt") for image in figures)
    boxes = parse(BUILT / "book" / f"{path.stem}.html").select(".nl-claim")
    shown = {box.code.get_text(): box.strong.get_text() for box in boxes}
    for finding in verdicts([path]).values():
        assert shown.get(finding.id) == ROWS[finding.id].verdict.capitalize(), f"{finding.id}: build again"
        assert finding.target in page.ids


@needs_build
def test_the_links_of_what_holds_arrive():
    page = BUILT / "book" / "what_holds.html"
    links = [link for link in page_at(page).links if not re.match(r"[a-z]+:|#", link)]
    pages: dict[Path, set[str]] = {}
    for link in links:
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve()
        assert target.exists(), f"{link} leads nowhere"
        if fragment:
            if target not in pages:
                pages[target] = page_at(target).ids
            assert fragment in pages[target], f"{link} names a place that {file} lacks"
    assert any("#check-" in link for link in links)


# --- the rules bite: a chapter that keeps them all, and one break of each ---------------------------------------------

STEM = "euler_lagrange"


def good_chapter() -> Notebook:
    def cell(n, source, outputs=(), **metadata):
        return new_code_cell(source, execution_count=n, outputs=list(outputs), metadata=metadata)

    def printed(text):
        return new_output("stream", name="stdout", text=text + "\n")

    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    figure = {"image": {"alt": "two curves"}}
    folded = {"source_hidden": True}
    whole = {"source_hidden": True, "outputs_hidden": True}
    line = ROWS["tk-3"].line(control=True)
    cells = [
        new_markdown_cell("# A chapter\n\n" + "plain words of a text $x^2$ " * 250),
        cell(1, "%config InlineBackend.figure_formats = ['png']\nimport matplotlib.pyplot as plt"),
        cell(2, "plt.plot([1, 2])\nplt.show()", [picture], tags=["hide-input"], mystnb=figure, jupyter=folded),
        new_markdown_cell(":::{figure}\n:name: fig-two\nTwo curves.\n:::"),
        *(cell(n, f"x = {n}") for n in range(3, 11)),
        new_markdown_cell("(check-euler-lagrange)=\n## Check"),
        cell(11, "claim('tk-3', slopes, control=other)", [printed(line)]),
        new_markdown_cell("## Exercises\n\n**1.** The first."),
        cell(12, "print(1)", [printed("1")], tags=["hide-cell"], jupyter=whole),
        new_markdown_cell("```{dropdown} Solution\nOne.\n```\n\n**2.** The second."),
        cell(13, "print(2)", [printed("2")], tags=["hide-cell"], jupyter=whole),
        new_markdown_cell("## What to take along\n\nAll of it, see [the notation](notation.md)."),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def the(notebook: Notebook, n: int) -> Notebook:
    return code_cells(notebook)[n - 1]


def replaced(old: str, new: str, cells: slice = slice(None)) -> Callable[[Notebook], None]:
    def change(notebook):
        for cell in notebook.cells[cells]:
            cell.source = cell.source.replace(old, new)

    return change


def set_(n: int, **changes) -> Callable[[Notebook], None]:
    return lambda notebook: the(notebook, n).update(changes)


def stream(name: str, text: str) -> Notebook:
    return new_output("stream", name=name, text=text)


BREAKS = {
    "another kernel": ("format", lambda nb: nb.metadata.kernelspec.update(name="python-mine")),
    "timing": ("format", lambda nb: the(nb, 3).metadata.update(execution={"iopub.status.busy": "now"})),
    "a gap in the counts": ("executed", set_(3, execution_count=7)),
    "never executed": ("executed", set_(3, execution_count=None)),
    "an output stripped": ("outputs", set_(12, outputs=[])),
    "an error": ("outputs", set_(3, outputs=[new_output("error", ename="E", evalue="x", traceback=[])])),
    "a warning": ("outputs", set_(3, outputs=[stream("stderr", "UserWarning")])),
    "an unknown claim": ("claims", replaced("'tk-3'", "'tk-333'")),
    "another chapter's claim": ("claims", replaced("'tk-3'", "'tk-17'")),
    "an id that is no literal": ("claims", replaced("'tk-3'", "name")),
    "no control": ("claims", replaced(", control=other", "")),
    "a control of None": ("claims", replaced("control=other", "control=None")),
    "a verdict without a call": ("claims", replaced("claim('tk-3', slopes, control=other)", "print(line)")),
    "a call without a verdict": ("claims", set_(11, outputs=[stream("stdout", "done\n")])),
    "a claim twice": ("claims", replaced("control=other)", "control=other)\nclaim('tk-3', slopes, control=other)")),
    "no target": ("check_targets", replaced("(check-euler-lagrange)=\n", "")),
    "a target of another name": ("check_targets", replaced("(check-euler-lagrange)=", "(check-homogeneity)=")),
    "a target before nothing": ("check_targets", replaced("\n## Check", "")),
    "three lambdas": ("cells", replaced("x = 3", "f, g, h = (lambda x: x), (lambda x: 2), (lambda x: 3)")),
    "a long line": ("cells", replaced("x = 3", "x = " + " + ".join(["one"] * 20))),
    "a semicolon": ("cells", replaced("x = 5", "x = 5;")),
    "too few words": ("words", replaced("plain words of a text ", "")),
    "too many words": ("words", replaced("plain words of", "plain words " * 9)),
    "a path in the text": ("paths", replaced("The first.", "See /home/me/data.")),
    "a path in an output": ("paths", set_(12, outputs=[stream("stdout", "saved to C:\\Users\\me\n")])),
    "an unfolded figure": ("figures", lambda nb: the(nb, 2).metadata.update(tags=[])),
    "no alternative text": ("figures", lambda nb: the(nb, 2).metadata.mystnb.pop("image")),
    "no caption": ("figures", replaced(":::{figure}", ":::{note}")),
    "a control without a caption": ("figures", set_(4, outputs=[new_output("display_data", data={CONTROL: {}})])),
    "a figure unfolded in JupyterLab": ("folded", lambda nb: the(nb, 2).metadata.pop("jupyter")),
    "a cell folded in JupyterLab alone": (
        "folded",
        lambda nb: the(nb, 4).metadata.update(jupyter={"source_hidden": True}),
    ),
    "a colour of one's own": ("colours", replaced("x = 6", "colour = '#bbbbbb'")),
    "a link without text": ("links", replaced("[the notation]", "[]")),
    "a role that JupyterLab does not read": ("roles", replaced("[the notation](notation.md)", "{doc}`notation`")),
    "one solution": ("exercises", replaced("```{dropdown} Solution\nOne.\n```", "One.")),
    "a solution in the open": ("exercises", replaced("One.\n```", "One.\n```\n\nAnd more.")),
    "no exercises": ("exercises", replaced("## Exercises", "## Questions")),
    "a silent solution": ("exercises", lambda nb: the(nb, 13).update(source="y = 2", outputs=[])),
}


def test_a_good_chapter_has_no_problems():
    assert problems(STEM, good_chapter()) == {}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_chapter_is_told(name: str):
    rule, change = BREAKS[name]
    notebook = nbformat.from_dict(json.loads(json.dumps(good_chapter())))
    change(notebook)
    assert rule in problems(STEM, notebook)


def test_every_rule_has_a_break():
    assert {rule for rule, _ in BREAKS.values()} == set(RULES)


def test_references_are_free_in_length_but_not_in_truth():
    notebook = good_chapter()
    notebook.cells = notebook.cells[:4]  # a text, an import, a figure and its caption
    assert set(problems("errata", notebook)) <= {"claims"}
    the(notebook, 2).outputs.append(stream("stderr", "warned"))
    assert "outputs" in problems("errata", notebook)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two words", 2),
        ("don't hyphen-ate $a + b$ it", 3),
        ("$$\nx = y\n$$ (eq)\n\nafter", 2),
        ("```python\nignored code\n```\nkept", 1),
        ("[link](https://example.org/long/path)", 1),
    ],
)
def test_words_are_counted_without_mathematics_and_code(text, expected):
    assert words(text) == expected
