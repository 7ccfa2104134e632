"""The commands ``train`` and ``sweep``: every setting an option, every run in a file.

Nothing here loads torch before a run begins, so that errors come at once.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import getdoc
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlcompanion._extras import needs
from nlcompanion._terminal import Mistake, say
from nlcompanion.training.config import TrainConfig

with needs("training"):
    import attrs

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from nlcompanion.training.sweeps.records import Record, Sweep

OK, FAILED, DIVERGED = 0, 1, 3
PATIENCE = "10s"  # for a Dask scheduler to answer
_SETTINGS = attrs.fields(TrainConfig)


# --- options --------------------------------------------------------------------------------------------------------


def nearest(argument: str) -> str | None:
    """The option of a setting that is written most like this."""
    return next(iter(get_close_matches(argument, [_option(setting) for setting in _SETTINGS], n=1)), None)


def add_options(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """The options of ``train``, or with several values to each those of ``sweep``."""
    parser.add_argument("--folder", type=_path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--config", type=_path, metavar="FILE", help="JSON with settings; options go before it")
    parser.add_argument("--dry-run", action="store_true", help="say which runs are there and which are not, and stop")
    parser.add_argument("--keep-failed", action="store_true", help="do not try failed runs again")
    if several:
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--workers", type=int, metavar="N", help="local processes, one thread each (default: this one)"
        )
        how.add_argument(
            "--dask", type=_word, metavar="ADDRESS", help="of a Dask scheduler whose workers see the folder"
        )
    settings = parser.add_argument_group("settings of a run" + (", each with one or more values" if several else ""))
    explained = explanations()
    for setting in _SETTINGS:
        switch = setting.type == "bool"
        settings.add_argument(
            _option(setting),
            type=_reader(setting),
            nargs=("*" if switch else "+") if several else ("?" if switch else None),
            const=True if switch and not several else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(setting),
            help=f"{explained.get(setting.name, '')} (default: {shown(setting.default)})".replace("%", "%%").strip(),
        )


def _word(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; a variable may be unset")
    return text


def _path(text: str) -> Path:
    return Path(_word(text))


def _option(setting: attrs.Attribute) -> str:
    return "--" + setting.name.replace("_", "-")


def _metavar(setting: attrs.Attribute) -> str:
    return {"bool": "BOOL", "str": "NAME"}.get(str(setting.type)) or (
        "E,E,..." if "tuple" in str(setting.type) else "X"
    )


def _reader(setting: attrs.Attribute):
    """What turns a word of the command line into a setting's value, by the setting's type."""
    kinds = [kind.strip() for kind in str(setting.type).split("|")]

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


_READ: dict[str, Callable[[str], Any]] = {
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


def explanations() -> dict[str, str]:
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


def shown(value: Any) -> str:
    """A setting as one writes it on the command line."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "constant"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


# --- configurations -------------------------------------------------------------------------------------------------


def configs(options: argparse.Namespace) -> list[TrainConfig]:
    """Every combination of the file's settings, overruled by the options'."""
    given = {setting.name: vars(options)[setting.name] for setting in _SETTINGS if setting.name in options}
    lists = {name: (value or [True]) if options.command == "sweep" else [value] for name, value in given.items()}
    found = []
    for entry in _entries(options.config):
        axes = {**{name: _values(name, value) for name, value in entry.items()}, **lists}
        for values in product(*axes.values()):
            try:
                found.append(TrainConfig.from_dict(dict(zip(axes, values, strict=True))))
            except ValueError as error:
                raise Mistake(f"{options.config}: {error}" if options.config and not lists else str(error)) from None
    unique = list({config.key: config for config in found}.values())
    if options.command == "train" and len(unique) != 1:
        raise Mistake(f"{options.config} describes {len(unique)} runs and train does one; take sweep")
    if not unique:
        raise Mistake(f"{options.config} describes no run; give it settings")
    return unique


