"""Sweeps that are killed again and again, in a process of its own: python tests/training/killing.py FOLDER KILLS SEED.

torch is imported once and every attempt is a fork, so that a kill meets training rather than imports. A sweep is taken
up again until it ends; then the next one begins, in a new folder, until there were KILLS kills. Prints the names of
the folders, and how many results and checkpoints each kill found, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from nlcompanion import TrainConfig, sweep

CONFIGS = [
    TrainConfig(lr=lr, seed=seed, epochs=12, subset=128, batch_size=32, momentum=0.5)
    for lr in (0.05, 0.2, 1e18)  # the last diverges
    for seed in (0, 1)
]


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    sweep(CONFIGS[:1], folder / "undisturbed")  # the first run imports
    begin = time.perf_counter()
    sweep(CONFIGS, folder / "undisturbed")
    duration = time.perf_counter() - begin
    found, names = [], []
    while len(found) < kills:
        runs = folder / f"disturbed-{len(names)}"
        names.append(runs.name)
        while attempt(runs, 0.8 * draw.random() * duration if len(found) < kills else None):
            found.append([len(list(runs.glob(pattern))) for pattern in ("*.json", "checkpoints/*.pt")])
    print(json.dumps({"folders": names, "found": found}))


def attempt(runs: Path, delay: float | None) -> bool:
    """Sweep, and whether it was killed on the way."""
    child = os.fork()
    if child == 0:
        sweep(CONFIGS, runs)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code > 0:
        raise SystemExit(f"the sweep ended with {code}")
    return code < 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
