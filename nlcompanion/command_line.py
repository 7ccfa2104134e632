"""The command line : ``python -m nlcompanion train | sweep``.

Nothing here loads torch before a run begins, so that help and errors come at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from difflib import get_close_matches
from inspect import getdoc
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nlcompanion.training.config import TrainConfig

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from nlcompanion.training.sweeps.records import Record, Sweep

OK, FAILED, USAGE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130
PATIENCE = "10s"  # for a Dask scheduler to answer

_CODES = """\
exit status:
    0  every run is there and has finished
    1  a run failed, or not all could be done; the same command tries again
    2  nothing was run: wrong usage, or an impossible configuration
    3  every run is there, and one or more diverged
  130  interrupted; the same command goes on
"""

_TOP = """\
Train networks and sweep over their settings, and keep every run in a file.

commands:
  train    one run
  sweep    every combination of the settings that are given as lists
  check    the laws of a model's gradients, or of an optimiser

`python -m nlcompanion COMMAND --help` tells more.
"""

_TRAIN = """\
Train one network. The run is kept in FOLDER/KEY.json, where KEY is a hash of its settings; a run that is
there already is not repeated, and one that was cut off goes on from its last epoch.
"""

_SWEEP = """\
Train once for every combination of the settings. Each run is kept in FOLDER/KEY.json, where KEY is a hash of its
settings; runs that are there already are not repeated, and those that were cut off go on from their last epoch.
The same command may be started several times: the processes share the work.
"""

_SWEEP_EXAMPLES = """\
examples:
  python -m nlcompanion sweep --lr 0.03 0.1 --seed 0 1 2 3 --epochs 20 --folder runs --workers 2
  python -m nlcompanion sweep --config sweep.json --folder runs --dask tcp://10.0.0.1:8786

A configuration file holds settings by name, those with several values as lists, or a list of such objects:
  {"epochs": 20, "lr": [0.03, 0.1], "seed": [0, 1, 2, 3]}
"""

_TRAIN_EXAMPLES = """\
example:
  python -m nlcompanion train --lr 0.1 --momentum 0.9 --epochs 20 --folder runs
"""


_CHECK = """\
Hold gradients or an optimiser against their own laws. A factory that takes parameters is one of optimisers; one that
takes nothing returns (model, *inputs), or a dict with "function", "inputs" and the options of check_gradients.
"""

_CHECK_EXAMPLES = """\
example, with a file mine.py beside you:
  def adamw(params): return torch.optim.AdamW(params, lr=1e-3)
  python -m nlcompanion check mine:adamw

exit status:
    0  every law holds
    1  a law is broken
    2  nothing was checked: wrong usage, or the factory failed
    3  it cannot be told: rounding would hide a fault, or something has no law
"""


class _Wrong(Exception):
    """A mistake of the user's, said in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see ``python -m nlcompanion --help``.

    Returns:
        0 if every run has finished; 1 if one failed; 2 for wrong usage; 3 if one diverged; 130 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with _plain_warnings():
        try:
            return _run(_parsed(argv))
        except _Wrong as error:
            print(f"nlcompanion: error: {error}", file=sys.stderr)
            return USAGE
        except BrokenPipeError:  # whoever read what is printed has left, as `head` does
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
            return FAILED
        except KeyboardInterrupt:
            print("nlcompanion: interrupted; the same command goes on from here", file=sys.stderr)
            return INTERRUPTED


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as lines for a reader, without the place in our code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: print(f"nlcompanion: warning: {message}", file=sys.stderr)
        yield


# --- options --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print all options first."""
        self.exit(USAGE, f"nlcompanion: error: {message}; see `{self.prog} --help`\n")


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m nlcompanion", description=_TOP, epilog=_CODES, formatter_class=shape, usage="%(prog)s COMMAND ..."
    )
    parser.add_argument("--version", action="store_true", help="show the versions of nlcompanion and torch, and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, parser_class=_Parser)
    for name, text, examples in (("train", _TRAIN, _TRAIN_EXAMPLES), ("sweep", _SWEEP, _SWEEP_EXAMPLES)):
        command = commands.add_parser(
            name,
            prog=f"python -m nlcompanion {name}",
            description=text,
            epilog=f"{examples}\n{_CODES}",
            formatter_class=shape,
            allow_abbrev=False,
            usage="%(prog)s [options] [settings]",
        )
        _add_options(command, several=name == "sweep")
    check = commands.add_parser(
        "check",
        prog="python -m nlcompanion check",
        description=_CHECK,
        epilog=_CHECK_EXAMPLES,
        formatter_class=shape,
        allow_abbrev=False,
        usage="%(prog)s [options] PACKAGE.MODULE:FACTORY",
    )
    check.add_argument("target", metavar="PACKAGE.MODULE:FACTORY", help="what makes the model or the optimiser")
    check.add_argument(
        "--resolution", type=float, default=0.5, metavar="SHARE", help="the fault that must not hide (default: 0.5)"
    )
    check.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _Wrong(_unknown(unknown[0], options.command))
    if not options.command and not options.version:
        parser.print_help(sys.stderr)
        raise SystemExit(USAGE)
    return options


def _unknown(argument: str, command: str | None) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} is too many; settings are given by name, as in --lr 0.1"
    near = get_close_matches(argument.split("=")[0], [_option(setting) for setting in fields(TrainConfig)], n=1)
    hint = f"did you mean {near[0]}?" if near else f"see `python -m nlcompanion {command or ''} --help`"
    return f"there is no option {argument}; {hint}"


