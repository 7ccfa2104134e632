"""The command line: help at once, options for every setting, exit codes that mean something."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from attrs import fields
from hypothesis import given, settings
from hypothesis import strategies as st

from nlcompanion import TrainConfig, command_line, sweep
from nlcompanion.command_line import main
from nlcompanion.training import command as training_command
from tools.lines import table as lines_table

SMALL = ["--epochs", "2", "--subset", "64", "--batch-size", "32", "--width", "0.5"]
ROOT = Path(__file__).resolve().parents[1]
CONFIG = {"epochs": 2, "subset": 64, "batch_size": 32, "width": 0.5}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """main in an empty folder: its code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def planned(command: str) -> list[TrainConfig]:
    """The configurations of a command, which is not run."""
    return training_command.configs(command_line._parsed(command.split()))


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("", 2),
        ("--version", 0),
        ("train --help", 0),
        ("sweep --help", 0),
        ("sweep --lr much", 2),
        ("sweep --momentum 2", 2),
        ("sweep --dry-run --lr 0.1 0.2", 0),
    ],
)
def test_answers_that_need_no_torch_do_not_load_it(tmp_path, words, code):
    program = (
        "import sys\nfrom nlcompanion.command_line import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code or 0\n"
        "print(code, [m for m in ('torch', 'numpy', 'scipy', 'tqdm') if m in sys.modules], file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, *words.split()]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert run.stderr.splitlines()[-1] == f"{code} []"
    assert not list(tmp_path.iterdir())


def test_the_module_is_a_program(tmp_path):
    for words, code, said in (
        ("train --help", 0, "exit status:"),
        ("train --lr 0", 2, "nlcompanion: error: lr is a number > 0"),
    ):
        command = [sys.executable, "-m", "nlcompanion", *words.split()]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == code
        assert said in run.stdout + run.stderr


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_every_setting_is_an_option_with_its_meaning_and_default(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    explained = training_command.explanations()
    text = " ".join(out.split())
    for setting in fields(TrainConfig):
        assert f"--{setting.name.replace('_', '-')} " in text
        assert explained[setting.name]
        meaning = f"{explained[setting.name]} (default: {training_command.shown(setting.default)})"
        assert " ".join(meaning.split()) in text
        assert ":math:" not in meaning
        assert "`" not in meaning
    assert all(f"\n  {exit_code:>3}  " in out for exit_code in (0, 1, 2, 3, 130))


# --- settings -------------------------------------------------------------------------------------------------------


def test_a_setting_has_one_value_in_train():
    (config,) = planned(
        "train --dataset kmnist --subset 500 --model vgg11 --eps 0 --lr 1e-2 --momentum 0 --weight-decay 0 "
        "--batch-size full --epochs 7 --lr-drops 2,5 --constrain-norm --init-scale 2 --width 0.25 --precision float64 "
        "--device cuda:1 --seed 3 --label-noise 0.5 --augment no --filter-lr 3 --filter-weight-decay none"
    )
    assert config == TrainConfig(
        dataset="kmnist", subset=500, model="vgg11", eps=0.0, lr=0.01, momentum=0.0, weight_decay=0.0, batch_size=None,
        epochs=7, lr_drops=(2, 5), constrain_norm=True, init_scale=2.0, width=0.25, precision="float64",
        device="cuda:1", seed=3, label_noise=0.5, augment=False, filter_lr=3.0, filter_weight_decay=None,
    )  # fmt: skip
    assert planned("train") == [TrainConfig()]
    assert planned("train --lr-drops none --batch-size none") == [TrainConfig(batch_size=None)]
    assert planned("train --lr-drops constant") == [TrainConfig(lr_drops=())]


def test_a_sweep_takes_every_combination():
    assert planned("sweep --lr 0.1 0.2 0.2 --seed 0 1 --constrain-norm no yes --epochs 9") == [
        TrainConfig(lr=lr, constrain_norm=norm, seed=seed, epochs=9)
        for lr in (0.1, 0.2)
        for norm in (False, True)
        for seed in (0, 1)
    ]
    drops = [config.lr_drops for config in planned("sweep --epochs 20 --lr-drops 3,6 constant none")]
    assert drops == [(3, 6), (), (6, 12, 16)]
    assert planned("sweep --constrain-norm --epochs 9") == [TrainConfig(constrain_norm=True, epochs=9)]


def test_a_file_of_settings(tmp_path):
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps({"epochs": 9, "lr": [0.1, 0.2], "lr_drops": [3, 6], "momentum": 0}))
    configs = planned(f"sweep --config {file} --lr 0.3 --seed 0 1")
    assert configs == [TrainConfig(lr=0.3, lr_drops=(3, 6), momentum=0, epochs=9, seed=seed) for seed in (0, 1)]
    assert [config.lr for config in planned(f"sweep --config {file}")] == [0.1, 0.2]
    file.write_text(json.dumps([{"epochs": 9, "lr_drops": [[3], []]}, {"epochs": 9, "lr_drops": []}, {"epochs": 8}]))
    configs = planned(f"sweep --config {file}")
    assert [(config.epochs, config.lr_drops) for config in configs] == [(9, (3,)), (9, ()), (8, (2, 5, 6))]
    file.write_text(json.dumps(TrainConfig(lr=0.3).to_dict()))
    assert planned(f"train --config {file}") == [TrainConfig(lr=0.3)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "invalid choice: 'nonsense'"),
        ("train 0.1", "'0.1' is too many; settings are given by name, as in --lr 0.1"),
        ("train --momentun 0.1", "there is no option --momentun; did you mean --momentum?"),
        ("train --quux", "there is no option --quux; see `python -m nlcompanion train --help`"),
        ("train --lr 0.1 0.2", "'0.2' is too many"),
        ("train --lr much", "argument --lr: lr is a number, got 'much'"),
        ("train --lr-drops a,b", "lr_drops is epochs like 30,60,80, or constant or none, got 'a,b'"),
        ("train --augment perhaps", "augment is true or false, got 'perhaps'"),
        ("train --lr -1", "lr is a number > 0, got -1.0"),
        ("train --batch-size 1", "BatchNorm cannot normalise a batch of one"),
        ("train --dataset digit", "did you mean 'digits'?"),
        ("train --dataset custom", 'dataset="custom" does not say which data'),
        ("train --config missing.json", "the configuration missing.json cannot be read: No such file"),
        ("train --config broken.json", "the configuration broken.json is no JSON"),
        ("train --config brackets.json", "the configuration brackets.json is no JSON"),
        ("train --lr 1e39", "lr = 1e+39 is beyond float32"),
        ("train --config word.json", "the configuration word.json holds an object with settings"),
        ("train --config typo.json", "typo.json: 'momentun' is no setting of a run; did you mean 'momentum'?"),
        ("train --config two.json", "two.json describes 2 runs and train does one; take sweep"),
        ("sweep --config none.json", "none.json describes no run"),
        ("sweep --workers 0", "at least 1 worker process"),
        ("sweep --workers 2 --dask tcp://127.0.0.1:1", "not allowed with argument"),
        ("sweep --dask tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("train --workers 2", "there is no option --workers"),
    ],
)
def test_mistakes_are_said_in_one_line(call, tmp_path, monkeypatch, words, said):
    if "--dask tcp" in words:
        pytest.importorskip("dask.distributed")
    monkeypatch.setattr(training_command, "PATIENCE", "0.2s")
    for name, text in (
        ("broken", '{"lr": 0.1'), ("word", '"lr"'), ("typo", '{"momentun": 0.1}'), ("two", '{"lr": [0.1, 0.2]}'),
        ("none", "[]"), ("brackets", "[" * 100_000),
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(text)
    code, out, err = call(*words.split())
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("nlcompanion: error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*.json"))


