"""sweep: every run once, in a file of its own, with the same bits whatever happens on the way."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import damages
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from threads import THREADS

from nlcompanion import SweepError, TrainConfig, _storage, load_sweep, sweep
from nlcompanion.training import loop as _train_loop
from nlcompanion.training import train
from nlcompanion.training.sweeps import records as _records
from nlcompanion.training.sweeps import store as _sweep_files
from nlcompanion.training.sweeps import sweep as _sweep
from nlcompanion.training.sweeps import workers as _workers
from nlcompanion.training.sweeps.workers import WorkerDied, Workers

SMALL = {"epochs": 3, "subset": 128, "batch_size": 32, "width": 0.5}
CONFIGS = [TrainConfig(lr=lr, **SMALL) for lr in (0.05, 0.1)]
WILD = TrainConfig(lr=1e19, **SMALL)
NO_GPU = TrainConfig(device="cuda:63", **SMALL)  # on no machine
LONG = [TrainConfig(**{**SMALL, "epochs": 25}, seed=seed) for seed in range(3)]  # there is time to kill

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")


def outcome(folder: Path) -> dict:
    """What a folder's files say, without when, where and how long; nothing else may be left there."""
    left = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".locks"]
    assert all(path.parent == folder and path.suffix == ".json" for path in left), left
    contents = [json.loads(path.read_text()) for path in left]
    return {content["key"]: (content["status"], content["config"], content["run"]) for content in contents}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    sweep([*CONFIGS, WILD], folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed_long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    sweep(LONG, folder)
    return outcome(folder)


@pytest.fixture
def calls(monkeypatch):
    """The configurations that train is called with."""
    made = []

    def counted(config, **options):
        made.append(config)
        return train(config, **options)

    monkeypatch.setattr("nlcompanion.training.loop.train", counted)
    return made


# --- what is stored -------------------------------------------------------------------------------------------------


def test_a_table_holds_what_a_run_measured_last(tmp_path):
    curve = torch.tensor([3.0, 2.0, 1.0])
    names = ("train_loss", "test_accuracy", "test_accuracy_recalibrated")
    run = SimpleNamespace(status="finished", steps=6, epochs=dict.fromkeys(names, curve))
    record = _records.Record(TrainConfig(), "finished", tmp_path / "run.json", run)
    table = _records.Sweep(tmp_path, (record,)).table("lr")
    assert [table[name] for name in names] == [[1.0]] * 3


def test_one_file_per_run_with_provenance(undisturbed):
    files = {path.stem: json.loads(path.read_text()) for path in undisturbed.glob("*.json")}
    assert set(files) == {config.key for config in (*CONFIGS, WILD)}
    content = files[CONFIGS[1].key]
    assert content["config"] == CONFIGS[1].to_dict()
    provenance = content["provenance"]
    assert provenance["torch"] == torch.__version__
    assert (provenance["device"], provenance["threads"], provenance["seed"]) == ("cpu", THREADS, 0)
    assert 0 < provenance["duration_seconds"] < 60
    assert {"nlcompanion", "python", "numpy", "platform", "made"} <= set(provenance)


def test_a_stored_run_is_what_train_gives(undisturbed):
    torch.set_flush_denormal(True)
    try:
        plain = train(CONFIGS[0])
    finally:
        torch.set_flush_denormal(False)
    (record,) = sweep(CONFIGS[:1], undisturbed, run=False)
    there, here = record.run.to_dict(), plain.to_dict()
    assert there.pop("duration") != here.pop("duration")
    assert there == here
    assert record.run.config == CONFIGS[0]


def test_a_run_that_exists_is_not_repeated(undisturbed, calls):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.json")}
    result = sweep([*CONFIGS, WILD], undisturbed)
    assert result.status == {"finished": 2, "diverged": 1}
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*.json")} == before


def test_equal_configurations_are_one_run(tmp_path, calls):
    equal = {**SMALL, "lr": 1}, {"lr": 1.0, **dict(reversed(SMALL.items()))}, TrainConfig(lr=1.0, **SMALL)
    result = sweep([*equal, CONFIGS[0], equal[0]], tmp_path)
    assert [config.lr for config in calls] == [1.0, 0.05]
    assert [record.config.lr for record in result] == [1.0, 0.05]


def test_a_diverged_run_is_a_result(undisturbed):
    (record,) = sweep([WILD], undisturbed, run=False)
    assert (record.status, record.run.status, record.error) == ("diverged", "diverged", None)
    assert 0 < record.run.steps < 12


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path, undisturbed, calls):
    result = sweep([NO_GPU, *CONFIGS], tmp_path)
    assert [record.status for record in result] == ["failed", "finished", "finished"]
    assert result[0].run is None
    assert "Traceback" in result[0].error
    assert 'device is "cuda:63"' in result[0].error
    assert result[0].provenance["device"] == "cuda:63"
    expected, found = outcome(undisturbed), outcome(tmp_path)
    assert {key: found[key] for key in found if key in expected} == {c.key: expected[c.key] for c in CONFIGS}
    calls.clear()
    assert sweep([NO_GPU], tmp_path, retry_failed=False)[0].status == "failed"
    assert not calls
    assert sweep([NO_GPU], tmp_path)[0].status == "failed"
    assert calls == [NO_GPU]


