"""The command line: ``python -m nlcompanion train | sweep | check``.

Nothing here loads torch before a run begins, so that help and errors come at once. Whatever happens, a command ends
with a line that says what and an exit status that its help explains.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from nlcompanion._terminal import Mistake, say

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_CODES = """\
exit status:
    0  every run is there and has finished
    1  a run failed, or not all could be done; the same command tries again
    2  nothing was run: wrong usage, or an impossible configuration
    3  every run is there, and one or more diverged
  130  interrupted; the same command goes on
"""

_TOP = """\
Train networks and sweep over their settings, and keep every run in a file; find the laws of a model,
and hold gradients against theirs.

commands:
  train    one run
  sweep    every combination of the settings that are given as lists
  audit    the laws of a model, and what an optimiser makes of them
  check    the laws of a model's gradients, or of an optimiser

`python -m nlcompanion COMMAND --help` tells more.
"""

_TRAIN = """\
Train one network. The run is kept in FOLDER/KEY.json, where KEY is a hash of its settings; a run that is
there already is not repeated, and one that was cut off goes on from its last epoch.
"""

_TRAIN_EXAMPLES = f"""\
example:
  python -m nlcompanion train --lr 0.1 --momentum 0.9 --epochs 20 --folder runs

{_CODES}"""

_SWEEP = """\
Train once for every combination of the settings. Each run is kept in FOLDER/KEY.json, where KEY is a hash of its
settings; runs that are there already are not repeated, and those that were cut off go on from their last epoch.
The same command may be started several times: the processes share the work.
"""

_SWEEP_EXAMPLES = f"""\
examples:
  python -m nlcompanion sweep --lr 0.03 0.1 --seed 0 1 2 3 --epochs 20 --folder runs --workers 2
  python -m nlcompanion sweep --config sweep.json --folder runs --dask tcp://10.0.0.1:8786

A configuration file holds settings by name, those with several values as lists, or a list of such objects:
  {{"epochs": 20, "lr": [0.03, 0.1], "seed": [0, 1, 2, 3]}}

{_CODES}"""

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
    2  no verdict: wrong usage, the factory failed, or the report could not be printed
    3  it cannot be told: rounding would hide a fault, or something has no law
  130  interrupted
"""


_AUDIT = """\
Find the laws of a model: the continuous symmetries of its loss, what each conserves, and what training makes of it. The
factory takes nothing and returns (model, inputs, targets, loss), or (model, inputs) of a model with its own loss.
"""

_AUDIT_EXAMPLES = """\
example, with a file mine.py beside you:
  def net(): return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)), x, y, nn.functional.cross_entropy
  python -m nlcompanion audit mine:net --optimizer adamw:lr=1e-3,weight_decay=0.01

exit status:
    0  the laws are printed
    1  they could not be printed, or the factory failed
    2  no audit: wrong usage, or a model that cannot be audited
  130  interrupted
"""


class _Command(NamedTuple):
    """A word of the command line: what its help says, what fills its parser, what does it."""

    about: str
    epilog: str
    usage: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    unfinished: int  # the exit status where an error of the program or of its streams ends it
    resumes: bool  # whether it keeps what is finished, so that the same command goes on


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see ``python -m nlcompanion --help``.

    Returns:
        The exit status, as the help of each command explains it: 0 if all is well, 2 for wrong usage, 130 if
        interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((_COMMANDS[word] for word in argv if word in _COMMANDS), None)
    unfinished, resumes = (command.unfinished, command.resumes) if command else (FAILED, False)
    with _plain_warnings():
        try:
            try:
                return _run(_parsed(argv))
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # a full disk is found here and not while the interpreter ends
        except (Mistake, ImportError) as error:  # the latter names the extra that brings what is missing
            say(f"error: {error}")
            return USAGE
        except KeyboardInterrupt:
            say("interrupted" + ("; the same command goes on from here" if resumes else ""))
            return INTERRUPTED
        except BrokenPipeError:  # whoever read what is printed has left, as `head` does
            _silence()
            return unfinished
        except OSError as error:
            _silence()
            what = "a file could not be used" if error.filename else "what it prints could not be written"
            kept = "what was finished is kept; " if resumes else ""
            say(f"error: {what} ({error}); {kept}mend that, and give the same command again")
            return unfinished
        except Exception as error:
            if sys.flags.dev_mode:
                raise
            say(
                f"error: this program failed ({type(error).__name__}: {error}); "
                "`python -X dev -m nlcompanion ...` shows where"
            )
            return unfinished


