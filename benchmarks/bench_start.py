"""What one waits for before anything happens: help, the first epoch of a run on digits, an import.

Each runs in a fresh interpreter beside the bare script that one would write instead: an argparse parser, and a PyTorch
loop on scikit-learn's digits with the same network, batches and number of epochs. Processor time, start to end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from _timing import Report, compare
from bench_import import children

HELP = """
import argparse
parser = argparse.ArgumentParser()
commands = parser.add_subparsers()
for name in ("train", "sweep", "check"):
    commands.add_parser(name)
parser.print_help()
"""
LOOP = """
import sys
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
torch.set_num_threads(1)
raw = load_digits()
x, y = torch.tensor(raw.images[:1438, None] / 16, dtype=torch.float32), torch.tensor(raw.target[:1438])
channels, layers = (1, 8, 16, 16), []
for k, (into, out) in enumerate(zip(channels, channels[1:])):
    layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    layers += [nn.MaxPool2d(2)] if k < 2 else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 10)]
model = nn.Sequential(*layers)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
for epoch in range(int(sys.argv[1])):
    for batch in torch.randperm(len(x)).split(128)[:-1]:
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
model.eval()
print((model(x).argmax(1) == y).float().mean().item())
"""
EPOCHS = (1, 3, 10)


def fresh(report: Report, label: str, bare: list[str], ours: list[str], **rounds) -> None:
    def task(arguments: list[str], folder: bool = False):
        def run() -> int:
            with tempfile.TemporaryDirectory() as runs:
                where = ["--folder", runs] if folder else []
                command = [sys.executable, *arguments, *where]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return 1

        return run

    timings = compare({"bare": task(bare), "ours": task(ours, folder="train" in ours)}, clock=children, **rounds)
    print(f"{label}: {timings}")
    report.add(f"{label} / a bare script", timings.ratio("ours"))


def main() -> int:
    report = Report("From nothing to the first result, in fresh interpreters")
    fresh(report, "python -m nlcompanion --help", ["-c", HELP], ["-m", "nlcompanion", "--help"], least=7, most=15)
    fresh(report, "import nlcompanion", ["-c", "pass"], ["-c", "import nlcompanion"], least=7, most=15)
    for epochs in EPOCHS:
        train = ["-m", "nlcompanion", "train", "--epochs", f"{epochs}"]
        fresh(
            report,
            f"train on digits, {epochs} epoch(s)",
            ["-c", LOOP, f"{epochs}"],
            train,
            least=3,
            most=5,
            budget=30.0,
        )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