def test_a_failure_that_passes_is_made_good_from_its_checkpoint(tmp_path, undisturbed, monkeypatch):
    epochs = broken_after(monkeypatch, 2, OSError("no such luck"))
    assert sweep(CONFIGS[:1], tmp_path)[0].status == "failed"
    monkeypatch.undo()
    epochs = counted_epochs(monkeypatch)
    assert sweep(CONFIGS[:1], tmp_path)[0].status == "finished"
    assert len(epochs) == 1  # of 3
    assert outcome(tmp_path)[CONFIGS[0].key] == outcome(undisturbed)[CONFIGS[0].key]


def counted_epochs(monkeypatch) -> list:
    """An entry for every epoch that is trained from now on."""
    seen, epoch = [], _train_loop._Training.epoch
    monkeypatch.setattr(_train_loop._Training, "epoch", lambda job, bar: (seen.append(1), epoch(job, bar))[1])
    return seen


def broken_after(monkeypatch, count: int, error: BaseException) -> list:
    """Training that breaks off when so many epochs are done and stored."""
    seen, epoch = [], _train_loop._Training.epoch

    def limited(job, bar):
        if len(seen) == count:
            raise error
        seen.append(1)
        return epoch(job, bar)

    monkeypatch.setattr(_train_loop._Training, "epoch", limited)
    return seen


