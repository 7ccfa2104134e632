"""Plant bugs in the package's formulas, one at a time, and see which tests notice.

``python -m tools.planted_bugs [NAME ...] [--workers 2] [--list]``. ``tests/planted_bugs.toml`` holds the bugs: a file,
a piece of its text, what stands there instead, why somebody might have written it, and the tests of its own folder that
have to notice. Each is planted in a copy of the project; its tests run until one fails. A bug that nobody notices
survives, and the command fails: a test is missing. Tests that fail without any bug prove nothing, so they run on the
sound copy first.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

import pytest
from hypothesis import Phase, settings
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "planted_bugs.toml"
COPIED = ("nlcompanion", "studies", "tests", "tools", "book", "pyproject.toml", "README.md")
TIMEOUT = 600  # seconds for one bug
SURVIVES = "SURVIVES"
# no option beyond what is asked for here, and the same draws each time
_PYTEST = ("-q", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "--tb=no", "-m", "not slow")
# of the plugins that are installed, the only one that the tests need: the others take three seconds to load
_PLUGINS = ("-p", "_hypothesis_pytestplugin", "--hypothesis-seed=0")
# a process for each run, that begins with what takes seconds to import
_PROCESSES = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
_IMPORTED = ("torch", "torch._dynamo", "scipy.integrate", "scipy.optimize", "matplotlib.pyplot", "sklearn.datasets")


@dataclass(frozen=True)
class Bug:
    """One bug.

    Attributes:
        name: what it is called in the table.
        file: where it is planted, from the project's root.
        old, new: the text that stands there once, and what replaces it.
        why: what somebody might have believed who wrote it.
        tests: what has to notice, files or single tests, in the folder that mirrors the bug's.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    def planted(self, root: Path) -> str:
        """The file's text with the bug in it.

        Raises:
            ValueError: the text is not there exactly once, or with the bug it is no Python or the same program.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} stands {count} times in {self.file}, not once; bring it up to date"
            )
        changed = text.replace(self.old, self.new)
        try:
            same = _program(changed) == _program(text)
        except SyntaxError as error:
            raise ValueError(f"{self.name}: with the bug {self.file} is no Python: {error}") from error
        if same:
            raise ValueError(f"{self.name}: {self.new!r} is the same program as {self.old!r}")
        return changed


@lru_cache(maxsize=8)  # many bugs stand in one file
def _program(text: str) -> str:
    return ast.dump(ast.parse(text))


def bugs(table: Path = TABLE) -> list[Bug]:
    """All bugs of the table."""
    entries = tomllib.loads(table.read_text(encoding="utf-8"))
    return [Bug(name, **entry | {"tests": tuple(entry["tests"])}) for name, entry in entries.items()]


def hunt(bug: Bug, copy: Path) -> list[str]:
    """Plant the bug in a copy of the project, run, mend the copy; a row of the report."""
    file = copy / bug.file
    sound = file.read_text(encoding="utf-8")
    began = time.perf_counter()
    try:
        file.write_text(bug.planted(copy), encoding="utf-8")
        caught = first_failure(copy, bug.tests)
    finally:
        file.write_text(sound, encoding="utf-8")
    return [bug.name, bug.file.removeprefix("nlcompanion/"), caught or SURVIVES, f"{time.perf_counter() - began:.0f}"]


def first_failure(copy: Path, tests: Sequence[str]) -> str:
    """The test that failed first, or nothing where all is green.

    Raises:
        TimeoutError, ChildProcessError: there was no end, or pytest ran nothing; neither is a test that noticed.
    """
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run_pytest, args=(copy, list(tests), sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT):
            advice = "choose a bug that ends, or a quicker test"
            raise TimeoutError(f"{', '.join(tests)}: no end within {TIMEOUT} s; {advice}")
        return receiver.recv()
    except EOFError:
        raise ChildProcessError(f"pytest did not run {' '.join(tests)}; are these tests still there?") from None
    finally:
        process.kill()
        process.join()


def _run_pytest(copy: Path, tests: list[str], sender: Connection) -> None:
    """In a process of its own: pytest in a copy, silent but for the first failure."""
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("nlcompanion")
    if spec is None or copy not in Path(spec.origin).parents:
        raise ImportError(f"the package would come from {spec and spec.origin}, not from the copy with the bug")
    # a failure is enough: the smallest example of it would take minutes
    settings.register_profile("first failure", phases=(Phase.explicit, Phase.generate), database=None)
    settings.load_profile("first failure")
    failures: list[str] = []

    class Watch:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                failures.append(report.nodeid)

        def pytest_collectreport(self, report):
            if report.failed:
                failures.append(f"{report.nodeid} (collecting it)")

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = pytest.main([*_PYTEST, *_PLUGINS, *tests], plugins=[Watch()])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not failures:
        return  # nothing ran, and nothing is known
    sender.send(failures[0] if failures else "")


def _copies(count: int, folder: Path) -> Queue[Path]:
    """Copies of the project to plant bugs in, without what is built."""
    ready: Queue[Path] = Queue()
    for number in range(count):
        copy = folder / str(number)
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
            elif source.exists():
                shutil.copy(source, copy / name)
        ready.put(copy)
    return ready


def _by_file(chosen: Sequence[Bug]) -> list[list[str]]:
    """All tests that have to notice, those of a file together."""
    tests = sorted({test for bug in chosen for test in bug.tests})
    return [list(group) for _, group in groupby(tests, key=lambda test: test.partition("::")[0])]


def _hunt_all(chosen: Sequence[Bug], workers: int) -> list[list[str]]:
    """The rows of all bugs, each printed as it is found.

    Raises:
        ValueError: a test that has to notice fails without any bug.
    """
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    _PROCESSES.set_forkserver_preload(list(_IMPORTED))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        ready = _copies(workers, Path(folder).resolve())

        @contextmanager
        def a_copy() -> Iterator[Path]:
            copy = ready.get()
            try:
                yield copy
            finally:
                ready.put(copy)

        def sound(tests: Sequence[str]) -> str:
            with a_copy() as copy:
                return first_failure(copy, tests)

        def one(bug: Bug) -> list[str]:
            with a_copy() as copy:
                row = hunt(bug, copy)
            print(f"{row[0]}: {row[2]} ({row[3]} s)", flush=True)
            return row

        for failed in filter(None, pool.map(sound, _by_file(chosen))):
            raise ValueError(f"{failed} fails without any bug, so it notices none; mend that first")
        return list(pool.map(one, chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Hunt the named bugs, or all; 1 if one survives, 2 if the table does not fit the code."""
    parser = argparse.ArgumentParser(prog="python -m tools.planted_bugs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs of the table, or the beginnings of their names")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--list", action="store_true", help="say what each bug is and stop")
    options = parser.parse_args(argv)
    chosen = [bug for bug in bugs(TABLE) if not options.names or bug.name.startswith(tuple(options.names))]
    if options.list:
        rows = [[bug.name, bug.file, bug.why] for bug in chosen]
        print(tabulate(rows, ("bug", "file", "why somebody might write it")))
        return 0
    began = time.perf_counter()
    try:
        for bug in chosen:
            bug.planted(ROOT)
        rows = _hunt_all(chosen, options.workers)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    survivors = [row[0] for row in rows if row[2] == SURVIVES]
    print(tabulate(rows, ("bug", "in", "first noticed by", "s"), tablefmt="github", disable_numparse=True))
    said = f"{len(rows)} bugs planted in {time.perf_counter() - began:.0f} s, {len(survivors)} survive"
    print(said + (f": {', '.join(survivors)}" if survivors else ""))
    return int(bool(survivors))


if __name__ == "__main__":
    raise SystemExit(main())
