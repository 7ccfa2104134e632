"""Data sets: what they hold, and that whatever is wrong with a file or a server ends in a DataError."""

import gzip
import hashlib
import io
import itertools
import math
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import damages
import dataset_server as made
import numpy as np
import pytest
import torch
from dataset_server import TRAIN, VAL, WNIDS, idx, md5, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from nlcompanion import DataError, Dataset, digits, kmnist, tiny_imagenet
from nlcompanion.datasets import __all__ as public
from nlcompanion.datasets import archives as _archives
from nlcompanion.datasets import describe
from nlcompanion.datasets import download as _files

# functions of the same names hide these modules
_kmnist = import_module("nlcompanion.datasets.kmnist")
_tiny_imagenet = import_module("nlcompanion.datasets.tiny_imagenet")

torch.set_num_threads(1)
ROOT = "tiny-imagenet-200"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own, short waits, and no folder named by the environment."""
    place = tmp_path / "cache"
    for module in (_files, _kmnist, _tiny_imagenet):
        monkeypatch.setattr(module, "cache_folder", lambda: place)
    monkeypatch.setattr(_files, "TIMEOUT", 5.0)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)  # between two attempts
    monkeypatch.delenv("NLCOMPANION_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return place


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    return place


@pytest.fixture
def server():
    server = made.Server()
    yield server
    server.close()


@pytest.fixture
def kmnist_files(monkeypatch) -> dict[str, bytes]:
    """The files of a small KMNIST, 20 test and 30 training images, that pass for the official ones."""
    files, official = {}, {}
    for split, prefix, count in (("test", "t10k", 20), ("train", "train", 30)):
        both = made.kmnist_files(count, prefix, seed=count)
        (images, a), (labels, b) = both.items()
        official[split] = tuple(
            _kmnist.Published(name[:-3], shape, md5(content), md5(gzip.decompress(content)))
            for name, shape, content in ((images, (count, 28, 28), a), (labels, (count,), b))
        )
        files |= both
    monkeypatch.setattr(_kmnist, "OFFICIAL", official)
    return files


@pytest.fixture
def served_kmnist(server, kmnist_files, monkeypatch) -> made.Server:
    server.files = kmnist_files
    monkeypatch.setattr(_kmnist, "URL", server.url)
    return server


@pytest.fixture
def tiny_files(monkeypatch) -> dict[str, bytes]:
    sizes = {"classes": len(WNIDS), "train": TRAIN, "val": VAL, "side": made.SIDE, "size": 0}
    official = _tiny_imagenet.Official(md5="", digests=None, **sizes)
    monkeypatch.setattr(_tiny_imagenet, "OFFICIAL", official)
    return made.tiny_files()


def write_zip(folder: Path, content: bytes, monkeypatch) -> None:
    """Put a zip there that passes for the official one."""
    (folder / f"{ROOT}.zip").write_bytes(content)
    official = replace(_tiny_imagenet.OFFICIAL, size=len(content), md5=md5(content))
    monkeypatch.setattr(_tiny_imagenet, "OFFICIAL", official)


def tiny(folder: Path, split: str = "train", **options) -> Dataset:
    return tiny_imagenet(split, folder=folder, download=False, progress=False, **options)


# ---- Dataset


def small(numbers=(0, 1, 2, 0, 1, 0), **changes) -> Dataset:
    images = torch.arange(4 * len(numbers), dtype=torch.uint8).reshape(-1, 1, 2, 2)
    values = {"name": "small", "images": images, "labels": torch.tensor(numbers), "classes": ("a", "b", "c")}
    return Dataset(**(values | changes))


def test_subsets():
    ds = small()
    assert len(ds) == 6
    assert ds[1:3].labels.tolist() == [1, 2]
    assert ds[[5, -2]].labels.tolist() == [0, 1]
    assert ds[torch.tensor([2, 2])].images[:, 0, 0, 0].tolist() == [8, 8]
    assert ds[ds.labels == 0].images[:, 0, 0, 0].tolist() == [0, 12, 20]
    assert ds[np.array([True] * 2 + [False] * 4)].labels.tolist() == [0, 1]
    assert len(ds[[]]) == len(ds[:0]) == len(ds.first(0)) == len(ds.balanced(0)) == 0
    assert ds.first(2).classes == ds.classes
    assert repr(ds) == "Dataset(small: 6 images of 1 x 2 x 2, 3 classes)"


@pytest.mark.parametrize(
    ("which", "error", "words"),
    [
        (3, TypeError, r"ds\[i : i \+ 1\]"),
        ([0.5], TypeError, "integers of shape"),
        ([[0, 1]], TypeError, r"shape \(1, 2\)"),
        ([6], IndexError, "6 samples"),
        ([-7], IndexError, "6 samples"),
        (torch.ones(5, dtype=torch.bool), IndexError, "5 entries"),
    ],
)
def test_bad_subsets(which, error, words):
    with pytest.raises(error, match=words):
        small()[which]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(6, 1, 2, 2)}, "images are uint8"),
        ({"images": torch.zeros(6, 4, dtype=torch.uint8)}, r"\(6, 4\)"),
        ({"labels": torch.zeros(6)}, "labels are int64"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"shape \(6,\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "there are 3 classes"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, "from -1"),
        ({"levels": 0}, "levels"),
        ({"levels": 256}, "levels"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


@given(st.integers(-(2**40), 2**40))
def test_a_count_out_of_range_is_refused(n):
    ds = small()
    for draw in (ds.first, ds.balanced):
        if 0 <= n <= 6:
            assert len(draw(n)) == n
        else:
            with pytest.raises(ValueError, match=f"got n = {n}"):
                draw(n)


def test_counts_and_seeds_are_integers():
    with pytest.raises(ValueError, match=r"n must be an integer, got 2\.0"):
        small().first(2.0)
    with pytest.raises(ValueError, match="seed"):
        small().balanced(2, seed=-1)


@given(st.lists(st.integers(0, 2), max_size=40), st.data())
def test_balanced_is_as_equal_as_the_data_allow(labels, data):
    ds = small(labels or [0])
    n = data.draw(st.integers(0, len(ds)))
    seed = data.draw(st.integers(0, 2**32))
    part = ds.balanced(n, seed)
    assert torch.equal(part.images, ds.balanced(len(ds), seed).first(n).images)  # nested
    assert len({int(image[0, 0, 0]) for image in part.images}) == n  # without repetition
    have, got = (torch.bincount(x.labels, minlength=3).tolist() for x in (ds, part))
    most = max(got)
    assert all(g >= min(h, most - 1) for h, g in zip(have, got, strict=True))


def test_standardised_inputs():
    ds = digits("train")
    inputs, labels = ds.tensors()
    assert inputs.shape == (1438, 1, 8, 8)
    assert inputs.dtype == torch.float64
    entries = inputs.flatten().tolist()  # summed exactly: torch's own sums have errors of this size, in its order
    assert abs(math.fsum(entries)) / len(entries) < 1e-15
    assert abs(math.fsum(x * x for x in entries) / len(entries) - 1) < 1e-15
    flat, _ = ds.tensors(torch.float32, flatten=True)
    assert flat.dtype == torch.float32
    assert torch.allclose(flat.double(), inputs.flatten(1), atol=1e-6)
    plain, _ = ds.tensors(standardize=False)
    assert plain.min() == 0
    assert plain.max() == 1
    labels[0] = 7  # a copy
    assert torch.equal(ds.labels, digits("train").labels)


def test_standardising_by_another_data_set():
    train, test = digits("train"), digits("test")
    grey = train.images.double()
    mean, deviation = grey.mean(), grey.std(correction=0)
    assert torch.allclose(test.tensors(standardize=train)[0], (test.images.double() - mean) / deviation)
    assert not torch.allclose(test.tensors()[0], test.tensors(standardize=train)[0])


def test_moments_of_more_images_than_are_counted_at_once():
    greys = torch.zeros(6000, 1, 2, 2, dtype=torch.uint8)
    greys[:4500] = 200
    labels = torch.zeros(6000, dtype=torch.int64)
    mean, deviation = Dataset("halves", greys, labels, ("one",)).moments()
    assert mean == 150
    assert deviation == pytest.approx(math.sqrt(0.75 * 50**2 + 0.25 * 150**2), rel=1e-15)


def test_the_checksum_is_that_of_images_and_labels():
    whole = digits("test").first(20)
    others = replace(whole, labels=whole.labels.flip(0))
    darker = replace(whole, images=whole.images.flip(0))
    assert len({describe(data)["sha256"] for data in (whole, others, darker)}) == 3
    assert describe(whole) == describe(replace(whole, labels=whole.labels.clone()))


def test_what_cannot_be_standardised():
    same = small(images=torch.full((6, 1, 2, 2), 9, dtype=torch.uint8))
    for ds in (same, small()[:0]):
        with pytest.raises(ValueError, match="standardize=False"):
            ds.tensors()
        assert len(ds.tensors(standardize=False)[0]) == len(ds)
    with pytest.raises(TypeError, match=r"torch\.float64"):
        small().tensors(torch.int64)


# ---- digits


def test_digits_are_scikit_learns_and_do_not_load_it(monkeypatch):
    code = "import sys, nlcompanion; nlcompanion.digits(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    raw, quick = load_digits(), digits("all")
    assert (quick.images[:, 0].numpy() == raw.images).all()
    assert (quick.labels.numpy() == raw.target).all()
    monkeypatch.setattr(Path, "exists", lambda path: False)  # should the file ever move
    slow = digits("all")
    assert torch.equal(slow.images, quick.images)
    assert torch.equal(slow.labels, quick.labels)


def test_digits_are_split_once_for_all():
    whole, train, test = digits("all"), digits("train"), digits("test")
    assert (len(whole), len(train), len(test)) == (1797, 1438, 359)
    assert whole.images.shape[1:] == (1, 8, 8)
    assert whole.images.max() == whole.levels == 16
    rows = [{bytes(image.numpy().tobytes()) for image in ds.images} for ds in (whole, train, test)]
    assert rows[1] | rows[2] == rows[0]
    assert not rows[1] & rows[2]
    for label, count in enumerate(whole.labels.bincount().tolist()):
        assert abs((train.labels == label).sum() - 0.8 * count) <= 0.5
    # the drawing itself: these sums differ for any other split, and are the same on every machine
    assert md5(train.images.numpy().tobytes()) == "1bba65c1413c45667ce9d4740dbdd04b"
    assert md5(test.labels.numpy().tobytes()) == "41156f34305ce6e211abc8dcc418d3ad"
    assert md5(train.balanced(100).images.numpy().tobytes()) == "c7dcb7ddb55f5c118a469f47c486ba8a"


@given(st.text(max_size=8))
def test_an_unknown_split_is_refused(split):
    for loader, known in (
        (digits, ("train", "test", "all")),
        (kmnist, ("train", "test")),
        (tiny_imagenet, ("train", "val")),
    ):
        if split not in known:
            with pytest.raises(ValueError, match="split is one of"):
                loader(split)


def test_heavy_libraries_wait_until_they_are_needed():
    code = "import sys, nlcompanion.datasets; print({'sklearn', 'PIL', 'pooch', 'requests'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# ---- idx files

arrays = st.lists(st.integers(0, 6), min_size=1, max_size=3).flatmap(
    lambda shape: st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    )
)


@given(arrays)
def test_idx_round_trip(array):
    found = _kmnist.parse_idx(idx(array), array.shape, "x")
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)


@given(arrays, st.data())
def test_a_damaged_idx_header_or_length_is_always_noticed(array, data):
    content = idx(array)
    kind = data.draw(st.sampled_from(["header", "cut", "longer"]))
    if kind == "header":
        position = data.draw(st.integers(0, 3 + 4 * array.ndim))
        change = bytes([content[position] ^ data.draw(st.integers(1, 255))])
        content = content[:position] + change + content[position + 1 :]
    elif kind == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(DataError, match="is not the idx file it should be"):
        _kmnist.parse_idx(content, array.shape, "x")


@given(st.binary(max_size=64), st.lists(st.integers(0, 5), max_size=3).map(tuple))
def test_any_bytes_parse_to_exactly_themselves_or_not_at_all(content, shape):
    try:
        array = _kmnist.parse_idx(content, shape, "x")
    except DataError:
        return
    assert idx(array) == content


def test_an_absurd_shape_is_refused_without_allocating():
    content = bytes([0, 0, 8, 3]) + b"\x80\0\0\0" * 3 + bytes(10)
    for shape in ((2, 2, 2), (2**31, 2**31, 2**31)):
        with pytest.raises(DataError, match=r"2147483648|follow its header"):
            _kmnist.parse_idx(content, shape, "x")


def unverified(array: np.ndarray) -> _kmnist.Published:
    return _kmnist.Published("x", array.shape, "", None)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_gzip_file_gives_the_same_data_or_an_error(data, monkeypatch):
    monkeypatch.setattr(_kmnist, "verify", lambda path, md5: None)  # what the checksum would find is not in question
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    content = bytearray(gzip.compress(idx(array), mtime=0))
    kind = data.draw(st.sampled_from(["change", "cut", "longer"]))
    if kind == "change":
        for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[position] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content += data.draw(st.binary(min_size=1, max_size=30))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.gz"
        path.write_bytes(content)
        with suppress(DataError):
            assert np.array_equal(_kmnist.read_idx(path, unverified(array)), array)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(10, np.uint8)) + bytes(50_000_000), 1))
    sizes = []
    monkeypatch.setattr(_kmnist, "verify", lambda path, md5: None)
    parse = _kmnist.parse_idx
    monkeypatch.setattr(_kmnist, "parse_idx", lambda data, *rest: sizes.append(len(data)) or parse(data, *rest))
    with pytest.raises(DataError, match="11 bytes follow its header instead of 10"):
        _kmnist.read_idx(path, unverified(np.zeros(10)))
    assert sizes == [8 + 11]


# ---- KMNIST in a folder


@pytest.mark.parametrize("place", [".", "kmnist", "KMNIST/raw"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_kmnist_in_a_folder(folder, cache, kmnist_files, place, unpacked):
    files = {
        name.removesuffix(".gz") if unpacked else name: gzip.decompress(content) if unpacked else content
        for name, content in kmnist_files.items()
    }
    made.write_folder(folder / place, files)
    for split, count in (("test", 20), ("train", 30)):
        ds = kmnist(split, folder=folder)
        content = gzip.decompress(kmnist_files[_kmnist.OFFICIAL[split][0].name + ".gz"])
        assert ds.images.shape == (count, 1, 28, 28)
        assert ds.images.numpy().tobytes() == content[16:]
        assert ds.labels.bincount().tolist() == [count // 10] * 10
        assert ds.licence == "CC BY-SA 4.0"
    assert tree(folder / place) == files
    assert not cache.exists()


def test_the_environment_names_the_folder_and_an_argument_overrides_it(folder, tmp_path, kmnist_files, monkeypatch):
    made.write_folder(folder, kmnist_files)
    monkeypatch.setenv("NLCOMPANION_DATA", str(folder))
    assert len(kmnist("test")) == 20
    with pytest.raises(DataError, match="other does not exist; it was named by folder="):
        kmnist("test", folder=tmp_path / "other")
    monkeypatch.setenv("NLCOMPANION_DATA", str(tmp_path / "other"))
    with pytest.raises(DataError, match="environment variable NLCOMPANION_DATA"):
        kmnist("test")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not a folder"):
        kmnist("test", folder=tmp_path / "file")


def test_a_kmnist_file_that_is_not_the_published_one(folder, kmnist_files):
    name = "t10k-images-idx3-ubyte.gz"
    for wrong in (kmnist_files[name][:-1], b"", kmnist_files["train-images-idx3-ubyte.gz"]):
        made.write_folder(folder, kmnist_files | {name: wrong})
        with pytest.raises(DataError) as caught:
            kmnist("test", folder=folder)
        for part in (name, md5(wrong), md5(kmnist_files[name]), "fetch it again"):
            assert part in str(caught.value)


def test_images_without_labels(folder, kmnist_files):
    name = "t10k-images-idx3-ubyte.gz"
    made.write_folder(folder, {name: kmnist_files[name]})
    with pytest.raises(DataError, match=f"holds {name}, but neither t10k-labels-idx1-ubyte"):
        kmnist("test", folder=folder)


@pytest.mark.parametrize("labels", [[10] + [1] * 19, [0] * 20, list(range(10)) + [0] * 10, [255] * 20])
def test_unpacked_labels_that_cannot_be_right(folder, kmnist_files, labels, monkeypatch):
    unknown = tuple(published._replace(md5_unpacked=None) for published in _kmnist.OFFICIAL["test"])
    monkeypatch.setitem(_kmnist.OFFICIAL, "test", unknown)
    unpacked = {name[:-3]: gzip.decompress(content) for name, content in kmnist_files.items()}
    unpacked["t10k-labels-idx1-ubyte"] = idx(np.array(labels, np.uint8))
    made.write_folder(folder, unpacked)
    with (
        pytest.warns(UserWarning, match="no checksum is published, so a damaged pixel would not be noticed"),
        pytest.raises(DataError, match="0 to 9 equally often"),
    ):
        kmnist("test", folder=folder)


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_unpacked_file_that_is_not_the_published_one(folder, kmnist_files, name):
    unpacked = {name[:-3]: gzip.decompress(content) for name, content in kmnist_files.items()}
    made.write_folder(folder, unpacked)
    assert len(kmnist("test", folder=folder)) == 20
    content = bytearray(unpacked[name])
    content[-1] = (content[-1] + 1) % 10
    made.write_folder(folder, {name: bytes(content)})
    with pytest.raises(DataError, match=rf"{name} has the MD5 checksum .*would give wrong data without a warning"):
        kmnist("test", folder=folder)


def test_nothing_there_and_no_download(folder, cache, kmnist_files, tiny_files):
    for load in (kmnist, tiny_imagenet):
        with pytest.raises(DataError, match="download=False") as caught:
            load("train", folder=folder, download=False)
        assert str(folder) in str(caught.value)
        assert str(cache) in str(caught.value)
    assert not cache.exists()


# ---- downloads


def test_a_download_is_kept_and_not_repeated(served_kmnist, cache, folder, kmnist_files, capfd):
    for split in ("test", "train"):
        kmnist(split, folder=folder, progress=False)
    assert capfd.readouterr() == ("", "")
    assert tree(cache / "kmnist") == kmnist_files
    assert not tree(folder)
    assert len(served_kmnist.log) == 4
    served_kmnist.files = {}
    assert len(kmnist("test", progress=False)) == 20
    assert len(kmnist("test", download=False)) == 20
    assert len(served_kmnist.log) == 4


def test_a_download_shows_its_progress(served_kmnist, capfd):
    kmnist("test")
    assert "t10k-images-idx3-ubyte.gz: 100%" in capfd.readouterr().err


def test_a_damaged_file_in_the_cache_is_fetched_again(served_kmnist, cache, kmnist_files):
    kmnist("test", progress=False)
    path = cache / "kmnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="MD5"):
        kmnist("test", download=False)
    assert len(kmnist("test", progress=False)) == 20
    assert path.read_bytes() == kmnist_files[path.name]


@pytest.mark.parametrize(
    ("script", "requests", "words"),
    [
        ([("status", 404)], 1, "answered 404"),
        ([("status", 403)], 1, "answered 403"),
        ([("status", 500)] * 3, 3, "500 Server Error"),
        ([("wrong", b"<html>please log in</html>")] * 3, 3, "not the published file"),
        ([("wrong", b"")] * 3, 3, "not the published file"),
        ([("hang", None)] * 3, 3, r"Read timed out"),
        ([("stall", 100)] * 3, 3, "Read timed out"),
        ([("cut", 100)] * 3, 3, "IncompleteRead"),
        ([("cut", 0)] * 3, 3, "IncompleteRead"),
        ([("endless", None)], 1, "longer than"),
    ],
)
def test_bad_answers_end_in_an_error_and_leave_nothing(served_kmnist, cache, monkeypatch, script, requests, words):
    if script[0][0] in ("hang", "stall"):
        monkeypatch.setattr(_files, "TIMEOUT", 0.3)
    served_kmnist.script = list(script)
    with pytest.raises(DataError, match=words) as caught:
        kmnist("test", progress=False)
    for part in (served_kmnist.url + "t10k-images-idx3-ubyte.gz", "NLCOMPANION_DATA"):
        assert part in str(caught.value)
    assert len(served_kmnist.log) == requests
    assert tree(cache) == {}


@pytest.mark.parametrize(
    "script",
    [
        [("status", 503)],
        [("hang", None)],
        [("status", 500), ("cut", 50)],
        [("cut", 1000)],
        [("wrong", b"<html>please log in</html>")],
        [("mislabelled", None)],
    ],
)
def test_a_server_that_recovers_is_forgiven(served_kmnist, cache, kmnist_files, monkeypatch, script):
    if script[0][0] == "hang":
        monkeypatch.setattr(_files, "TIMEOUT", 0.3)
    served_kmnist.script = list(script)
    assert len(kmnist("test", progress=False)) == 20
    assert tree(cache / "kmnist") == {name: kmnist_files[name] for name in kmnist_files if "t10k" in name}


def test_the_next_call_starts_clean_after_a_failure(served_kmnist, cache):
    served_kmnist.script = [("cut", 1000)] * 3
    with pytest.raises(DataError, match="IncompleteRead"):
        kmnist("test", progress=False)
    assert len(kmnist("test", progress=False)) == 20


def test_an_answer_that_drips_for_ever_is_given_up(served_kmnist, cache, monkeypatch):
    monkeypatch.setattr(_files, "GRACE", 0.2)
    served_kmnist.script = [("drip", 0.01)]
    with pytest.raises(DataError, match="bytes came per second"):
        kmnist("test", progress=False)
    assert tree(cache) == {}


def test_no_server_at_all(kmnist_files, cache, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setattr(_kmnist, "URL", f"http://127.0.0.1:{held.getsockname()[1]}/")
        with pytest.raises(DataError, match=r"Connection refused.*NLCOMPANION_DATA"):
            kmnist("test", progress=False)
    monkeypatch.setattr(_kmnist, "URL", "nonsense://x/")
    with pytest.raises(DataError, match="nonsense"):
        kmnist("test", progress=False)
    assert tree(cache) == {}


def test_a_full_disk(served_kmnist, cache):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"could not be kept in .*make room"):
            kmnist("test", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(cache) == {}


def test_a_cache_that_cannot_be_made(served_kmnist, cache):
    cache.write_text("a file in its place")
    with pytest.raises(DataError, match="could not be kept"):
        kmnist("test", progress=False)


def test_an_interruption_leaves_nothing(served_kmnist, cache, monkeypatch):
    def interrupted(*_):
        yield b"some of it"
        raise KeyboardInterrupt

    monkeypatch.setattr(_files, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kmnist("test", progress=False)
    assert tree(cache) == {}


def test_tiny_imagenet_is_downloaded(server, cache, tiny_files, monkeypatch):
    content = made.zip_bytes(tiny_files)
    server.files = {f"{ROOT}.zip": content}
    official = replace(_tiny_imagenet.OFFICIAL, url=server.url + f"{ROOT}.zip", size=len(content), md5=md5(content))
    monkeypatch.setattr(_tiny_imagenet, "OFFICIAL", official)
    assert len(tiny_imagenet("train", progress=False)) == len(WNIDS) * TRAIN
    assert len(tiny_imagenet("val", progress=False)) == len(WNIDS) * VAL
    assert len(server.log) == 1
    kept = sorted(tree(cache))
    assert kept[-1] == f"tiny-imagenet/{ROOT}.zip"
    assert [Path(name).suffix for name in kept[:-1]] == [".npz", ".npz"]


# ---- Tiny ImageNet in a folder


def lay_out(kind: str, folder: Path, files: dict[str, bytes], monkeypatch) -> None:
    if kind in ("folder", "sub-folder", "itself"):
        made.write_folder(folder / ("tiny-imagenet" if kind == "sub-folder" else ""), files)
    elif kind == "zip":
        write_zip(folder, made.zip_bytes(files), monkeypatch)
    else:
        items = list(files.items())
        parts = {f"part-{i}": dict(items[i::3]) for i in range(3)}
        (folder / "tiny-imagenet").mkdir()
        for i, (name, part) in enumerate(parts.items()):
            if i == 2:
                part = {f"./{key}": value for key, value in part.items()}
            suffix, mode = (".tar", "w:") if kind == "tars" else (".tar.gz", "w:gz")
            (folder / "tiny-imagenet" / f"{name}{suffix}").write_bytes(made.tar_bytes(part, mode=mode))
        (folder / "unrelated.tar.gz").write_bytes(made.tar_bytes({"cifar/x": b""}))


@pytest.mark.parametrize("kind", ["folder", "sub-folder", "itself", "zip", "tars", "gzipped tars"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_layout_gives_the_same_data(folder, tiny_files, monkeypatch, kind, split):
    lay_out(kind, folder, tiny_files, monkeypatch)
    before = tree(folder)
    ds = tiny(folder / ROOT if kind == "itself" else folder, split)
    per_class = {"train": TRAIN, "val": VAL}[split]
    assert ds.classes == ("thing 7, stuff", "thing 3, stuff", "thing 5, stuff")
    assert ds.labels.tolist() == [0, 1, 2] * per_class
    assert ds.images.shape == (3 * per_class, 3, made.SIDE, made.SIDE)
    for image, (number, label) in zip(ds.images, itertools.product(range(per_class), range(3)), strict=True):
        if (split, label, number) == ("train", 1, 2):  # the grey one
            assert torch.equal(image[0], image[1])
            assert torch.equal(image[0], image[2])
        else:
            mean = image.double().mean((1, 2))
            assert (mean - torch.tensor(made.colour(label, number))).abs().max() < 4
    assert tree(folder) == before


def test_image_2_comes_before_image_10():
    wnid = WNIDS[0]
    names = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for number in (10, 2, 1)]
    found = _tiny_imagenet._by_class(None, dict.fromkeys(names), "train")
    assert [number for number, _ in found[wnid]] == [1, 2, 10]


def test_rows_stay_rows(tiny_files):
    """Of an image whose upper half is red, and whose left half is blue."""
    pixels = np.zeros((made.SIDE, made.SIDE, 3), dtype=np.uint8)
    half = made.SIDE // 2
    pixels[:half, :, 0], pixels[:, :half, 2] = 250, 250
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=100, subsampling=0)
    red, _, blue = _tiny_imagenet._decode_jpeg(out.getvalue(), "one.JPEG", Path())
    assert red[:half].mean() > 200 > 50 > red[half:].mean()
    assert blue[:, :half].mean() > 200 > 50 > blue[:, half:].mean()


@pytest.mark.parametrize("whole_first", [False, True])
def test_a_selection_is_a_part_of_the_whole(folder, tiny_files, whole_first):
    made.write_folder(folder, tiny_files)
    if whole_first:  # then it comes out of the decoded whole
        tiny(folder)
        made.write_folder(folder / "again", {})
    part = tiny(folder, classes=2, per_class=3)
    whole = tiny(folder)
    assert part.classes == whole.classes[:2]
    assert part.labels.tolist() == [0, 1] * 3
    assert torch.equal(part.images, whole.images.reshape(TRAIN, 3, 3, made.SIDE, made.SIDE)[:3, :2].flatten(0, 1))


@given(st.integers(-3, 600), st.sampled_from(["classes", "per_class"]), st.sampled_from(["train", "val"]))
def test_selections_out_of_range_are_refused(value, name, split):
    most = 200 if name == "classes" else {"train": 500, "val": 50}[split]
    if not 1 <= value <= most:
        with pytest.raises(ValueError, match=f"{name} is an integer from 1 to {most}"):
            tiny_imagenet(split, **{name: value}, download=False)


def test_selections_are_integers():
    with pytest.raises(ValueError, match="got True"):
        tiny_imagenet(classes=True)
    with pytest.raises(ValueError, match=r"got 2\.5"):
        tiny_imagenet(classes=2.5)


def test_decoded_images_are_kept(folder, cache, tiny_files, monkeypatch):
    made.write_folder(folder, tiny_files)
    first = tiny(folder)
    (kept,) = (cache / "decoded").iterdir()
    decode = _tiny_imagenet._decode
    monkeypatch.setattr(_tiny_imagenet, "_decode", None)  # not called again
    second = tiny(folder)
    assert torch.equal(first.images, second.images)
    assert first.classes == second.classes
    monkeypatch.setattr(_tiny_imagenet, "_decode", decode)
    name = f"{ROOT}/train/{WNIDS[0]}/images/{WNIDS[0]}_0.JPEG"
    made.write_folder(folder, {name: made.jpeg((200, 10, 10))})
    assert not torch.equal(tiny(folder).images[0], first.images[0])
    assert not kept.exists()  # the files it was made of are no more
    assert len(list((cache / "decoded").iterdir())) == 1


def test_a_damaged_cache_is_never_used(folder, cache, tiny_files):
    made.write_folder(folder, tiny_files)
    right = tiny(folder, classes=1, per_class=1)
    (kept,) = (cache / "decoded").iterdir()
    content = kept.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:n] for n in (0, 1, len(content) // 2, len(content) - 1)]
    for position in rng.integers(0, len(content), 60):
        changed = bytearray(content)
        changed[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for wrong in damaged:
        kept.write_bytes(wrong)
        again = tiny(folder, classes=1, per_class=1)
        assert torch.equal(again.images, right.images)
        assert torch.equal(again.labels, right.labels)
        assert again.classes == right.classes
        assert [path.name for path in (cache / "decoded").iterdir()] == [kept.name]


def test_a_cache_for_another_source_is_never_used(folder, cache, tiny_files):
    made.write_folder(folder, tiny_files)
    tiny(folder)
    (kept,) = (cache / "decoded").iterdir()
    tiny(folder, "val")
    (other,) = (path for path in (cache / "decoded").iterdir() if path != kept)
    other.write_bytes(kept.read_bytes())
    assert len(tiny(folder, "val")) == len(WNIDS) * VAL


def test_a_cache_that_cannot_be_written_costs_a_warning_only(folder, cache, tiny_files):
    made.write_folder(folder, tiny_files)
    cache.write_text("a file in its place")
    with pytest.warns(UserWarning, match="will be decoded again"):
        assert len(tiny(folder)) == len(WNIDS) * TRAIN


def change(name: str, content: bytes | None):
    """A data set with one file replaced, added or (None) taken away."""

    def changed(files: dict[str, bytes]) -> dict[str, bytes]:
        files = files | {f"{ROOT}/{name}": content}
        return {key: value for key, value in files.items() if value is not None}

    return changed


W = WNIDS[1]
WRONG = [
    ("train", change("wnids.txt", None), "wnids.txt is missing"),
    ("train", change("words.txt", None), "words.txt is missing"),
    ("val", change("val/val_annotations.txt", None), "val_annotations.txt is missing"),
    ("train", change("wnids.txt", b"n00000003\nn00000005\n"), "names 2 classes in 2 lines instead of 3"),
    ("train", change("wnids.txt", b"n00000003\nn00000005\nn00000005"), "names 2 classes in 3 lines"),
    ("train", change("wnids.txt", b"n00000003\nn00000005\nn00000009"), "words.txt .*has no line for n00000009"),
    ("train", change("words.txt", b"\xff\xfe\x00"), "words.txt in .*is not UTF-8"),
    ("train", change("words.txt", b""), "has no line for n00000007 .and 2 more"),
    ("val", change("val/val_annotations.txt", b"val_0.JPEG\tn00000007\n"), "no line for val/images/val_"),
    ("val", change("val/images/val_1.JPEG", None), "lacks 1 of the 6 images that .*, val/images/val_1.JPEG"),
    ("val", change("val/images/val_1.JPEG", b""), "val/images/val_1.JPEG in .*not a readable JPEG"),
    ("train", change(f"train/{W}/images/{W}_2.JPEG", None), f"holds 3 train images of class {W}, 4 are needed"),
    ("train", change(f"train/{W}/images/{W}_7.JPEG", b""), f"holds 5 train images of class {W}, more than"),
    ("train", change(f"train/{W}/images/{W}_2.JPEG", b"GIF89a"), f"{W}_2.JPEG in .*not a readable JPEG"),
    ("train", change(f"train/{W}/images/{W}_2.JPEG", made.jpeg((9, 9, 9))[:-40]), "not a readable JPEG"),
    ("train", change(f"train/{W}/images/{W}_2.JPEG", made.jpeg((9, 9, 9), 64)), "64 x 64 pixels instead of 16"),
    ("train", change("train/n00000009/images/n00000009_0.JPEG", b""), "of n00000009, which wnids.txt does not"),
]


@pytest.mark.parametrize("kind", ["folder", "zip", "gzipped tars"])
@pytest.mark.parametrize(("split", "changed", "words"), WRONG)
def test_a_wrong_layout_is_named(folder, cache, tiny_files, monkeypatch, kind, split, changed, words):
    lay_out(kind, folder, changed(tiny_files), monkeypatch)
    with pytest.raises(DataError, match=words):
        tiny(folder, split)
    assert tree(cache) == {}


def test_an_empty_or_half_unpacked_folder(folder, tiny_files):
    (folder / ROOT).mkdir()
    with pytest.raises(DataError, match=r"wnids\.txt is missing"):
        tiny(folder)
    made.write_folder(folder, {name: content for name, content in tiny_files.items() if name.endswith(".txt")})
    with pytest.raises(DataError, match="holds 0 train images"):
        tiny(folder)


def test_some_of_the_images_are_enough_for_some_of_them(folder, tiny_files):
    fewer = {name: content for name, content in tiny_files.items() if not name.endswith("_3.JPEG")}
    made.write_folder(folder, fewer)
    with pytest.raises(DataError, match="ask for per_class=3"):
        tiny(folder)
    assert len(tiny(folder, per_class=3)) == 9
    (folder / ROOT / "train" / W / "images" / f"{W}_0.JPEG").unlink()
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match="later ones took their place") as caught:
            tiny(folder, per_class=2)
        assert Path(caught[0].filename).name != "datasets.py"


def test_an_official_zip_is_verified_before_it_is_opened(folder, tiny_files, monkeypatch):
    content = made.zip_bytes(tiny_files)
    write_zip(folder, content, monkeypatch)
    path = folder / f"{ROOT}.zip"
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"has {len(content) - 1:,} bytes, the published file has"):
        tiny(folder)
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=md5(content)):
        tiny(folder)


def published(monkeypatch, **digests: dict[str, str]) -> None:
    """Let the small data set be one whose digests are known."""
    words = {wnid: hashlib.sha256(f"thing {wnid[-1]}, stuff".encode()).hexdigest()[:16] for wnid in WNIDS}
    known = {"words": words, "train": {}, "val": {}} | digests
    monkeypatch.setattr(_tiny_imagenet, "_digests", lambda file, part: known[part])
    monkeypatch.setattr(_tiny_imagenet, "OFFICIAL", replace(_tiny_imagenet.OFFICIAL, digests="any.csv"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wnids.txt", "\n".join(sorted(WNIDS))),  # another order gives other labels
        ("words.txt", "".join(f"{wnid}\tthing {wnid[-1]}, stufg\n" for wnid in WNIDS)),
    ],
)
def test_lists_that_are_not_the_published_ones(folder, tiny_files, monkeypatch, name, content):
    published(monkeypatch)
    lay_out("folder", folder, change(name, content.encode())(tiny_files), monkeypatch)
    with pytest.raises(DataError, match=r"or their order, are not the published ones; labels would be wrong"):
        tiny(folder)
    again = folder / "again"
    again.mkdir()
    lay_out("folder", again, tiny_files, monkeypatch)  # the control
    assert len(tiny(again)) > 0


@pytest.mark.parametrize("kind", ["folder", "gzipped tars"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_are_not_the_published_ones(folder, cache, tiny_files, monkeypatch, kind, split):
    """A damaged JPEG often decodes without a word: to another image."""
    label, number = 1, 1
    image = f"train/{W}/images/{W}_{number}.JPEG" if split == "train" else f"val/images/val_{number * 3 + label}.JPEG"
    digest = hashlib.sha256()
    for i in range({"train": TRAIN, "val": VAL}[split]):
        same = f"train/{W}/images/{W}_{i}.JPEG" if split == "train" else f"val/images/val_{i * 3 + label}.JPEG"
        digest.update(tiny_files[f"{ROOT}/{same}"])
    published(monkeypatch, **{split: {W: digest.hexdigest()[:16]}})
    lay_out(kind, folder, change(image, made.jpeg((9, 9, 9)))(tiny_files), monkeypatch)
    with pytest.raises(DataError, match=rf"{split} images of class {W} in .* are not the published ones"):
        tiny(folder, split)
    assert tree(cache) == {}
    assert len(tiny(folder, split, classes=1)) > 0  # another class
    again = folder / "again"
    again.mkdir()
    lay_out(kind, again, tiny_files, monkeypatch)  # the control
    assert len(tiny(again, split)) > 0


def test_the_digests_are_of_every_class():
    for split in ("train", "val"):
        known = _tiny_imagenet._digests(_tiny_imagenet.OFFICIAL.digests, split)
        assert list(known) == list(_tiny_imagenet._digests(_tiny_imagenet.OFFICIAL.digests, "words"))
        assert len(known) == len(set(known.values())) == _tiny_imagenet.OFFICIAL.classes
        assert all(re.fullmatch(r"n\d{8}", wnid) and re.fullmatch(r"[0-9a-f]{16}", x) for wnid, x in known.items())


def test_images_given_twice(folder, tiny_files):
    for name in ("a.tar", "b.tgz"):
        (folder / name).write_bytes(made.tar_bytes(tiny_files))
    with pytest.raises(DataError, match=r"a\.tar and in .*b\.tgz; the same images would count twice"):
        tiny(folder)


# ---- damaged and malicious archives


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_damaged_tar_is_noticed(tmp_path, tiny_files, mode):
    """Any cut, and any change in a gzipped tar; in a plain one, any change of a header."""
    content = made.tar_bytes({name: b for name, b in tiny_files.items() if "train" in name}, mode=mode)
    path = tmp_path / "x.tar"

    def names() -> set[str]:
        path.write_bytes(content)
        return set(_archives.read_tar(path, lambda name: True))

    right = names()
    end = len(content.rstrip(b"\0")) if mode == "w:" else len(content)
    whole = content
    for cut in {*range(0, end, 512), *range(1, end, 997), end - 1}:
        content = whole[:cut]
        with pytest.raises(DataError, match="truncated or damaged"):
            names()
    headers = [i for i in range(0, end, 512) if whole[i + 257 : i + 262] == b"ustar"] if mode == "w:" else []
    for position in [i + 100 for i in headers] + list(range(0, end, 501)) * (mode == "w:gz"):
        content = whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :]
        if mode == "w:gz" and 4 <= position < 10:
            assert names() == right  # the date and the operating system in gzip's header mean nothing
        else:
            with pytest.raises(DataError, match="truncated or damaged"):
                names()


@pytest.mark.parametrize("kind", ["w:", "w:gz", "zip"])
def test_no_damage_of_an_archive_costs_memory_or_ends_in_a_bare_error(folder, tiny_files, monkeypatch, kind):
    """Hundreds of random damages: the images, or a DataError, within a few MB; any image that differs was damaged."""
    content = made.zip_bytes(tiny_files) if kind == "zip" else made.tar_bytes(tiny_files, mode=kind)
    wanted = lambda name: name.endswith((".txt", ".JPEG"))  # noqa: E731
    path, refused, other = folder / "x", 0, 0

    def read() -> dict[str, bytes]:
        if kind != "zip":
            return {name: entry.read() for name, entry in _archives.read_tar(path, wanted).items()}
        with _archives.open_zip(path, wanted) as entries:
            return {name: entry.read() for name, entry in entries.items()}

    path.write_bytes(content)
    sound = read()
    tracemalloc.start()
    try:
        for _, bad in damages.damaged(content, damages.OF_BYTES, each=30, seed=kind):
            path.write_bytes(bad)
            try:
                other += read() != sound
            except DataError:
                refused += 1
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    if kind == "w:":  # it has checksums of headers alone: what is inside is told by the digests of the data set
        assert refused > 60
        assert other > 20
    else:
        assert refused > 120
        assert other == 0


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def sized(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


EVIL_NAMES = (
    "../evil",
    f"{ROOT}/../../evil",
    f"{ROOT}/train/..",
    "/evil",
    f"{ROOT}//evil",
    "C:/evil",
    "..\\evil",
    f"{ROOT}/a\nb",
)
EVIL_TARS = [
    *((tarfile.TarInfo(name), "unsafe name") for name in EVIL_NAMES),
    (link(f"{ROOT}/words", tarfile.SYMTYPE), "link"),
    (link(f"{ROOT}/train/{W}/images/{W}_3.JPEG", tarfile.SYMTYPE), "link"),
    (link(f"{ROOT}/val/images/val_0.JPEG", tarfile.LNKTYPE, f"{ROOT}/wnids.txt"), "link"),
    (link("null", tarfile.CHRTYPE), "device"),
    (link("disk", tarfile.BLKTYPE), "device"),
    (link("pipe", tarfile.FIFOTYPE), "device"),
    (sized(f"{ROOT}/x", 1 << 40), "of 1,099,511,627,776 bytes"),
]


@pytest.mark.parametrize(("member", "words"), EVIL_TARS)
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_malicious_tar_is_refused(folder, cache, tmp_path, tiny_files, member, words, mode):
    (folder / "x.tar").write_bytes(made.tar_bytes(tiny_files, (member,), mode=mode))
    before = tree(tmp_path)
    with pytest.raises(DataError, match=words):
        tiny(folder)
    assert tree(tmp_path) == before


def test_a_tar_that_begins_with_an_unsafe_name_is_refused(folder, tiny_files):
    (folder / "x.tar").write_bytes(made.tar_bytes({f"../{ROOT}/wnids.txt": b"x"} | tiny_files))
    with pytest.raises(DataError, match="unsafe name"):
        tiny(folder)


@pytest.mark.parametrize("size", [-1, -(2**62)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_size_below_zero_is_not_read(folder, tmp_path, tiny_files, size, kind):
    """Below zero means all there is, and that is unpacked: 300 MiB from 1 MB."""
    header = bytearray(tarfile.TarInfo(f"{ROOT}/wnids.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (size % 2**88).to_bytes(11, "big")  # base 256, negative
    header[156:157] = kind
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    with gzip.open(folder / "x.tar.gz", "wb", compresslevel=1) as out:
        out.write(made.tar_bytes(tiny_files, mode="w:")[:1024])
        out.write(bytes(header))
        for _ in range(300):
            out.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bytes; the official archives hold no such thing|truncated or damaged"):
            tiny(folder)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_an_extended_header_of_absurd_size_is_not_read(folder, tiny_files):
    """tarfile reads an extended header at once, as long as it says it is."""
    huge = sized("././@LongLink", 1 << 34)
    huge.type = tarfile.GNUTYPE_LONGNAME
    (folder / "x.tar").write_bytes(made.tar_bytes(tiny_files, (huge,), mode="w:"))
    with pytest.raises(DataError, match=r"of 17,179,869,\d\d\d bytes"):
        tiny(folder)


def test_a_tar_bomb_is_given_up(folder, tiny_files, monkeypatch):
    monkeypatch.setattr(_archives, "LARGEST_TOTAL", 1 << 20)
    extra = tuple(sized(f"{ROOT}/test/{i}", 200_000) for i in range(8))
    (folder / "x.tar.gz").write_bytes(made.tar_bytes(tiny_files, extra))
    with pytest.raises(DataError, match="more than 1,048,576 bytes"):
        tiny(folder)
    monkeypatch.setattr(_archives, "LARGEST_TOTAL", 1 << 30)
    monkeypatch.setattr(_archives, "MOST_MEMBERS", 10)
    with pytest.raises(DataError, match="more than 10 members"):
        tiny(folder)


def zip_info(name: str, mode: int = stat.S_IFREG) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    info.external_attr = (mode | 0o644) << 16
    return info


EVIL_ZIPS = [
    *(((zip_info(name), b"x"), "unsafe name") for name in EVIL_NAMES),
    ((zip_info(f"{ROOT}/train/{W}/images/{W}_3.JPEG", stat.S_IFLNK), b"/etc/passwd"), "link"),
    ((zip_info("pipe", stat.S_IFIFO), b""), "device"),
    ((zip_info("null", stat.S_IFCHR), b""), "device"),
]


@pytest.mark.parametrize(("member", "words"), EVIL_ZIPS)
def test_a_malicious_zip_is_refused(folder, tmp_path, tiny_files, monkeypatch, member, words):
    alone = {name: content for name, content in tiny_files.items() if name != member[0].filename}
    write_zip(folder, made.zip_bytes(alone, (member,)), monkeypatch)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=words):
        tiny(folder)
    assert tree(tmp_path) == before


def test_a_zip_bomb_is_given_up(folder, tiny_files, monkeypatch):
    name = f"{ROOT}/train/{W}/images/{W}_0.JPEG"
    content = made.zip_bytes(tiny_files | {name: bytes(_archives.LARGEST_MEMBER + 1)})
    write_zip(folder, content, monkeypatch)
    with pytest.raises(DataError, match=r"of 16,777,217 bytes"):
        tiny(folder)
    # the same with a lie about the size, in both places where it stands
    size = (_archives.LARGEST_MEMBER + 1).to_bytes(4, "little")
    assert content.count(size) == 2
    write_zip(folder, content.replace(size, (5000).to_bytes(4, "little")), monkeypatch)
    with pytest.raises(DataError, match=r"truncated or damaged|not a readable"):
        tiny(folder)
    monkeypatch.setattr(_archives, "LARGEST_TOTAL", 1000)
    write_zip(folder, made.zip_bytes(tiny_files), monkeypatch)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        tiny(folder)


def test_a_zip_with_a_member_twice_or_damaged_inside(folder, tiny_files, monkeypatch):
    name = f"{ROOT}/train/{W}/images/{W}_0.JPEG"
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = made.zip_bytes(tiny_files, ((zip_info(name), b"x"),))
    write_zip(folder, twice, monkeypatch)
    with pytest.raises(DataError, match="' twice; the official"):
        tiny(folder)
    content = bytearray(made.zip_bytes(tiny_files))
    position = content.index(name.encode()) + len(name) + 40
    content[position] ^= 0xFF
    write_zip(folder, bytes(content), monkeypatch)
    with pytest.raises(DataError, match="truncated or damaged"):
        tiny(folder)
    write_zip(folder, b"PK no zip at all", monkeypatch)
    with pytest.raises(DataError, match="truncated or damaged"):
        tiny(folder)


def test_nothing_is_half_written_when_keeping_fails(folder, cache, tiny_files, monkeypatch):
    made.write_folder(folder, tiny_files)

    def savez(file, **arrays) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert len(tiny(folder)) == len(WNIDS) * TRAIN
    assert tree(cache) == {}
    tiny(folder)
    assert len(tree(cache)) == 1


def test_the_public_names():
    assert set(public) == {"DataError", "Dataset", "describe", "digits", "kmnist", "tiny_imagenet"}
    assert issubclass(DataError, RuntimeError)
    assert os.fspath(_kmnist.URL).startswith("https://")