def test_an_interrupt_leaves_a_consistent_folder(tmp_path, undisturbed, monkeypatch):
    broken_after(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep([*CONFIGS, WILD], tmp_path)
    assert [r.status for r in sweep([*CONFIGS, WILD], tmp_path, run=False)] == ["finished", "missing", "missing"]
    monkeypatch.undo()
    epochs = counted_epochs(monkeypatch)
    sweep([*CONFIGS, WILD], tmp_path)
    assert len(epochs) == 2 + 1  # the rest of the second run, and the first epoch of the one that diverges
    assert outcome(tmp_path) == outcome(undisturbed)


# --- what is not as it should be ------------------------------------------------------------------------------------


def changed(content: dict, **entries) -> str:
    content = {**content, **entries}
    return json.dumps({**content, "sha256": _storage.checksum(content)})


DAMAGES = {
    "cut off": (lambda text: text[: len(text) // 2], "it is no JSON"),
    "empty": (lambda text: "", "it is no JSON"),
    "a digit": (lambda text: text.replace('"steps": 12', '"steps": 13'), "does not fit its checksum"),
    "not a number": (lambda text: text.replace('"steps": 12', '"steps": NaN'), "holds NaN"),
    "a list": (lambda text: "[1, 2]", "lacks format, key"),
    "brackets": (lambda text: "[" * 100_000, "it is no JSON"),
    "an entry less": (lambda text: text.replace('"run":', '"ran":'), "lacks run"),
    "another format": (lambda text: changed(json.loads(text), format=99), "its format is 99"),
    "another run": (lambda text: changed(json.loads(text), key=CONFIGS[1].key), f"is the run '{CONFIGS[1].key}'"),
    "another configuration": (
        lambda text: changed(json.loads(text), config=CONFIGS[1].to_dict()),
        f"its configuration has the hash {CONFIGS[1].key}",
    ),
    "a run that failed": (lambda text: changed(json.loads(text), status="failed"), "status 'failed' and a run"),
    "no run": (lambda text: changed(json.loads(text), run=None), "status 'finished' and no run"),
    "half a run": (lambda text: changed(json.loads(text), run={"steps": 12}), "lacks layers"),
    "no provenance": (
        lambda text: changed(json.loads(text), provenance=None),
        "its provenance is NoneType and must be dict",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_the_run_done_again(tmp_path, undisturbed, damage, calls):
    spoil, words = DAMAGES[damage]
    good = (undisturbed / f"{CONFIGS[0].key}.json").read_text()
    path, aside = tmp_path / f"{CONFIGS[0].key}.json", tmp_path / f"{CONFIGS[0].key}.json.corrupt"
    bad = spoil(good)
    path.write_text(bad)
    looked_at = sweep(CONFIGS[:1], tmp_path, run=False)[0]
    assert (looked_at.status, looked_at.run) == ("damaged", None)
    assert words in looked_at.error
    with pytest.warns(UserWarning, match=r"is damaged and left out.*repeat its sweep"):
        assert len(load_sweep(tmp_path)) == 0
    assert path.read_text() == bad
    with pytest.warns(
        UserWarning, match=rf"{path.name} is damaged.*renamed to {aside.name}, and the run is done again"
    ):
        assert sweep(CONFIGS[:1], tmp_path)[0].status == "finished"
    assert calls == CONFIGS[:1]
    assert aside.read_text() == bad
    aside.unlink()
    assert outcome(tmp_path)[CONFIGS[0].key] == outcome(undisturbed)[CONFIGS[0].key]


def without_a_checksum(path: Path) -> object:
    """The control: what a reader makes of a file that it does not compare with its checksum."""
    try:
        return _records.interpret(json.loads(path.read_text()), path).run.to_dict()
    except (ValueError, AttributeError, KeyError):
        return None


def test_no_damage_of_a_stored_run_is_read_as_sound(tmp_path, undisturbed):
    path = tmp_path / f"{CONFIGS[0].key}.json"
    path.write_bytes((undisturbed / path.name).read_bytes())
    (sound,) = sweep(CONFIGS[:1], tmp_path, run=False)
    stored = without_a_checksum(path)
    refused, mistaken = 0, 0
    for kind, other in damages.damaged(path.read_bytes(), damages.OF_TEXT, each=20, seed="run"):
        path.write_bytes(other)
        (record,) = sweep(CONFIGS[:1], tmp_path, run=False)
        if record.status == "damaged":
            refused += 1
        else:
            assert (record.run.to_dict(), record.provenance) == (sound.run.to_dict(), sound.provenance), kind
        mistaken += without_a_checksum(path) not in (None, stored)
    assert refused > 190  # of 260
    assert mistaken > 30  # so many would be taken for good without the checksum


def test_a_file_that_cannot_be_read_is_neither_used_nor_moved(tmp_path, undisturbed, calls):
    """It may be whole; a folder in its place stands for any error of the system, permissions among them."""
    path = tmp_path / f"{CONFIGS[0].key}.json"
    path.mkdir()
    for run in (True, False):
        with pytest.raises(SweepError, match=rf"of the run {CONFIGS[0].key} cannot be read .*{path.name}.*mend the"):
            sweep(CONFIGS[:1], tmp_path, run=run)
    with pytest.warns(UserWarning, match=rf"{path.name} cannot be read and is left out"):
        assert len(load_sweep(tmp_path)) == 0
    assert path.is_dir()
    assert calls == []
    path.rmdir()
    assert sweep(CONFIGS[:1], tmp_path)[0].status == "finished"


def test_a_file_set_aside_overwrites_none(tmp_path):
    path = tmp_path / f"{CONFIGS[0].key}.json"
    for text in ("one", "two"):
        path.write_text(text)
        with pytest.warns(UserWarning, match="damaged"):
            sweep(CONFIGS[:1], tmp_path)
    assert sorted(p.read_text() for p in tmp_path.glob("*.corrupt")) == ["one", "two"]


def test_a_damaged_checkpoint_is_named_and_set_aside(tmp_path, undisturbed, monkeypatch):
    broken_after(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sweep(CONFIGS[:1], tmp_path)
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{checkpoint.name} is damaged"):
        sweep(CONFIGS[:1], tmp_path)
    (aside,) = (tmp_path / "checkpoints").iterdir()
    assert aside.name.endswith(".corrupt")
    aside.unlink()
    assert outcome(tmp_path)[CONFIGS[0].key] == outcome(undisturbed)[CONFIGS[0].key]


def test_what_a_killed_process_left_is_tidied(tmp_path, undisturbed):
    key = CONFIGS[0].key
    good = (undisturbed / f"{key}.json").read_bytes()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / f"{key}.json").write_bytes(good)
    (tmp_path / "checkpoints" / f"{key}.pt").write_text("killed between the file and this")
    (tmp_path / "checkpoints" / f".{key}.pt.0.part").write_text("killed while writing")
    (tmp_path / f".{key}.json.0.part").write_text("killed while writing")
    sweep(CONFIGS[:1], tmp_path)
    assert list(outcome(tmp_path)) == [key]
    assert (tmp_path / f"{key}.json").read_bytes() == good


def test_impossible_arguments_run_nothing(tmp_path, calls):
    with pytest.raises(ValueError, match="'momentun' is no setting of a run; did you mean 'momentum'"):
        sweep([CONFIGS[0], {"momentun": 0.5}], tmp_path)
    with pytest.raises(ValueError, match=r"got a single one; write \[config\]"):
        sweep(CONFIGS[0], tmp_path)
    with pytest.raises(ValueError, match='dataset="custom" does not say which data'):
        sweep([TrainConfig(dataset="custom")], tmp_path)
    with pytest.raises(TypeError, match=r"pass client\.get_executor"):
        sweep(CONFIGS, tmp_path, type("Client", (), {"get_executor": None})())
    for executor in ("two", 2.0, True):
        with pytest.raises(TypeError, match="a number of local processes"):
            sweep(CONFIGS, tmp_path, executor)
    with pytest.raises(ValueError, match="executor must be an integer from 1 to 10,000, got 0"):
        sweep(CONFIGS, tmp_path, 0)
    assert not calls
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepError, match=r"runs cannot be kept in .*file.*nothing was run; choose another folder"):
        sweep(CONFIGS, tmp_path / "file")
    with pytest.raises(SweepError, match="does not exist, so there are no runs to read"):
        load_sweep(tmp_path / "nowhere")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sweep_files, "store", full)
    with pytest.raises(SweepError, match=r"No space left.*finished runs are in .*; make room"):
        sweep(CONFIGS, tmp_path)
    monkeypatch.undo()
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 1  # finished, so that it comes back at once
    epochs = counted_epochs(monkeypatch)
    assert sweep(CONFIGS[:1], tmp_path)[0].status == "finished"
    assert not epochs


# --- what it gives back ---------------------------------------------------------------------------------------------


def test_records_in_groups_and_columns(tmp_path):
    configs = [TrainConfig(lr=lr, seed=seed, **SMALL) for lr in (0.05, 0.1) for seed in (0, 1)]
    sweep([configs[0], WILD, NO_GPU], tmp_path)
    planned = sweep([*configs, WILD, NO_GPU], tmp_path, run=False)
    assert repr(planned).endswith("1 finished, 3 missing, 1 diverged, 1 failed)")
    assert [len(group) for group in planned.by("lr").values()] == [2, 3, 1]
    assert list(planned[:4].by("lr", "seed")) == [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)]
    assert [record.config for record in planned.where(lr=0.1, seed=1)] == [configs[3]]
    assert planned.where(status="diverged").configs == (WILD,)
    assert planned.where(lr_drops=[1, 2]).configs == planned.configs
    assert planned[:2].configs == tuple(configs[:2])
    assert [run.status for run in planned.runs] == ["finished", "diverged"]
    table = planned.table()
    assert list(table)[:4] == ["lr", "device", "seed", "status"]
    accuracy = planned[0].run.accuracy
    assert table["test_accuracy"] == [accuracy, None, None, None, None, None]
    assert table["steps"] == [12, None, None, None, planned.runs[1].steps, None]
    for wrong in (lambda: planned.where(learning_rate=1), lambda: planned.by("rate"), lambda: planned.table("rate")):
        with pytest.raises(ValueError, match="is no setting of a run; there are dataset, subset"):
            wrong()


def test_a_folder_is_read_without_its_configurations(undisturbed):
    there = load_sweep(undisturbed)
    assert there.configs == (*CONFIGS, WILD)
    assert [record.run.status for record in there] == ["finished", "finished", "diverged"]


def test_progress_tells_of_the_runs_of_this_call(tmp_path, capsys):
    seen = []
    sweep(CONFIGS[:1], tmp_path, progress=seen.append)
    sweep([*CONFIGS, WILD], tmp_path, progress=seen.append)
    assert [(record.config.lr, record.status) for record in seen] == [
        (0.05, "finished"), (0.1, "finished"), (1e19, "diverged"),
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")
    sweep([*CONFIGS, WILD], tmp_path, progress=True)
    assert "3/3" in capsys.readouterr().err


# --- configurations and their hash ----------------------------------------------------------------------------------

settings = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-6, 1e6) | st.integers(1, 100),
        "momentum": st.floats(0, 0.999, allow_subnormal=False) | st.just(0),
        "weight_decay": st.floats(0, 10, allow_subnormal=False) | st.integers(0, 3),
        "seed": st.integers(0, 2**40),
        "epochs": st.integers(90, 200),
        "batch_size": st.integers(2, 1000) | st.sampled_from([None, "full"]),
        "lr_drops": st.none() | st.lists(st.integers(1, 89), unique=True).map(sorted),
        "constrain_norm": st.booleans(),
        "model": st.sampled_from(["conv_bn", "vgg11"]),
    },
)