def _add_options(parser: argparse.ArgumentParser, *, several: bool) -> None:
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON with settings; options go before it")
    parser.add_argument("--dry-run", action="store_true", help="say which runs are there and which are not, and stop")
    parser.add_argument("--keep-failed", action="store_true", help="do not try failed runs again")
    if several:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--workers", type=int, metavar="N", help="local processes, one thread each (default: this one)"
        )
        how.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler whose workers see the folder")
    settings = parser.add_argument_group("settings of a run" + (", each with one or more values" if several else ""))
    explained = _explanations()
    for setting in fields(TrainConfig):
        switch = setting.type == "bool"
        settings.add_argument(
            _option(setting),
            type=_reader(setting),
            nargs=("*" if switch else "+") if several else ("?" if switch else None),
            const=True if switch and not several else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(setting),
            help=f"{explained.get(setting.name, '')} (default: {_shown(setting.default)})".replace("%", "%%").strip(),
        )


def _option(setting: Field) -> str:
    return "--" + setting.name.replace("_", "-")


def _metavar(setting: Field) -> str:
    return {"bool": "BOOL", "str": "NAME"}.get(setting.type) or ("E,E,..." if "tuple" in setting.type else "X")


def _reader(setting: Field):
    """What turns a word of the command line into a setting's value, by the setting's type."""
    kinds = [kind.strip() for kind in setting.type.split("|")]

    def read(word: str) -> Any:
        if word.lower() == "none" and "None" in kinds:
            return None
        for kind in kinds:
            try:
                if kind in _READ:
                    return _READ[kind](word)
            except (ValueError, KeyError):
                continue
        raise argparse.ArgumentTypeError(f"{setting.name} is {_wanted(kinds)}, got {word!r}")

    return read


_READ = {
    "bool": lambda word: {"true": True, "false": False, "yes": True, "no": False}[word.lower()],
    "int": int,
    "float": float,
    "tuple[int, ...]": lambda word: () if word in ("constant", "()") else tuple(int(part) for part in word.split(",")),
    "str": str,
}


def _wanted(kinds: list[str]) -> str:
    named = {
        "bool": "true or false", "int": "an integer", "float": "a number", "str": "a name", "None": "none",
        "tuple[int, ...]": "epochs like 30,60,80, or constant",
    }  # fmt: skip
    return " or ".join(named[kind] for kind in kinds)