def _silence() -> None:
    """Let nothing more be written to stdout, at the interpreter's end either."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as lines for a reader, without the place in our code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        yield


def _run(options: argparse.Namespace) -> int:
    if options.version:
        return _version()
    try:
        os.getcwd()
    except OSError:  # torch's own libraries end the process in such a place
        raise Mistake("the present folder was removed; change to another one") from None
    return _COMMANDS[options.command].run(options)


def _version() -> int:
    from importlib.metadata import version

    from nlcompanion import __version__

    print(f"nlcompanion {__version__}, torch {version('torch')}, Python {sys.version.split()[0]}")
    return OK


# --- options --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print all options first."""
        say(f"error: {message}; see `{self.prog} --help`")
        self.exit(USAGE)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """As argparse does, but a full disk is an error."""
        print(self.format_help(), end="", file=file)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "python -m nlcompanion", description=_TOP, epilog=_CODES, formatter_class=shape, usage="%(prog)s COMMAND ..."
    )
    parser.add_argument("--version", action="store_true", help="show the versions of nlcompanion and torch, and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, parser_class=_Parser)
    for name, known in _COMMANDS.items():
        command = commands.add_parser(
            name,
            prog=f"python -m nlcompanion {name}",
            description=known.about,
            epilog=known.epilog,
            formatter_class=shape,
            allow_abbrev=False,
            usage=f"%(prog)s {known.usage}",
        )
        if name in argv:  # what another command needs may not be installed
            known.add_options(command)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise Mistake(_unknown(unknown[0], options.command))
    if not options.command and not options.version:
        with suppress(OSError):
            parser.print_help(sys.stderr)
        raise SystemExit(USAGE)
    return options


def _unknown(argument: str, command: str | None) -> str:
    near = None
    if command in ("train", "sweep"):
        from nlcompanion.training.command import nearest

        if not argument.startswith("-"):
            return f"{argument!r} is too many; settings are given by name, as in --lr 0.1"
        near = nearest(argument.partition("=")[0])
    hint = f"did you mean {near}?" if near else f"see `python -m nlcompanion {command or ''} --help`"
    return f"there is no option {argument}; {hint}"


# --- commands -------------------------------------------------------------------------------------------------------


def _runs(options: argparse.Namespace) -> int:
    from nlcompanion.training.command import run

    return run(options)


def _options_of_runs(parser: argparse.ArgumentParser, *, several: bool) -> None:
    from nlcompanion.training.command import add_options

    add_options(parser, several=several)


def _check(options: argparse.Namespace) -> int:
    from nlcompanion.testing.command import run

    return run(options.target, resolution=options.resolution, seed=options.seed)


def _options_of_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="PACKAGE.MODULE:FACTORY", help="what makes the model or the optimiser")
    parser.add_argument(
        "--resolution", type=float, default=0.5, metavar="SHARE", help="the fault that must not hide (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")


def _audit(options: argparse.Namespace) -> int:
    from nlcompanion.laws.auditing.command import run

    return run(options)


def _options_of_audit(parser: argparse.ArgumentParser) -> None:
    from nlcompanion.laws.auditing.command import add_options

    add_options(parser)


_SETTINGS = "[options] [settings]"
_TARGET = "[options] PACKAGE.MODULE:FACTORY"
_COMMANDS = {
    "train": _Command(
        _TRAIN, _TRAIN_EXAMPLES, _SETTINGS, partial(_options_of_runs, several=False), _runs, FAILED, True
    ),
    "sweep": _Command(_SWEEP, _SWEEP_EXAMPLES, _SETTINGS, partial(_options_of_runs, several=True), _runs, FAILED, True),
    "audit": _Command(_AUDIT, _AUDIT_EXAMPLES, _TARGET, _options_of_audit, _audit, FAILED, False),
    "check": _Command(_CHECK, _CHECK_EXAMPLES, _TARGET, _options_of_check, _check, USAGE, False),
}