@given(given_=settings, order=st.randoms(use_true_random=False))
def test_a_configuration_has_one_key_however_it_is_written(given_, order):
    config = TrainConfig.from_dict(given_)
    shuffled = list(given_)
    order.shuffle(shuffled)

    def other_type(value):
        if isinstance(value, float) and value == int(value):
            return int(value)
        return tuple(value) if isinstance(value, list) else value

    assert TrainConfig.from_dict({name: other_type(given_[name]) for name in shuffled}).key == config.key
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))).key == config.key  # defaults written out
    assert TrainConfig.from_dict(config.to_dict()) == config


@given(one=settings, other=settings)
def test_two_configurations_have_two_keys(one, other):
    a, b = TrainConfig.from_dict(one), TrainConfig.from_dict(other)
    assert (a.key == b.key) == (a == b)


# --- other processes and threads ------------------------------------------------------------------------------------


def test_threads_take_turns(tmp_path, undisturbed):
    with ThreadPoolExecutor(3) as pool:
        sweep([*CONFIGS, WILD], tmp_path, pool)
    assert outcome(tmp_path) == outcome(undisturbed)
    assert torch.get_num_threads() == THREADS


def test_the_callers_threads_and_denormals_stay_as_they_were(tmp_path):
    torch.set_num_threads(2)
    try:
        sweep([WILD], tmp_path)
        assert torch.get_num_threads() == 2
        assert (torch.tensor([1e-310], dtype=torch.float64) * 1).item() > 0
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_a_process_pool(tmp_path, undisturbed):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        sweep([*CONFIGS, WILD, NO_GPU], tmp_path, pool)
        found = outcome(tmp_path)
        assert found.pop(NO_GPU.key)[0] == "failed"
        assert found == outcome(undisturbed)
        damaged = tmp_path / f"{WILD.key}.json"
        damaged.write_text("")
        with pytest.warns(UserWarning, match=rf"{damaged.name} is damaged"):  # said in the worker, heard here
            sweep([WILD], tmp_path, pool)


