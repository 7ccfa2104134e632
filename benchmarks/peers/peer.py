"""Another package's process, asked for one thing at a time, and a clock over both processes.

While one of the two works the other waits, and a process that waits spends no processor time: the sum of both clocks is
the time of whoever worked. So the rounds of ``compare`` hold for tasks in either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from _timing import Report, compare, single_thread  # noqa: E402
from environment import PYTHON  # noqa: E402

__all__ = ["HERE", "ONE_THREAD", "Peer", "Report", "compare", "single_thread"]

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_ENABLE_X64": "true",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
}


class Peer:
    """The functions of a module of this folder, in the peers' environment."""

    def __init__(self, module: str):
        if not PYTHON.exists():
            raise SystemExit("the peers are not installed; run `make bench-peers`, or benchmarks/peers/environment.py")
        command = [PYTHON, HERE / "worker.py", module]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}
        )
        self.folder = tempfile.TemporaryDirectory()

    def __call__(self, function: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([function, arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with status {self.process.wait()} in {function}; its error is above")
        return json.loads(line)

    def clock(self) -> float:
        return time.process_time() + self("process_time")

    def arrays(self, name: str, **arrays: np.ndarray) -> str:
        """A file with arrays for the peer, which reads it with numpy.load."""
        path = Path(self.folder.name) / f"{name}.npz"
        np.savez(path, **arrays)
        return str(path)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()
