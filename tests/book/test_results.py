"""results: what is stored, what is refused, and what the stored Fig. 1 says."""

import json
import math
import os
import subprocess
import sys

import damages
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threads import THREADS

from nlcompanion import _storage
from nlcompanion.book import results
from nlcompanion.book.results import ResultError, read, thin, write
from nlcompanion.datasets import DataError, describe, digits
from studies import recipes
from studies.__main__ import main
from studies.homogeneity import layers_apart, two_layer_norms
from studies.recipes import make

CONTENT = {
    "name": "one",
    "title": "a result",
    "settings": {"seed": 0},
    "data": None,
    "curves": {"a": {"t": [0.0, 1.0]}},
    "numbers": {"x": 1.0},
    "provenance": {"torch": "0"},
}


def signed(content: dict) -> str:
    """A file of this content, with a checksum that fits whatever it is."""
    return json.dumps({**content, "sha256": _storage.checksum(content)})


@pytest.fixture
def registered(monkeypatch):
    """An empty registry, to register the test's own results in."""
    monkeypatch.setattr(recipes, "_RECIPES", {})
    monkeypatch.setattr(recipes, "STUDIES", ())
    return recipes.result


# --- storing --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    numbers = {"torch": torch.tensor(1 / 3), "numpy": np.float64(2 / 3), "int": 3, "none": None, "text": "µ"}
    path = write("one", {**CONTENT, "numbers": numbers, "curves": {"t": torch.arange(3) / 7}}, tmp_path)
    back = read("one", tmp_path)
    assert back["numbers"] == {"torch": 0.33333334, "numpy": 0.66666667, "int": 3, "none": None, "text": "µ"}
    assert back["curves"]["t"] == [0.0, 0.14285715, 0.2857143]
    assert [p.name for p in tmp_path.iterdir()] == ["one.json"]
    assert path.read_text(encoding="utf-8").endswith("}\n")


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_eight_digits_survive(value):
    stored = results._plain(value, "x")
    assert math.isclose(stored, value, rel_tol=1e-7, abs_tol=5e-324)
    assert json.loads(json.dumps(stored)) == stored


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"x": float("nan")}, r"one\.numbers\.x is nan"),
        ({"x": [1.0, math.inf]}, r"numbers\.x\[1\] is inf"),
        ({"x": torch.tensor([[1.0], [math.nan]])}, r"x\[1\]\[0\] is nan"),
        ({"x": object()}, "of type object"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, bad, words):
    write("one", CONTENT, tmp_path)
    before = (tmp_path / "one.json").read_bytes()
    with pytest.raises(ResultError, match=words):
        write("one", {**CONTENT, "numbers": bad}, tmp_path)
    assert (tmp_path / "one.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_an_incomplete_result_is_refused(tmp_path):
    with pytest.raises(ResultError, match="lacks title"):
        write("one", {k: v for k, v in CONTENT.items() if k != "title"}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_what_is_missing(tmp_path):
    with pytest.raises(ResultError, match=r"one\.json does not exist.*python -m studies one"):
        read("one", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ('{"name": "one", "curves": ', "damaged"),
        ('{"name": "one", "title": NaN}', "holds NaN"),
        ("[1, 2]", "lacks name"),
        ('{"name": "one"}', "lacks title, settings"),
        (json.dumps(CONTENT), "it has no checksum .* as files of earlier versions"),
        (signed({**CONTENT, "name": "two"}), "calls itself 'two'"),
        (signed({**CONTENT, "curves": 5}), "its curves is int and must be dict"),
        (signed({**CONTENT, "curves": {"a": 5}}), "its curve a is int, no list of numbers"),
        (signed({**CONTENT, "curves": {"a": {"t": [0.0, "1"]}}}), r"its curve a\.t holds the text '1'"),
        (signed({**CONTENT, "title": None}), "its title is NoneType and must be str"),
        (signed(CONTENT).replace("[0.0, 1.0]", "[0.0, 2.0]"), "does not fit its checksum"),
        (signed(CONTENT).replace("[0.0, 1.0]", "[0.0, 1e999]"), "holds 1e999, which is beyond float64"),
    ],
)
def test_reading_what_is_damaged(tmp_path, text, words):
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(ResultError, match=words) as error:
        read("one", tmp_path)
    assert "one.json" in str(error.value)
    assert "python -m studies one" in str(error.value)


def without_a_checksum(content: bytes) -> object:
    """The control: a reader that looks at the form of a file and at nothing else."""
    try:
        found = json.loads(content)
        _storage.check_entries(found, results.ENTRIES)
        return found
    except (ValueError, KeyError):
        return None


@pytest.mark.parametrize("name", sorted(path.stem for path in results.folder().glob("*.json")))
def test_no_damage_of_a_stored_result_is_read_as_sound(tmp_path, name):
    """What is read of a damaged file is what was stored, or nothing."""
    sound, content = read(name), results.path_of(name).read_bytes()
    stored = json.loads(content)
    each = 3 if len(content) < 100_000 else 1
    count, refused, mistaken = 0, 0, 0
    for kind, other in damages.damaged(content, damages.OF_TEXT, each, seed=name):
        (tmp_path / f"{name}.json").write_bytes(other)
        count += 1
        try:
            assert read(name, tmp_path) == sound, kind  # a blank more or less, or lines in another order
        except ResultError:
            refused += 1
        mistaken += without_a_checksum(other) not in (None, stored)
    assert refused > 0.7 * count
    assert mistaken > 0.1 * count  # so many would be taken for good without the checksum


def test_a_curve_that_is_none_is_not_stored(tmp_path):
    with pytest.raises(ResultError, match="was not stored: its curve t is float, no list of numbers"):
        write("one", {**CONTENT, "curves": {"t": 1.0}}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_bytes_that_are_no_text(tmp_path):
    (tmp_path / "one.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ResultError, match="it is no JSON"):
        read("one", tmp_path)


@pytest.mark.parametrize("name", ["", "../one", "One", "a.json", "a b", None])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="small letters"):
        read(name, tmp_path)


def test_the_folder_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "book" / "results").mkdir(parents=True)
    write("one", CONTENT, tmp_path / "book" / "results")
    monkeypatch.chdir(tmp_path / "book")
    assert read("one")["title"] == "a result"


# --- curves and data ------------------------------------------------------------------------------------------------


@given(length=st.integers(0, 2000), points=st.integers(2, 300))
def test_thin_keeps_both_ends(length, points):
    (kept,) = thin({"x": range(length)}, points).values()
    assert len(kept) == min(length, points)
    assert kept[:1] == list(range(length))[:1]
    assert kept[-1:] == list(range(length))[-1:]
    assert kept == sorted(set(kept))


def test_thin_wants_curves_of_one_length():
    with pytest.raises(ValueError, match="one length"):
        thin({"x": [1, 2], "y": [1]})
    with pytest.raises(ValueError, match="at least 2"):
        thin({"x": [1, 2]}, points=1)
    assert thin({}) == {}


def test_the_checksum_tells_data_apart():
    data = digits("test").first(20)
    shuffled = data[torch.arange(19, -1, -1)]
    assert describe(data)["sha256"] == describe(digits("test").first(20))["sha256"]
    assert describe(data)["sha256"] != describe(shuffled)["sha256"]


# --- making ---------------------------------------------------------------------------------------------------------


def test_make_adds_the_provenance(tmp_path, registered):
    @registered("a quick one")
    def quick():
        assert torch.get_num_threads() == THREADS
        return {"numbers": {"x": 2.0}, "settings": {"seed": 3}}

    make("quick", tmp_path)
    back = read("quick", tmp_path)
    assert (back["title"], back["numbers"], back["settings"]) == ("a quick one", {"x": 2.0}, {"seed": 3})
    assert {"nlcompanion", "torch", "numpy", "scipy", "python", "device", "made", "duration_seconds"} <= set(
        back["provenance"]
    )


def test_where_nothing_can_be_stored_nothing_is_made(tmp_path, registered, capsys):
    ran = []

    @registered("a long one")
    def long():
        ran.append(True)
        return {}

    (tmp_path / "file").write_text("")
    (tmp_path / "long.json").mkdir()
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", tmp_path):
        with pytest.raises(ResultError, match=r"long\.json cannot be stored .* it was not made; name another folder"):
            make("long", folder)
        assert main(["long", "--folder", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert ran == []
    make("long", tmp_path / "new")
    assert ran == [True]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["long.json"]


def test_a_name_is_registered_once(registered):
    @registered("first")
    def twice():
        return {}

    with pytest.raises(ValueError, match="a result twice already"):
        registered("second")(twice)


def test_unknown_results(tmp_path, capsys):
    with pytest.raises(ResultError, match="there are forecasts_on_small_trainings, gu_fig1_kmnist"):
        make("nonsense", tmp_path)
    assert main(["nonsense", "--folder", str(tmp_path)]) == 2
    assert "no such result: nonsense" in capsys.readouterr().err


def test_missing_data_is_skipped_and_said(tmp_path, registered, capsys):
    @registered("needs data")
    def needy():
        raise DataError("the file is not there; fetch it")

    where = ["--folder", str(tmp_path)]
    assert main(where) == 1  # nothing at all could be made

    @registered("needs nothing")
    def modest():
        return {"numbers": {"x": 1.0}}

    @registered("diverges")
    def wild():
        return {"numbers": {"x": math.inf}}

    assert main(where) == 0
    assert main(["needy", "modest", *where]) == 1  # asked for by name
    assert main(["modest", *where]) == 0
    out, err = capsys.readouterr()
    assert "needy: skipped, its data cannot be had: the file is not there; fetch it" in err
    assert "wild: not stored: wild.numbers.x is inf" in err
    assert "modest: wrote" in out
    assert [p.name for p in tmp_path.iterdir()] == ["modest.json"]


@pytest.mark.slow
def test_the_command_line(tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "studies", *arguments]
        environment = {**os.environ, "NLCOMPANION_DATA": str(tmp_path / "nowhere")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    listed = call("--list")
    assert listed.returncode == 0
    assert "gu_fig1_kmnist  GU Fig. 1" in listed.stdout
    skipped = call("gu_fig1_kmnist", "--folder", str(tmp_path))
    assert skipped.returncode == 1
    assert "skipped" in skipped.stderr
    assert "nowhere does not exist" in skipped.stderr
    assert not list(tmp_path.iterdir())


# --- GU Fig. 1 ------------------------------------------------------------------------------------------------------


def test_the_experiment_on_digits():
    data = digits("train").first(100)
    got = two_layer_norms(data, (64, 12, 12, 12, 10), lr=0.05, steps=150, accelerated_steps=60)
    numbers, curves = got["numbers"], got["curves"]
    assert got["data"]["name"] == "digits train"
    assert float(numbers["gd_prediction_error_over_drift"]) < 1e-8
    assert float(numbers["nd_imbalance"]) < 1e-10
    assert float(numbers["nagd_imbalance"]) < 1e-10
    for rule in ("nd", "nagd"):  # the balance holds while the difference itself does not stay
        reads, writes = (torch.tensor(curves[rule][side]) for side in ("reads", "writes"))
        assert ((reads - writes) - (reads - writes)[0]).abs().max() > 1e-3
        assert max(map(abs, curves[rule]["pull_reads"])) > 1e-4


def test_the_stored_figure_is_the_papers():
    stored = read("gu_fig1_kmnist")
    assert stored["settings"]["widths"] == [784, 200, 200, 200, 10]
    assert stored["settings"]["steps"]["gd"] == 1500
    assert (stored["data"]["name"], stored["data"]["samples"]) == ("kmnist test", 1000)
    curves = stored["curves"]["gd"]
    assert all(len(curve) == 200 for curve in curves.values())
    assert curves["loss"][0] > 2.2 > 0.5 > curves["loss"][-1]
    assert stored["numbers"]["gd_drift_over_move"] < 1e-4
    assert max(abs(a - b) for a, b in zip(curves["drift"], curves["predicted"], strict=True)) < 1e-11


# --- GU Fig. 2 ------------------------------------------------------------------------------------------------------


def test_two_layers_apart_on_digits():
    got = layers_apart(digits("train").first(100), (64, 12, 12, 12, 12, 10), lr=2e-4, steps=200)
    numbers, curves = got["numbers"], got["curves"]["gd"]
    assert float(numbers["prediction_error_over_drift"]) < 1e-9
    assert abs(float(numbers["slope"]) - 4) < 0.1 < abs(float(numbers["slope_one_layer"]) - 4)
    assert abs(curves["reads"][-1] - curves["reads"][0]) > 0.1  # something moves, or a slope would mean nothing


def test_the_stored_second_figure_is_the_papers():
    stored = read("gu_fig2_kmnist")
    assert stored["settings"]["widths"] == [784, 200, 200, 200, 200, 10]
    assert stored["settings"]["activations"] == ["relu", "repu(2)", "repu(2)", "relu"]
    assert (stored["data"]["name"], stored["data"]["samples"]) == ("kmnist test", 1000)
    assert abs(stored["numbers"]["slope"] - 4) < 0.01
    curves = stored["curves"]["gd"]
    assert curves["loss"][0] > 20 > 0.05 > curves["loss"][-1]
    assert max(abs(a - b) for a, b in zip(curves["drift"], curves["predicted"], strict=True)) < 1e-10