class Breaking(Executor):
    """An executor that runs so many tasks and breaks with the next, as a pool does whose process was killed."""

    def __init__(self, good: int, error: BaseException):
        self.good, self.error = good, error

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.good -= 1
        future.set_result(fn(*args, **kwargs)) if self.good >= 0 else future.set_exception(self.error)
        return future


def test_a_broken_pool_keeps_what_is_finished(tmp_path, undisturbed):
    with pytest.raises(
        SweepError,
        match=r"gave up \(a process died\) with 1 of its 3 runs stored.*call sweep again with a new executor",
    ):
        sweep([*CONFIGS, WILD], tmp_path, Breaking(1, BrokenExecutor("a process died")))
    assert [record.status for record in load_sweep(tmp_path)] == ["finished"]
    sweep([*CONFIGS, WILD], tmp_path)
    assert outcome(tmp_path) == outcome(undisturbed)


def test_a_run_whose_worker_is_lost_for_good_has_failed(tmp_path):
    result = sweep(CONFIGS, tmp_path, Breaking(1, RuntimeError("the scheduler lost it four times")))
    assert [record.status for record in result] == ["finished", "failed"]
    assert "the scheduler lost it four times" in result[1].error


def test_a_lost_run_that_another_sweep_has_done_is_not_overwritten(tmp_path, undisturbed):
    class Slow(Breaking):
        def submit(self, fn, /, *args, **kwargs):
            future = super().submit(fn, *args, **kwargs)
            sweep(CONFIGS[:1], tmp_path)
            return future

    assert sweep(CONFIGS[:1], tmp_path, Slow(0, RuntimeError("lost")))[0].status == "finished"
    assert outcome(tmp_path)[CONFIGS[0].key] == outcome(undisturbed)[CONFIGS[0].key]


