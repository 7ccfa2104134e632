"""Claims, their register, and the page that is written from executed notebooks."""

import json
import math
import subprocess
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlcompanion.book.claims import ClaimError, check, claim
from nlcompanion.book.register import CHAPTERS, CORRECTED, KINDS, VERDICTS, register
from nlcompanion.book.verdict_html import formulas
from tools.what_holds import main, verdicts, what_holds

ROWS = {row.id: row for row in register()}


def some(kind: str):
    """A row of this kind."""
    return next(row for row in register() if row.kind == kind)


def outside(row) -> float:
    """A number that the row does not allow."""
    return row.target + 3 * row.tolerance


# --- the register ---------------------------------------------------------------------------------------------------


def names(paper: str, text: str) -> list[str]:
    return [f"{paper}-{name}" for name in text.split()]


# Written out, not read from anywhere: every numbered equation, table and figure that the book undertakes to verify.
# A number counts as present as itself or in parts, such as tk-table1-1 ... tk-table1-4.
REQUIRED = [
    *names("tk", "fig1 fig2 fig3 fig4 table1 ksb amplification"),
    *names("tk", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33"),
    *names("gu", "fig1 fig2 fig3 fig4 fig5 fig6 table1 table2 table3 table4 table5 pk ham remark1 a b alg1"),
    *names("gu", "4 5 6 7 8 9 11 12 15 16 17 20 21 22 23 28 29 30 31 32 33 34 35 36 37 38 39"),
    *names("gu", "41 42 43 44 45 46 47 48 49 50 51 52 53"),
    *names("nl", "sgd-identity sgd-drift heavy-ball-identity heavy-ball-decay any-optimizer"),
    *names("nl", "persistence persistence-trained white-regime momentum-average bursts time-constant"),
    *names("nl", "scale-covariance antisymmetric antisymmetric-nagf attention-qk attention-vo rotary gated-unit"),
    *names("nl", "normalised-weights logit-shift law-count"),
]
PARTS = [
    *names("tk", "table1-1 table1-2 table1-3 table1-4 fig2-a fig2-b 15-vector 15-tangential"),
    *names("tk", "fig4-a1 fig4-a2 fig4-b1 fig4-b2 fig4-c1 fig4-c2"),
    *names("gu", "fig1-gf fig1-nd fig1-nagf table2-swish-nd table5-general"),
]


@pytest.mark.parametrize("id", REQUIRED)
def test_every_number_of_the_register_has_a_row(id):
    assert id in ROWS or any(known.startswith(id + "-") for known in ROWS)


@pytest.mark.parametrize("id", PARTS)
def test_parts_with_verdicts_of_their_own_have_rows(id):
    assert id in ROWS


def test_ids_are_unique():
    assert [id for id, n in Counter(row.id for row in register()).items() if n > 1] == []


@pytest.mark.parametrize("row", register(), ids=lambda row: row.id)
def test_a_row_is_complete(row):
    assert {"tk": "TK", "gu": "GU", "nl": "NL"}[row.id[:2]] == row.paper
    assert row.kind in KINDS
    assert row.verdict in VERDICTS
    assert (row.kind in CORRECTED) == (row.verdict in ("misprint", "false", "not supported"))
    assert row.verdict != "holds under a condition" or row.condition != "none"
    assert bool(row.paper_says) == (row.paper != "NL"), "the paper's claim stands beside the finding"
    assert row.chapter in CHAPTERS
    assert row.tolerance > 0
    assert math.isfinite(row.target)
    assert row.source
    assert row.statement.endswith(".")
    assert row.condition, "what the claim needs; 'none' if it needs nothing"
    assert row.kind != "order" or row.tolerance == 0.1, "slopes are held to 0.1"


@pytest.mark.parametrize("row", register(), ids=lambda row: row.id)
def test_a_statement_survives_a_markdown_table(row):
    for text in (row.paper_says, row.statement, row.source):
        assert "|" not in text, "a bar would end the cell: write \\lvert or \\vert"
        assert "\n" not in text
        assert "{{" not in text, "MyST would take it for a substitution"
        assert text.count("$") % 2 == 0
        assert text.count("{") == text.count("}")
        for formula in text.split("$")[1::2]:
            assert formula == formula.strip(), "dollar mathematics must not begin or end with a space"


def test_verdicts_of_the_papers_known_misprints():
    """The kinds that decide what the book says about the papers."""
    misprints = {"tk-table1-1", "tk-table1-3", "tk-12-decay", "gu-20-time", "gu-table2-swish-nd", "gu-53"}
    misprints |= {"gu-23", "gu-53-flow", "gu-table5-general"}
    assert {row.id for row in register() if row.kind == "misprint"} == misprints
    assert {row.id for row in register() if row.kind == "false"} == {"gu-32", "gu-33", "gu-52"}
    assert {row.id for row in register() if row.kind == "unsupported"} == {"gu-50", "gu-51"}


# --- check: what passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "measured", "control", "line"),
    [
        ("gu-28", 0.0, 1.0, "gu-28 · holds (exact) · control fails as it must"),
        ("gu-28", 0.0, None, "gu-28 · holds (exact) · no control"),
        ("tk-4", 2.0, 1.0, "tk-4 · holds under a condition (order 2) · control fails as it must"),
        ("nl-augmentation", -0.5, 0.0, "nl-augmentation · holds (order -0.5) · control fails as it must"),
        ("tk-17", 0.01, 3.5, "tk-17 · holds under a condition (leading order) · control fails as it must"),
        ("gu-49", 0.3, 1.5, "gu-49 · holds (bound) · control fails as it must"),
        ("tk-fig1", 0.0, None, "tk-fig1 · holds (figure) · no control"),
        ("tk-table1-1", 0.0, 0.5, "tk-table1-1 · misprint: fails as printed, holds as corrected"),
        ("gu-33", 0.0, 0.5, "gu-33 · false: fails as stated, the true statement holds"),
        (
            "gu-50",
            -0.41,
            -0.5,
            "gu-50 · not supported: the measurement says otherwise where the paper leaves it open",
        ),
    ],
)
def test_the_line_of_each_kind(id, measured, control, line, capsys):
    verdict = check(id, measured, control)
    assert (verdict.row, verdict.holds, verdict.text) == (ROWS[id], ROWS[id].kind not in CORRECTED, line)
    assert claim(id, measured, control) is None
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    "measured",
    [
        2,
        2.05,
        np.float32(2.0),
        np.array(2.0),
        np.array([[2.0, 1.95], [2.02, 2.0]]),
        torch.tensor(2.0),
        torch.tensor([1.98, 2.0], dtype=torch.float64, requires_grad=True),
        [2.0, (1.99, np.array([2.01])), torch.tensor([2.0])],
        {"beta=0": 2.0, "beta=0.9": {"k=0": 1.95, "k=0.1": [2.0, 2.0]}},
        (2.0 for _ in range(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_come_in_many_shapes(measured):
    assert check("tk-3", measured).holds


@given(st.lists(st.floats(-0.099, 0.099), min_size=1), st.lists(st.floats(0.101, 1e6), min_size=1), st.randoms())
def test_a_slope_holds_within_its_tolerance_and_its_control_outside(inside, beyond, random):
    controls = [2 + random.choice([-1, 1]) * distance for distance in beyond]
    assert check("tk-3", [2 + d for d in inside], controls).text.endswith("control fails as it must")


@given(st.floats(max_value=1.0, allow_nan=False, allow_infinity=False))
def test_a_bound_is_one_sided(value):
    assert check("gu-49", value, control=1.001).holds


@given(st.sampled_from(register()), st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_conforms_or_violates_never_both(row, value):
    control = outside(row) if row.control_is_mandatory else None

    def passes(measured, control):
        try:
            return bool(check(row.id, measured, control))
        except ClaimError:
            return False

    assert passes(value, control) != passes(row.target, value)


# --- check: what fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_violation_fails(kind):
    row = some(kind)
    with pytest.raises(ClaimError, match="measured is"):
        check(row.id, outside(row), control=outside(row))


@pytest.mark.parametrize("kind", KINDS)
def test_one_violation_among_many_fails(kind):
    row = some(kind)
    with pytest.raises(ClaimError, match=r"measured\[37\] is .*worst of 100"):
        check(row.id, [row.target] * 37 + [outside(row)] + [row.target] * 62, control=outside(row))


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_that_conforms_fails(kind):
    row = some(kind)
    with pytest.raises(ClaimError, match=r"control does not fail.*control\['second'\]"):
        check(row.id, row.target, control={"first": outside(row), "second": row.target})


@pytest.mark.parametrize("kind", CORRECTED)
def test_the_printed_form_has_to_be_shown_failing(kind):
    with pytest.raises(ValueError, match=f"of kind {kind} and got no control.*pass control="):
        check(some(kind).id, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [0.0, math.nan], torch.tensor([math.nan])])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_never_passes(kind, value):
    row = some(kind)
    with pytest.raises(ClaimError, match="where the run diverged"):
        check(row.id, value, control=outside(row))
    with pytest.raises(ClaimError, match="where the run diverged"):
        check(row.id, row.target, control=value)


@pytest.mark.parametrize("value", [[], {}, np.array([]), torch.zeros(0, 3), [[], {}]])
def test_what_is_empty_never_passes(value):
    with pytest.raises(ClaimError, match="measured is empty"):
        check("gu-28", value)
    with pytest.raises(ClaimError, match="control is empty"):
        check("gu-28", 0.0, control=value)


@pytest.mark.parametrize("value", [True, np.bool_(False), torch.tensor([True]), np.array([0.0]) < 1, {"a": False}])
def test_a_bool_is_no_measurement(value):
    with pytest.raises(TypeError, match=r"is the bool (True|False).*pass the residual"):
        check("gu-28", value)


@pytest.mark.parametrize("value", ["0.0", None, 1j, object(), [None], np.array(["a"])])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="no real number"):
        check("gu-28", value)


def test_the_message_says_what_to_look_at():
    with pytest.raises(ClaimError) as caught:
        check("tk-3", {"beta=0": 2.0, "beta=0.9": 1.02})
    message = str(caught.value)
    assert isinstance(caught.value, AssertionError)
    for part in ("tk-3", "measured['beta=0.9'] is 1.02", "2 ± 0.1", ROWS["tk-3"].statement, "open", "the start"):
        assert part in message


def test_a_failing_claim_is_an_error_where_tests_ask_for_it(capsys, monkeypatch):
    monkeypatch.setenv("NLCOMPANION_CLAIMS", "raise")
    with pytest.raises(ClaimError):
        claim("gu-28", 1.0)
    assert capsys.readouterr().out == ""


def test_a_failing_claim_is_said_to_a_reader_who_goes_on(capsys, monkeypatch):
    monkeypatch.delenv("NLCOMPANION_CLAIMS", raising=False)
    claim("gu-28", [0.0, 1.0])
    said = capsys.readouterr().out
    for part in ("gu-28 · not supported at these settings", "measured[1] is 1", "is allowed", "look at: float64"):
        assert part in said


def test_what_is_no_measurement_is_an_error_everywhere(monkeypatch):
    monkeypatch.delenv("NLCOMPANION_CLAIMS", raising=False)
    with pytest.raises(TypeError, match="is the bool"):
        claim("gu-28", True)
    with pytest.raises(ValueError, match="not in the register"):
        claim("gu-2828", 0.0)


class Kernel:
    """What IPython looks like in a notebook."""

    def __init__(self):
        self.kernel = self.shown = None
        self.display = self

    def get_ipython(self):
        return self

    def __call__(self, verdict):
        self.shown = verdict

    def __getattribute__(self, name):
        return self if name == "display" else super().__getattribute__(name)


def test_a_notebook_shows_the_sentence_and_the_numbers(monkeypatch, capsys):
    kernel = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    claim("tk-3", {"beta=0": 2.01, "beta=0.9": 1.9321}, control=1.02)
    html = kernel.shown._repr_html_()
    numbers = ("1.93<", "the furthest of 2", "2 ± 0.1", "1.02<")
    for part in ("<strong>Holds under a condition</strong>", *numbers, "what_holds.html#tk-3"):
        assert part in html
    assert formulas(ROWS["tk-3"].statement) in html
    assert repr(kernel.shown) == "tk-3 · holds under a condition (order 2) · control fails as it must"
    monkeypatch.delenv("NLCOMPANION_CLAIMS", raising=False)
    claim("tk-3", 1.0)
    assert "<strong>Not supported at these settings</strong>" in kernel.shown._repr_html_()
    assert "measured is 1, where 2 ± 0.1 is allowed" in kernel.shown._repr_html_().lower()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.21e-14, "3.21 · 10<sup>−14</sup>"), (-0.05, "−0.05"), (1e-10, "10<sup>−10</sup>")],
)
def test_a_measured_number_has_three_digits(value, text):
    assert f'<span class="nl-number">{text}</span>' in check("gu-49", value)._repr_html_()


