"""The tests and notebooks again, in the arithmetic of other processors on this machine.

``python -m tools.elsewhere [NAME ...] [-- PYTEST ARGUMENTS]``. Every arithmetic is a set of environment variables that
PyTorch, MKL, oneDNN and OpenBLAS read when they start; each runs in a process of its own. What comes out differently
somewhere rests on the last bits of one processor. At the end stands a table: what was in force, the verdict, the time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# a processor whose PyTorch has no kernels for AVX-512 has no AMX either; PyTorch would pack half precision for it
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Haswell",
}


@dataclass(frozen=True)
class Arithmetic:
    """What to set, the instructions that the processor must have for it, and the threads of each process."""

    variables: Mapping[str, str]
    needs: str = ""
    threads: int = 1


ARITHMETICS = {
    "aten-default": Arithmetic({"ATEN_CPU_CAPABILITY": "default", **NO_AMX}),
    "aten-avx2": Arithmetic({"ATEN_CPU_CAPABILITY": "avx2", **NO_AMX}, needs="avx2"),
    "mkl-compatible": Arithmetic({"MKL_CBWR": "COMPATIBLE"}),
    "mkl-avx2": Arithmetic({"MKL_CBWR": "AVX2"}, needs="avx2"),
    "onednn-sse41": Arithmetic({"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "openblas-haswell": Arithmetic({"OPENBLAS_CORETYPE": "Haswell"}, needs="avx2"),
    "openblas-skylakex": Arithmetic({"OPENBLAS_CORETYPE": "SkylakeX"}, needs="avx512f"),
    "two-threads": Arithmetic({}, threads=2),
    "hash-seed-1": Arithmetic({"PYTHONHASHSEED": "1"}),
    "hash-seed-2": Arithmetic({"PYTHONHASHSEED": "2"}),
    "oldest": Arithmetic(OLDEST, needs="avx2"),  # all of the old ones at once: what continuous integration runs
}

_PROBE = """
import hashlib, json, torch, numpy, scipy.linalg, threadpoolctl
random = torch.Generator().manual_seed(0)
matrix = torch.randn(57, 91, generator=random, dtype=torch.float64)
image, kernel = torch.randn(2, 3, 8, 8, generator=random), torch.randn(4, 3, 3, 3, generator=random)
results = [matrix @ matrix.T, matrix.exp().sum(0), torch.nn.functional.conv2d(image, kernel)]
results.append(torch.from_numpy(matrix.numpy() @ matrix.numpy().T))
results.append(torch.from_numpy(scipy.linalg.expm(matrix.numpy()[:50, :50])))
bits = hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()[:8]
pools = threadpoolctl.threadpool_info()
blas = sorted({pool["architecture"] for pool in pools if pool["internal_api"] == "openblas"})
capability = torch.backends.cpu.get_cpu_capability().lower()
print(json.dumps([capability, "/".join(blas), torch.get_num_threads(), bits]))
"""


def environment(arithmetic: Arithmetic) -> dict[str, str]:
    """This process's environment with the arithmetic's variables and threads."""
    threads = dict.fromkeys((*THREADS, "NLCOMPANION_TEST_THREADS"), str(arithmetic.threads))
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if arithmetic.threads > 1:
        path.insert(0, str(ROOT / "tools" / "two_threads"))  # its sitecustomize.py keeps notebooks from choosing one
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path), **arithmetic.variables}


def in_force(arithmetic: Arithmetic) -> dict[str, object]:
    """What a fresh process computes with: kernels of PyTorch and OpenBLAS, threads, and the bits of five results."""
    run = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment(arithmetic), capture_output=True, text=True, check=True
    )
    return dict(zip(("aten", "openblas", "threads", "bits"), json.loads(run.stdout), strict=True))


def missing(arithmetic: Arithmetic) -> str:
    """The instructions that this processor lacks for it; empty where it can run, or where nobody can tell."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return arithmetic.needs if f" {arithmetic.needs}" not in flags else ""


def run(name: str, arguments: Sequence[str]) -> list[object]:
    """One row of the table: name, what was in force, verdict, minutes."""
    arithmetic = ARITHMETICS[name]
    if lacking := missing(arithmetic):
        return [name, "", "", f"skipped: this processor has no {lacking}", ""]
    found = in_force(arithmetic)
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    if arithmetic.threads > 1:  # threads that share their core with another process wait for each other
        command += ["-n", str(max(1, (os.cpu_count() or 1) // arithmetic.threads))]
    status = subprocess.run(command, cwd=ROOT, env=environment(arithmetic)).returncode
    verdict = "green" if status == 0 else f"FAILED (pytest's status {status})"
    computed = f"{found['aten']}, {found['openblas']}, {found['threads']} thread(s)"
    return [name, computed, found["bits"], verdict, f"{(time.perf_counter() - began) / 60:.1f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named arithmetics, or all but the combined one; 1 if one of them is not green."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tools.elsewhere", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ARITHMETICS)}; all but 'oldest'")
    names = parser.parse_args(words[:split]).names or [name for name in ARITHMETICS if name != "oldest"]
    if unknown := [name for name in names if name not in ARITHMETICS]:
        parser.error(f"no such arithmetic: {', '.join(unknown)}; there are {', '.join(ARITHMETICS)}")
    rows = []
    for name in names:
        print(f"== {name}", flush=True)
        rows.append(run(name, words[split + 1 :]))
    header = ("arithmetic", "PyTorch's kernels, OpenBLAS's, threads", "bits", "verdict", "minutes")
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))
    return int(any("FAILED" in row[3] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