def test_workers_that_write_elsewhere_are_noticed(tmp_path, monkeypatch):
    class Elsewhere(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future: Future = Future()
            future.set_result({"status": "finished", "new": True, "notes": []})
            return future

    monkeypatch.setattr(_sweep, "_PATIENCE", 0.0)
    with pytest.raises(SweepError, match=r"there is no .* here; workers on other machines must see the folder"):
        sweep(CONFIGS, tmp_path, Elsewhere())


# --- processes of our own -------------------------------------------------------------------------------------------


@unix
def test_a_worker_that_dies_is_replaced():
    with Workers(1) as pool:
        first = pool.submit(os.getpid).result()
        assert first != os.getpid()
        assert pool.submit(os.getpid).result() == first
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == str(THREADS)
        os.kill(first, signal.SIGINT)  # Ctrl-C in a terminal reaches it, too
        assert pool.submit(os.getpid).result() == first
        os.kill(first, signal.SIGKILL)
        assert pool.submit(os.getpid).result() != first
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        with pytest.raises(WorkerDied, match=r"died 3 times, at last by SIGKILL; if the system killed it for want of"):
            pool.submit(signal.raise_signal, signal.SIGKILL).result()
        last = pool.submit(os.getpid).result()
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


@unix
def test_an_interrupt_does_not_reach_a_worker_that_is_starting(capfd, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        for held_back in (True, False):  # the control: it does without our care
            if not held_back:
                monkeypatch.setattr(_workers, "_interrupts_held_back", nullcontext)
            with Workers(1) as pool:
                (process,) = multiprocessing.active_children()
                for _ in range(5):
                    with nullcontext() if held_back else suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGINT)
                    time.sleep(0.05)
                assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # ours still comes to us
                if held_back:
                    assert pool.submit(os.getpid).result() == process.pid
                    assert capfd.readouterr().err == ""
                process.join(timeout=0 if held_back else 30)
                assert process.is_alive() is held_back
    finally:
        signal.signal(signal.SIGINT, before)


@unix
def test_workers_end_with_the_process_that_started_them():
    code = (
        "import os, signal, time\nfrom nlcompanion.training.sweeps.workers import Workers\n"
        "if __name__ == '__main__':\n    pool = Workers(1)\n    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 600)\n    time.sleep(0.2)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL
    worker = int(run.stdout)
    late = time.monotonic() + 20
    while alive(worker):
        assert time.monotonic() < late
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # an orphan that nobody waits for stays as a zombie in some containers
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from nlcompanion import SweepError, TrainConfig, sweep\n"
        f"try:\n    sweep([TrainConfig()], {str(tmp_path / 'runs')!r}, 1)\n"
        "except SweepError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert "a worker process could not start (its own words are on stderr)" in run.stdout
    assert 'under `if __name__ == "__main__":`' in run.stdout


@unix
@pytest.mark.slow
def test_a_sweep_outlives_its_workers(tmp_path, undisturbed_long):
    killer = Killer(tmp_path)
    with Workers(2) as pool:
        killer.begin(lambda: [child.pid for child in multiprocessing.active_children()][:1])
        result = sweep(LONG, tmp_path, pool)
    assert killer.killed
    assert result.status == {"finished": 3}
    assert outcome(tmp_path) == undisturbed_long


class Killer(threading.Thread):
    """Kills processes while a sweep is in the middle of a run."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.killed = folder, []

    def begin(self, victims) -> None:
        self.victims = victims
        self.start()

    def run(self) -> None:
        while not list(self.folder.glob("checkpoints/[0-9a-f]*.pt")):
            time.sleep(0.005)
        for pid in self.victims():
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)


# --- several sweeps at once, and SIGKILL ----------------------------------------------------------------------------


@unix
def test_a_killed_process_holds_no_lock(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with _sweep_files.run_lock(tmp_path, "key", wait=False):
            os.write(write, b"x")
            time.sleep(600)
    os.read(read, 1)
    with _sweep_files.run_lock(tmp_path, "key", wait=False) as mine:
        assert not mine
    with _sweep_files.run_lock(tmp_path, "another", wait=False) as mine:
        assert mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with _sweep_files.run_lock(tmp_path, "key", wait=False) as mine:
        assert mine


@pytest.mark.slow
@unix
def test_two_sweeps_share_a_folder(tmp_path):
    code = f"""
import os, sys, torch
from nlcompanion import TrainConfig, sweep
from nlcompanion.training import loop, train

def told(config, **options):
    os.write(1, f"{{config.key}}\\n".encode())  # at once, or two processes print into each other
    return train(config, **options)

def child(configs):
    sweep(configs, sys.argv[1])
    os._exit(0)

torch.set_num_threads(1)
configs = [TrainConfig(lr=lr, **{SMALL!r}) for lr in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)]
train(configs[0])  # torch is warm before they part
loop.train = told
children = [os.fork() or child(order) for order in (configs, configs, configs[::-1])]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    trained = run.stdout.split()
    assert len(trained) == 6
    assert sorted(trained) == sorted(outcome(tmp_path))


def killed(folder: Path, kills: int, seed: int) -> None:
    driver = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(driver), str(folder), str(kills), str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert len(report["found"]) >= kills
    assert any(checkpoints for _, checkpoints in report["found"])  # some died in the middle of a run
    expected = outcome(folder / "undisturbed")
    assert len(expected) == 6
    assert {status for status, *_ in expected.values()} == {"finished", "diverged"}
    for name in report["folders"]:
        assert outcome(folder / name) == expected


@unix
@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    killed(tmp_path, 20, seed=1)


@unix
@pytest.mark.slow
def test_killing_the_command_line_with_its_workers_changes_nothing(tmp_path):
    words = "--epochs 40 --subset 128 --batch-size 32 --lr 0.05 0.1 --seed 0 1 2 --workers 2"
    command = [sys.executable, "-m", "nlcompanion", "sweep", *words.split(), "--folder"]
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, capture_output=True, timeout=120)
    runs = tmp_path / "runs"
    for count in range(1, 4):
        process = subprocess.Popen([*command, str(runs)], start_new_session=True, stdout=subprocess.DEVNULL)
        late = time.monotonic() + 60
        while len(list(runs.glob("*.json"))) < count and time.monotonic() < late:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 3 <= len(list(runs.glob("*.json"))) < 6
    subprocess.run([*command, str(runs)], check=True, capture_output=True, timeout=120)
    assert outcome(runs) == outcome(tmp_path / "undisturbed")