def test_dask_that_is_not_installed(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    code, _, err = call("sweep", "--dask", "tcp://127.0.0.1:1")
    assert (code, "pip install 'nlcompanion[dask]'" in err) == (2, True)


# --- whatever comes -------------------------------------------------------------------------------------------------

NASTY = (
    "nan", "inf", "-inf", "1e999", "1e308", "1e-320", "-0", "-1", "9" * 5000, "1" + "0" * 400, "", " ", "None", "[]",
    "0x10", "1_0", "1,2,", ",", "\u03bb", "a" * 300, "..", "True", "cuda:999999999999",
)  # fmt: skip
OPTIONS = [
    *(f"--{setting.name.replace('_', '-')}" for setting in fields(TrainConfig)),
    *("--folder", "--config", "--workers", "--dask"),
]
FAULT = "this program failed"  # what is said where nobody has thought of something


@pytest.mark.parametrize("option", OPTIONS)
def test_no_word_ends_in_a_fault(call, option):
    for word in NASTY:
        code, out, err = call("sweep", "--dry-run", f"{option}={word}")
        assert code in ((0, 1, 2) if option == "--folder" else (0, 2)), word
        assert (err.count("\n"), FAULT in err, out) == (1, False, "") if code else (err == "" and out), word


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NASTY) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([setting.name for setting in fields(TrainConfig)]), values, max_size=3))
def test_no_file_of_settings_ends_in_a_fault(content):
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        file = Path(folder) / "settings.json"
        file.write_text(json.dumps(content))
        assert main(["sweep", "--dry-run", "--config", str(file), "--folder", folder]) in (0, 2)
    assert FAULT not in said.getvalue()