@pytest.mark.parametrize(
    ("id", "hint"),
    [("tk-table1", "tk-table1-1"), ("gu-331", "gu-33"), ("nl-sgd-identiy", "nl-sgd-identity"), ("xyzzy", "register()")],
)
def test_an_unknown_id_is_answered_with_a_close_one(id, hint):
    with pytest.raises(ValueError, match="not in the register") as caught:
        claim(id, 0.0)
    assert hint in str(caught.value)


def test_an_id_is_a_string():
    with pytest.raises(TypeError, match="a claim's id is a string"):
        claim(0.0, 0.0)


def test_checks_load_neither_torch_nor_numpy():
    """Reading verdicts answers at once; tensors are recognised by what they can do."""
    program = "import sys, tools.what_holds as c; c.register(); print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- from notebooks to the page ---------------------------------------------------------------------------------


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def printing(*texts, count=1, name="stdout"):
    outputs = [{"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)} for text in texts]
    return {"cell_type": "code", "metadata": {}, "source": "", "execution_count": count, "outputs": outputs}


def write(folder, stem, *cells):
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.ipynb"
    notebook = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


TK3 = "tk-3 · holds under a condition (order 2) · control fails as it must\n"
TK1 = "tk-1 · holds (exact) · no control\n"


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "book"
    chapter = [markdown("(check-euler-lagrange)=\n## Check"), printing("loss 3.1\n" + TK3 + TK1, count=7)]
    later = [markdown("(check-euler-lagrange-table)=\n## Table 1")]
    misprint = printing("tk-table1-1 · misprint: fails as printed, holds as corrected\n", count=9)
    write(folder, "euler_lagrange", *chapter, *later, misprint)
    write(folder, "homogeneity", printing("gu-33 · false: fails as stated, the true statement holds\n", count=2))
    return folder


def test_verdicts_carry_their_place(book):
    found = verdicts(sorted(book.glob("*.ipynb")))
    assert set(found) == {"tk-1", "tk-3", "tk-table1-1", "gu-33"}
    assert (found["tk-3"].notebook, found["tk-3"].execution_count) == ("euler_lagrange", 7)
    assert found["tk-3"].target == "check-euler-lagrange"
    assert found["tk-table1-1"].target == "check-euler-lagrange-table"
    assert found["gu-33"].target is None


@pytest.mark.parametrize(
    "cell",
    [
        printing("gu-28 · holds (exact) · no control\n"),  # another chapter's claim
        printing("tk-333 · holds (exact) · no control\n"),
        printing("tk-3 · holds under a condition (order 1) · no control\n"),  # what an older register said
        printing("tk-table1-1 · holds (exact) · no control\n"),
        printing("so tk-3 · holds under a condition (order 2) · no control\n"),
        printing(TK3, name="stderr"),
        markdown(TK3),
    ],
)
def test_a_line_in_the_wrong_place_or_wording_is_no_verdict(tmp_path, cell):
    assert verdicts([write(tmp_path, "euler_lagrange", cell)]) == {}


def test_a_line_split_over_two_outputs_is_read(tmp_path):
    assert set(verdicts([write(tmp_path, "euler_lagrange", printing(TK3[:9], TK3[9:]))])) == {"tk-3"}


def test_what_claim_prints_is_what_is_read_back(tmp_path, capsys):
    for row in register():
        claim(row.id, row.target, control=outside(row))
    lines = capsys.readouterr().out
    paths = [write(tmp_path, chapter, printing(lines)) for chapter in CHAPTERS]
    assert set(verdicts(paths)) == set(ROWS)


def test_the_page_lists_every_claim_and_hides_no_open_one(book):
    page = what_holds(book)
    for row in register():
        needs = f" *Needs:* {row.condition}." if row.condition not in ("", "none") else ""
        says = f" {row.paper_says} |" if row.paper != "NL" else ""
        name = f"`{row.id}`{{#{row.id}}} {{index}}`{row.source} <single: {row.id}>`"
        assert f"| {name} |{says} {row.statement}{needs} | " in page
    assert page.count("**open** |") == len(ROWS) - 4
    assert f"4 of {len(ROWS)} claims have a verdict, {len(ROWS) - 4} are open." in page
    total = [line for line in page.splitlines() if line.startswith("| together")]
    assert total == [f"| together | 1 | 1 | 1 | 1 | 0 | 0 | {len(ROWS) - 4} | {len(ROWS)} |"]


def test_the_page_links_to_the_chapter_and_to_the_cell(book):
    page = what_holds(book)
    verdict = "**holds under a condition** (order 2; control fails as it must) | "
    linked = verdict + "{doc}`Euler-Lagrange <euler_lagrange>`, "
    assert linked + "{ref}`cell 7 <check-euler-lagrange>` |" in page
    assert (
        "**misprint** (holds as corrected, fails as printed) | {doc}`Euler-Lagrange <euler_lagrange>`, {ref}`cell 9 "
        in page
    )
    assert (
        "**false** (what we find holds, the paper's statement fails) | {doc}`Homogeneity <homogeneity>` |" in page
    )  # no target above: the page alone
    assert "| **open** | Lie groups |" in page  # no such chapter yet: its name, no link


def test_every_line_of_a_table_has_its_columns(book):
    for line in what_holds(book).splitlines():
        if line.startswith("|"):
            assert line.count("|") in (5, 6, 10)  # the laws beyond the papers; the papers' claims; the summary


def test_a_verdict_that_is_displayed_is_read_like_one_that_is_printed(tmp_path):
    verdict = check("tk-3", 2.0)
    data = {"text/plain": repr(verdict), "text/html": verdict._repr_html_()}
    cell = printing(count=3)
    cell["outputs"] = [{"output_type": "display_data", "data": data, "metadata": {}}]
    found = verdicts([write(tmp_path, "euler_lagrange", cell)])
    assert found["tk-3"].text == verdict.text
    data["text/html"] = "<div>tk-3 somewhere else</div>"
    assert verdicts([write(tmp_path, "euler_lagrange", cell)]) == {}


def test_the_command_writes_checks_and_updates(book, capsys):
    page = book / "what_holds.md"
    assert main(["--book", str(book), "--check"]) == 1
    assert "does not exist; run: python -m tools.what_holds" in capsys.readouterr().err
    assert not page.exists()
    assert main(["--book", str(book)]) == 0
    assert page.read_text(encoding="utf-8") == what_holds(book)
    assert main(["--book", str(book), "--check"]) == 0
    write(book, "lie_groups", printing("gu-12 · holds (exact) · no control\n"))
    assert main(["--book", str(book), "--check"]) == 1
    assert "is out of date" in capsys.readouterr().err
    assert main(["--book", str(book)]) == 0
    assert "{doc}`Lie groups <lie_groups>`" in page.read_text(encoding="utf-8")
    assert sorted(path.suffix for path in book.iterdir()) == [".ipynb"] * 3 + [".md"]


def test_the_command_names_lines_that_do_not_count(book, capsys):
    write(book, "lie_groups", printing(TK3))
    assert main(["--book", str(book)]) == 0
    assert "lie_groups: the line 'tk-3 · holds under a condition (order 2)" in capsys.readouterr().err


def test_the_command_runs_as_a_module(book):
    run = subprocess.run(
        [sys.executable, "-m", "tools.what_holds"], cwd=book.parent, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert (book / "what_holds.md").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_broken_notebook_stops_the_command_and_leaves_the_page(book, text, capsys):
    assert main(["--book", str(book)]) == 0
    before = (book / "what_holds.md").read_text(encoding="utf-8")
    (book / "lie_groups.ipynb").write_text(text)
    assert main(["--book", str(book)]) == 2
    assert "lie_groups.ipynb is not a notebook" in capsys.readouterr().err
    assert (book / "what_holds.md").read_text(encoding="utf-8") == before


def test_a_folder_without_notebooks_is_an_error(tmp_path, capsys):
    assert main(["--book", str(tmp_path)]) == 2
    assert "holds no notebooks" in capsys.readouterr().err


def test_the_register_can_be_read_from_an_installed_package():
    assert files("nlcompanion.book").joinpath("claims.csv").is_file()