# --- file systems without locks -------------------------------------------------------------------------------------


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that has no locks of the operating system, as some networks' have none."""

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(_sweep_files, "PATIENCE", 0.3)


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize(
    ("marker", "holder"),
    [("27373\nnode17\n37850206\n", "process 27373 on node17"), ("", "a process that left no name"), ("x\n", "no name")],
)
def test_a_lock_that_nobody_can_vouch_for_is_named_within_seconds(tmp_path, no_flock, calls, marker, holder):
    lock = tmp_path / ".locks" / f"{CONFIGS[0].key}.lock"
    lock.parent.mkdir()
    lock.write_text(marker)
    begin = time.monotonic()
    with pytest.raises(SweepError, match=rf"{holder} holds the run {CONFIGS[0].key}.*delete that file.*call sweep"):
        sweep(CONFIGS, tmp_path)
    assert time.monotonic() - begin < 20
    assert calls == CONFIGS[1:]  # the other run is done
    lock.unlink()
    assert sweep(CONFIGS, tmp_path).status == {"finished": 2}


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_locks_of_the_system_a_dead_process_of_this_machine_is_noticed(tmp_path, no_flock):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lock = tmp_path / ".locks" / f"{CONFIGS[0].key}.lock"
    lock.parent.mkdir()
    lock.write_text(f"{child.pid}\n{socket.gethostname()}\n")
    assert sweep(CONFIGS[:1], tmp_path).status == {"finished": 1}
    assert not lock.exists()