def test_a_fault_of_the_program_is_a_line_too(call, monkeypatch):
    """The control of the tests above: what nobody has thought of does say so."""
    monkeypatch.setattr(training_command, "configs", lambda options: {}["nothing"])
    assert call("train", "--dry-run")[0] == 1
    monkeypatch.setattr("nlcompanion.testing.command.run", lambda *words, **options: {}["nothing"])
    code, _, err = call("check", "mine:model")
    assert (code, err.count("\n"), f"error: {FAULT} (KeyError: 'nothing')" in err) == (2, 1, True)


def with_this_package() -> dict[str, str]:
    # no empty entry: Python takes it for the present folder, which one test removes
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


PROGRAM = f'"{sys.executable}" -m nlcompanion'
TINY = "--epochs 1 --subset 64 --batch-size 32 --width 0.5"
ADAM = "import torch\nadam = lambda parameters: torch.optim.Adam(parameters, lr=0.1)\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk at hand")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (f"{PROGRAM} sweep --dry-run > /dev/full", 1, "could not be written"),
        (f"{PROGRAM} --version > /dev/full", 1, "could not be written"),
        (f"{PROGRAM} train --help > /dev/full", 1, "could not be written"),
        (f"{PROGRAM} train --lr 0 2> /dev/full", 2, ""),
        (f"{PROGRAM} train --lr 0 2>&-", 2, ""),
        (f"{PROGRAM} train --dry-run >&-", 0, ""),
        (f"{PROGRAM} train --dry-run >&- 2>&- <&-", 0, ""),
        (f"mkdir gone && cd gone && rmdir ../gone && {PROGRAM} train --dry-run", 2, "the present folder was removed"),
        (f"mkdir gone && cd gone && rmdir ../gone && {PROGRAM} check mine:adam", 2, "the present folder was removed"),
        (f"{PROGRAM} sweep --dask '' --dry-run", 2, "--dask: it is empty"),
        (f"{PROGRAM} train --dry-run --folder $'\\xff'", 0, ""),
        pytest.param(f"{PROGRAM} check mine:adam > /dev/full", 2, "could not be written", marks=pytest.mark.slow),
        pytest.param(f"{PROGRAM} train {TINY} 2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{PROGRAM} train {TINY} >&- 2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{PROGRAM} sweep {TINY} --workers 1 >&- 2>&- <&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{PROGRAM} sweep {TINY} > /dev/full", 1, "could not be written", marks=pytest.mark.slow),
    ],
)
def test_streams_and_folders_that_fail_end_no_command_in_a_traceback(tmp_path, command, code, said):
    (tmp_path / "mine.py").write_text(ADAM)
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=with_this_package())
    assert (run.returncode, said in run.stderr) == (code, True), run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert run.stderr.count("\n") <= 1, run.stderr
    if TINY in command:  # what was computed is kept
        assert len(list(tmp_path.glob("runs/*.json"))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes streams")
def test_no_file_takes_the_number_of_a_stream_that_is_missing(tmp_path):
    """Else what a library writes to stderr would land in a run's file."""
    opened = "f = open('found', 'w'); f.write(str(f.fileno()))"
    fill = "from nlcompanion.__main__ import _fill_missing_streams as fill; fill(); "
    for first, number in ((fill, 3), ("", 0)):  # the control: the lowest number that is free
        command = f'"{sys.executable}" -c "{first}{opened}" <&- >&- 2>&-'
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=with_this_package(), check=True)
        assert int((tmp_path / "found").read_text()) == number


