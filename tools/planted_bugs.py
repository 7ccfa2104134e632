"""Plant bugs in the package's formulas, one at a time, and see which tests notice.

``python -m tools.planted_bugs [NAME ...] [--workers 2] [--list]``. ``tests/planted_bugs.toml`` holds the bugs: a file,
a piece of its text, what stands there instead, and why somebody might have written it. Each is planted in a copy of the
project. The tests of the bug's own folder run until one fails; if none does, the chapter runs that the bug names. A bug
that nobody notices survives, and the command fails: a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "planted_bugs.toml"
COPIED = ("nlcompanion", "studies", "tests", "tools", "book", "pyproject.toml", "README.md")
TIMEOUT = 300  # seconds; a bug that makes a test run for ever is noticed too
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Bug:
    """One bug.

    Attributes:
        name: what it is called in the table.
        file: where it is planted, from the project's root.
        old, new: the text that stands there once, and what replaces it.
        why: what somebody might have believed who wrote it.
        tests: what has to notice, files or folders from the project's root; the folder that mirrors it if empty.
        chapter: the notebook that runs where the tests do not notice; none if empty.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...] = ()
    chapter: str = ""

    def planted(self, root: Path = ROOT) -> str:
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
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text))
        except SyntaxError as error:
            raise ValueError(f"{self.name}: with the bug {self.file} is no Python: {error}") from error
        if same:
            raise ValueError(f"{self.name}: {self.new!r} is the same program as {self.old!r}")
        return changed

    def where(self) -> tuple[str, ...]:
        """The tests that have to notice."""
        if self.tests:
            return self.tests
        folder = Path(self.file).parent.relative_to("nlcompanion")
        return (str(Path("tests") / folder),)


def bugs() -> list[Bug]:
    """All bugs of the table."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return [Bug(name, **entry | {"tests": tuple(entry.get("tests", ()))}) for name, entry in table.items()]


def hunt(bug: Bug, copy: Path) -> list[str]:
    """Plant the bug in a copy of the project, run, mend the copy; a row of the report."""
    file = copy / bug.file
    sound = file.read_text(encoding="utf-8")
    began = time.perf_counter()
    try:
        file.write_text(bug.planted(copy), encoding="utf-8")
        caught = _first_failure(copy, ["-x", "-p", "no:nbval", *bug.where()])
        if not caught and bug.chapter:
            caught = _first_failure(copy, ["-x", f"book/{bug.chapter}.ipynb"])
    finally:
        file.write_text(sound, encoding="utf-8")
    return [bug.name, bug.file.removeprefix("nlcompanion/"), caught or "SURVIVES", f"{time.perf_counter() - began:.0f}"]


def _first_failure(copy: Path, arguments: Sequence[str]) -> str:
    """The test that failed first, what else stopped pytest, or nothing where all is green."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n0", *arguments]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    surroundings = {**os.environ, **threads, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=copy, env=surroundings, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no end within {TIMEOUT} s"
    if run.returncode == 0:
        return ""
    found = _FAILED.search(run.stdout)
    return found[1] if found else f"pytest's status {run.returncode}"


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


def main(argv: Sequence[str] | None = None) -> int:
    """Hunt the named bugs, or all; 1 if one survives, 2 if the table does not fit the code."""
    parser = argparse.ArgumentParser(prog="python -m tools.planted_bugs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs of the table, or the beginnings of their names")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--list", action="store_true", help="say what each bug is and stop")
    options = parser.parse_args(argv)
    chosen = [bug for bug in bugs() if not options.names or bug.name.startswith(tuple(options.names))]
    if options.list:
        print(
            tabulate([[bug.name, bug.file, bug.why] for bug in chosen], ("bug", "file", "why somebody might write it"))
        )
        return 0
    for bug in chosen:
        try:
            bug.planted()
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        ready = _copies(options.workers, Path(folder))

        def one(bug: Bug) -> list[str]:
            copy = ready.get()
            try:
                row = hunt(bug, copy)
            finally:
                ready.put(copy)
            print(f"{row[0]}: {row[2]} ({row[3]} s)", flush=True)
            return row

        rows = list(pool.map(one, chosen))
    survivors = [row[0] for row in rows if row[2] == "SURVIVES"]
    print(tabulate(rows, ("bug", "in", "first noticed by", "s"), tablefmt="github", disable_numparse=True))
    print(f"{len(rows)} bugs planted, {len(survivors)} survive" + (f": {', '.join(survivors)}" if survivors else ""))
    return int(bool(survivors))


if __name__ == "__main__":
    raise SystemExit(main())