def test_a_folder_that_was_removed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for run in (True, False):
        with pytest.raises(SweepError, match="the present folder was removed"):
            sweep(CONFIGS, "runs", run=run)


# --- a Dask cluster -------------------------------------------------------------------------------------------------


@contextmanager
def forked_workers():
    """Dask's workers come from one process that has loaded torch; else each of them loads it for seconds."""
    dask = pytest.importorskip("dask")
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        from distributed.utils import get_mp_context

        get_mp_context().set_forkserver_preload(["distributed", "torch._dynamo"])
        yield


@pytest.mark.slow  # a cluster that restarts its workers
@unix
def test_a_dask_cluster_that_loses_a_worker(tmp_path, undisturbed, undisturbed_long):
    distributed = pytest.importorskip("dask.distributed")
    killer = Killer(tmp_path)
    with (
        forked_workers(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=60
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        killer.begin(lambda: pids[:1])
        result = sweep([*LONG, WILD, NO_GPU], tmp_path, client.get_executor())
        assert killer.killed == pids[:1]
        assert result.status == {"finished": 3, "diverged": 1, "failed": 1}
        found = outcome(tmp_path)
        assert found.pop(NO_GPU.key)[0] == "failed"
        assert found == {**undisturbed_long, WILD.key: outcome(undisturbed)[WILD.key]}
        again = sweep(LONG, tmp_path, client.get_executor(), progress=pytest.fail)
    assert again.status == {"finished": 3}