# --- running --------------------------------------------------------------------------------------------------------


def test_train_stores_its_run(call, tmp_path):
    code, out, _ = call("train", *SMALL, "--lr", 0.2)
    config = TrainConfig(lr=0.2, **CONFIG)
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "runs" / f"{config.key}.json")
    assert sweep([config], tmp_path / "runs", run=False)[0].status == "finished"
    assert call("train", *SMALL, "--lr", 0.2)[:2] == (0, out)


def test_a_sweep_says_what_became_of_each_run(call, tmp_path):
    words = ["sweep", *SMALL, "--folder", "mine", "--lr", 0.1, "1e19"]
    code, out, err = call(*words)
    good, wild = TrainConfig(lr=0.1, **CONFIG), TrainConfig(lr=1e19, **CONFIG)
    lines = out.splitlines()
    assert code == 3
    assert lines[0].startswith(f"[1/2] {good.key} finished lr=0.1 (")
    assert lines[1].startswith(f"[2/2] {wild.key} diverged lr=1e+19 (")
    assert lines[2].split()[:5] == ["key", "lr", "status", "steps", "train_loss"]
    assert lines[4].split() == [wild.key, "1e+19", "diverged", lines[4].split()[3], "-", "-", "-"]
    assert lines[5] == f"2 runs in {tmp_path / 'mine'}: 1 finished, 1 diverged"
    assert err == ""
    code, out, _ = call(*words, 0.2, "--dry-run")
    assert code == 0
    assert out.splitlines()[-1].endswith("3 runs in " + str(tmp_path / "mine") + ": 1 finished, 1 diverged, 1 missing")
    code, out, _ = call(*words, 0.2)
    assert code == 3
    assert out.splitlines()[0] == "2 of 3 runs are there already"
    assert out.splitlines()[1].startswith("[3/3] ")


def test_failures_and_damages_are_told(call, tmp_path):
    words = ["sweep", *SMALL, "--device", "cpu", "cuda:63"]
    failed, good = TrainConfig(device="cuda:63", **CONFIG), TrainConfig(**CONFIG)
    code, out, err = call(*words)
    assert code == 1
    assert f'nlcompanion: {failed.key} failed: RuntimeError: device is "cuda:63"' in err
    assert f"(traceback in {tmp_path / 'runs' / failed.key}.json)" in err
    assert "Traceback" not in err
    assert "2 runs in" in out
    file = tmp_path / "runs" / f"{good.key}.json"
    file.write_text("{")
    code, out, err = call(*words, "--keep-failed")
    assert code == 1
    assert f"nlcompanion: warning: {file} is damaged: it is no JSON" in err
    assert out.splitlines()[:1] == ["1 of 2 runs are there already"]
    file.write_text("{")
    code, out, err = call(*words, "--dry-run")
    assert code == 0
    assert f"nlcompanion: {good.key} {file} is damaged" in err