def _explanations() -> dict[str, str]:
    """What the docstring of TrainConfig says of each setting, as plain text."""
    section = (getdoc(TrainConfig) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^(\w+): ", textwrap.dedent(section), flags=re.MULTILINE)[1:]
    return {name: _plain(text) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def _plain(text: str) -> str:
    for pattern, put in (
        (r":math:`([^`]*)`", r"\1"),
        (r":\w+:`~?([^`]*)`", r"\1"),
        (r"``?([^`]*)``?", r"\1"),
        (r"\\eta", "eta"), (r"\\beta", "beta"), (r"\\ge\b", ">="), (r"\\in\b", "in"), (r"\s+", " "),
    ):  # fmt: skip
        text = re.sub(pattern, put, text)
    return text.strip().rstrip(".")


def _shown(value: Any) -> str:
    """A setting as one writes it on the command line."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "constant"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


# --- configurations -------------------------------------------------------------------------------------------------


def _configs(options: argparse.Namespace) -> list[TrainConfig]:
    """Every combination of the file's settings, overruled by the options'."""
    given = {setting.name: vars(options)[setting.name] for setting in fields(TrainConfig) if setting.name in options}
    lists = {name: (value or [True]) if options.command == "sweep" else [value] for name, value in given.items()}
    configs = []
    for entry in _entries(options.config):
        axes = {**{name: _values(name, value) for name, value in entry.items()}, **lists}
        for values in product(*axes.values()):
            try:
                configs.append(TrainConfig.from_dict(dict(zip(axes, values, strict=True))))
            except ValueError as error:
                raise _Wrong(f"{options.config}: {error}" if options.config and not lists else str(error)) from None
    unique = list({config.key: config for config in configs}.values())
    if options.command == "train" and len(unique) != 1:
        raise _Wrong(f"{options.config} describes {len(unique)} runs and train does one; take sweep")
    if not unique:
        raise _Wrong(f"{options.config} describes no run; give it settings")
    return unique


def _entries(path: Path | None) -> list[dict]:
    if path is None:
        return [{}]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _Wrong(f"the configuration {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
        raise _Wrong(f"the configuration {path} is no JSON: {error}") from None
    entries = content if isinstance(content, list) else [content]
    if not all(isinstance(entry, dict) for entry in entries):
        raise _Wrong(f'the configuration {path} holds an object with settings, as in {{"lr": 0.1}}, or a list of them')
    return entries


def _values(name: str, value: Any) -> list:
    """A setting's values in a file: those of a list, but [30, 60] are the drops of one run, [[30], []] of two."""
    if not isinstance(value, list) or (name == "lr_drops" and all(isinstance(item, int) for item in value)):
        return [value]
    return value


# --- running --------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    if options.version:
        return _version()
    if options.command == "check":
        from nlcompanion.testing.command import run

        return run(options.target, resolution=options.resolution, seed=options.seed)
    configs = _configs(options)
    from nlcompanion.training.sweeps.records import SweepError
    from nlcompanion.training.sweeps.sweep import sweep

    try:
        if options.dry_run:
            result = sweep(configs, options.folder, run=False)
        else:
            progress = True if options.command == "train" else _Lines(options, configs)
            with _executor(options) as executor:
                retry = not options.keep_failed
                result = sweep(configs, options.folder, executor, retry_failed=retry, progress=progress)
    except SweepError as error:
        print(f"nlcompanion: error: {error}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        raise _Wrong(str(error)) from None
    for record in result:
        if record.error:
            print(f"nlcompanion: {record.key} {_reason(record)}", file=sys.stderr)
    print("\n".join(_table(result)))
    return OK if options.dry_run else _code(result)


def _code(result: Sweep) -> int:
    states = result.status
    if set(states) - {"finished", "diverged"}:
        return FAILED
    return DIVERGED if states["diverged"] else OK


def _reason(record: Record) -> str:
    if record.status == "failed":
        return f"failed: {record.error.strip().splitlines()[-1]} (traceback in {record.path})"
    return record.error


class _Lines:
    """Says of every run that ends how it did."""

    def __init__(self, options: argparse.Namespace, configs: Sequence[TrainConfig]):
        from nlcompanion.training.sweeps.sweep import sweep

        done = ("finished", "diverged", "failed") if options.keep_failed else ("finished", "diverged")
        there = sweep(configs, options.folder, run=False).status
        self.total, self.ended = len(configs), sum(there[status] for status in done)
        self.names = [name for name in _NAMES if len({getattr(config, name) for config in configs}) > 1]
        if self.ended:
            print(f"{self.ended} of {self.total} runs are there already", flush=True)

    def __call__(self, record: Record) -> None:
        self.ended += 1
        settings = " ".join(f"{name}={_shown(getattr(record.config, name))}" for name in self.names)
        took = f"{record.provenance['duration_seconds']:.1f} s"
        print(f"[{self.ended}/{self.total}] {record.key} {record.status} {settings} ({took})", flush=True)


_NAMES = tuple(setting.name for setting in fields(TrainConfig))


def _table(result: Sweep) -> list[str]:
    """The runs as aligned columns, and what became of them all."""
    columns = {"key": [record.key for record in result], **result.table()}
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    cells = [["-" if cell is None else _cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    states = ", ".join(f"{count} {status}" for status, count in result.status.items())
    return [*lines, f"{len(result)} runs in {result.folder}: {states}" if len(result) > 1 else f"{result[0].path}"]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _shown(value)


def _version() -> int:
    from importlib.metadata import version

    print(f"nlcompanion {version('nlcompanion')}, torch {version('torch')}, Python {sys.version.split()[0]}")
    return OK


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Executor | int | None]:
    if not getattr(options, "dask", None):
        yield getattr(options, "workers", None)
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise _Wrong("--dask needs Dask, which is not installed; pip install 'nlcompanion[dask]'") from None
    try:
        client = Client(options.dask, timeout=PATIENCE)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise _Wrong(
            f"no Dask scheduler answers at {options.dask} ({error}); start one with `dask scheduler`"
        ) from None
    with client:
        yield client.get_executor()