def _entries(path: Path | None) -> list[dict]:
    if path is None:
        return [{}]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Mistake(f"the configuration {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # the latter of thousands of brackets
        raise Mistake(f"the configuration {path} is no JSON: {error}") from None
    entries = content if isinstance(content, list) else [content]
    if not all(isinstance(entry, dict) for entry in entries):
        raise Mistake(f'the configuration {path} holds an object with settings, as in {{"lr": 0.1}}, or a list of them')
    return entries


def _values(name: str, value: Any) -> list:
    """A setting's values in a file: those of a list, but [30, 60] are the drops of one run, [[30], []] of two."""
    if not isinstance(value, list) or (name == "lr_drops" and all(isinstance(item, int) for item in value)):
        return [value]
    return value


# --- running --------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Do what ``train`` or ``sweep`` was asked for; the exit code."""
    wanted = configs(options)
    if (count := getattr(options, "workers", None)) is not None and count < 1:
        raise Mistake(f"a sweep needs at least 1 worker process, got {count}; give their number, as in --workers 2")
    from nlcompanion.training.sweeps.store import SweepError
    from nlcompanion.training.sweeps.sweep import sweep

    try:
        if options.dry_run:
            result = sweep(wanted, options.folder, run=False)
        else:
            progress = True if options.command == "train" else _Lines(options, wanted)
            with _executor(options) as executor:
                retry = not options.keep_failed
                result = sweep(wanted, options.folder, executor, retry_failed=retry, progress=progress)
    except SweepError as error:
        say(f"error: {error}")
        return FAILED
    except ValueError as error:
        raise Mistake(str(error)) from None
    for record in result:
        if record.error:
            say(f"{record.key} {_reason(record)}")
    print(_table(result))
    return OK if options.dry_run else _code(result)


def _code(result: Sweep) -> int:
    states = result.status
    if set(states) - {"finished", "diverged"}:
        return FAILED
    return DIVERGED if states["diverged"] else OK


def _reason(record: Record) -> str:
    error = record.error or ""
    if record.status == "failed":
        return f"failed: {error.strip().splitlines()[-1]} (traceback in {record.path})"
    return error


class _Lines:
    """Says of every run that ends how it did."""

    def __init__(self, options: argparse.Namespace, wanted: Sequence[TrainConfig]):
        from nlcompanion.training.sweeps.sweep import sweep

        done = ("finished", "diverged", "failed") if options.keep_failed else ("finished", "diverged")
        there = sweep(wanted, options.folder, run=False).status
        self.total, self.ended = len(wanted), sum(there[status] for status in done)
        self.names = [
            setting.name for setting in _SETTINGS if len({getattr(config, setting.name) for config in wanted}) > 1
        ]
        if self.ended:
            print(f"{self.ended} of {self.total} runs are there already", flush=True)

    def __call__(self, record: Record) -> None:
        self.ended += 1
        settings = " ".join(f"{name}={shown(getattr(record.config, name))}" for name in self.names)
        took = f"{record.provenance['duration_seconds']:.1f} s"
        print(f"[{self.ended}/{self.total}] {record.key} {record.status} {settings} ({took})", flush=True)


def _table(result: Sweep) -> str:
    """The runs as aligned columns, and what became of them all."""
    with needs("training"):
        from tabulate import tabulate

    columns = {"key": [record.key for record in result], **result.table()}
    cells = {name: [_cell(value) for value in column] for name, column in columns.items()}
    rows = tabulate(cells, headers="keys", tablefmt="plain", disable_numparse=True)
    states = ", ".join(f"{count} {status}" for status, count in result.status.items())
    return f"{rows}\n" + (
        f"{len(result)} runs in {result.folder}: {states}" if len(result) > 1 else str(result[0].path)
    )


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else shown(value)


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Executor | int | None]:
    if not getattr(options, "dask", None):
        yield getattr(options, "workers", None)
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise Mistake("--dask needs Dask, which is not installed; pip install 'nlcompanion[dask]'") from None
    try:
        client = Client(options.dask, timeout=PATIENCE)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise Mistake(
            f"no Dask scheduler answers at {options.dask} ({error}); start one with `dask scheduler`"
        ) from None
    with client:
        yield client.get_executor()
