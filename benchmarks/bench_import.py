"""`import nlcompanion` against `import numpy`, in fresh interpreters, and what the first use of a name adds.

Times are of the processor, from the start of the interpreter to its end; on the wall on systems (Windows) that do not
tell what a child process took.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _timing import Report, Timings, compare

try:
    import resource
except ImportError:
    children = time.perf_counter
else:

    def children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


def fresh(*statements: str, **rounds) -> Timings:
    def task(statement: str):
        def run() -> int:
            subprocess.run([sys.executable, "-c", statement], check=True)
            return 1

        return run

    timings = compare({statement: task(statement) for statement in statements}, clock=children, **rounds)
    print(timings)
    return timings


def main() -> int:
    report = Report("Imports in fresh interpreters")
    heavy = ("import torch, scipy.integrate", "from nlcompanion import integrate")
    report.add(" / ".join(reversed(heavy)), fresh(*heavy, least=3, most=3).ratio(heavy[1]))
    light = ("import numpy", "import nlcompanion", "from nlcompanion.book import claim", "pass")
    timings = fresh(*light, least=11, most=25)
    report.add(f"{light[2]} / {light[0]}", timings.ratio(light[2]))
    report.add(f"{light[1]} / {light[0]}", timings.ratio(light[1]), target=1.2)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