def test_a_folder_that_cannot_be_used_is_said(call, tmp_path):
    (tmp_path / "runs").write_text("")
    code, _, err = call("train", *SMALL)
    assert code == 1
    assert err.startswith("nlcompanion: error: runs cannot be kept in ")


def test_a_run_that_cannot_be_read_is_said(call, tmp_path):
    path = tmp_path / "runs" / f"{TrainConfig(**CONFIG).key}.json"
    path.mkdir(parents=True)
    for words in ((), ("--dry-run",)):
        code, _, err = call("train", *SMALL, *words)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("nlcompanion: error: what is stored of the run ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_is_said_and_the_same_command_goes_on(tmp_path, call):
    words = ["sweep", "--epochs", "30", "--subset", "64", "--batch-size", "32", "--seed", "0", "1"]
    command = [sys.executable, "-m", "nlcompanion", *words]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a shell's background jobs ignore it)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes)
    late = time.monotonic() + 60
    while not list(tmp_path.glob("runs/checkpoints/[0-9a-f]*.pt")) and time.monotonic() < late:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "nlcompanion: interrupted; the same command goes on from here\n")
    assert "2 runs in" not in out
    assert call(*words)[0] == 0
    configs = [TrainConfig(epochs=30, subset=64, batch_size=32, seed=seed) for seed in (0, 1)]
    undisturbed = sweep(configs, tmp_path / "undisturbed")
    for record in undisturbed:
        disturbed = json.loads((tmp_path / "runs" / record.path.name).read_text())
        assert disturbed["run"] == json.loads(record.path.read_text())["run"]


def test_the_librarys_own_code_is_all_but_data_training_and_the_book():
    sizes = {
        "_arguments/a.py": 1,
        "monitoring/b.py": 2,
        "top.py": 4,
        "datasets/c.py": 8,
        "training/d.py": 16,
        "book/e.py": 32,
    }
    rows = {name: lines for name, _, lines, *_ in lines_table(sizes)}
    assert (rows["the library's own"], rows["the whole package"]) == (7, 63)


@pytest.mark.parametrize("command", ["train", "sweep", "audit", "check"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_keeps_nothing_does_not_say_that_it_goes_on(command, error, call, monkeypatch):
    def fail(options):
        raise error

    monkeypatch.setitem(command_line._COMMANDS, command, command_line._COMMANDS[command]._replace(run=fail))
    monkeypatch.setattr(command_line, "_silence", lambda: None)
    _, _, err = call(command, *(["mine:net"] if command in ("audit", "check") else []))
    keeps = "the same command goes on" in err or "what was finished is kept" in err
    assert keeps == (command in ("train", "sweep"))


def test_a_terminal_that_cannot_show_the_folders_name(tmp_path):
    command = [sys.executable, "-m", "nlcompanion", "sweep", "--dry-run", "--folder", "\u6570"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "")
    assert r"\u6570" in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe whose reader has left")
def test_a_reader_who_leaves_early(tmp_path):
    program = (
        "import os, sys\nfrom nlcompanion.command_line import main\nread, write = os.pipe()\nos.close(read)\n"
        "os.dup2(write, 1)\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["sweep", "--dry-run", "--seed", *map(str, range(600))]
    run = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in run.stderr


def test_a_dask_scheduler_by_its_address(call, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=1, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None, silence_logs=60
    ) as cluster:
        code, out, _ = call("sweep", *SMALL, "--seed", 0, 1, "--dask", cluster.scheduler_address)
    assert code == 0
    assert out.splitlines()[-1] == f"2 runs in {tmp_path / 'runs'}: 2 finished"


@pytest.mark.slow
def test_workers_by_their_number(tmp_path):
    command = [sys.executable, "-m", "nlcompanion", "sweep", *SMALL, "--workers", "1", "--seed", "0", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.splitlines()[-1] == f"2 runs in {tmp_path / 'runs'}: 2 finished"
    assert run.stderr == ""
