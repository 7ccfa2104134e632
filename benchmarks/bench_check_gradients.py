"""What it costs to hold a backward pass against its laws: the check's own time over that of the pass it checks.

The pass has run already, and its tensors are there; what is timed is `check_recorded`, in float32 on one thread.

A norm's backward pass is one walk over memory, which reads two tensors and writes one. Its laws read four, so that no
check costs less than adding up those four, which is timed beside it. What is left is some twenty calls of PyTorch for
the sums and the floors, each of which goes through the numbers once more. Beside the linear maps of a wide block it is
little.
"""

from __future__ import annotations

import sys

import torch
from _timing import Report, compare, single_thread
from torch import nn
from torch.nn import functional as F

from nlcompanion import check_gradients, check_recorded

ATTENTION = {512: (1, 4, 64), 1024: (1, 4, 64), 2048: (1, 2, 64)}  # length: batch, heads, width of a head
LINEAR = {256: 512, 512: 1024, 1024: 2048}  # width: rows
BLOCK = {128: 1024, 256: 1024, 512: 512}  # width: rows
NORM = {256: 4096, 1024: 4096, 4096: 1024}
LIMIT = 2.0
BACKWARD, CHECK, READING = "backward", "check", "reading"


def attention(length: int, sizes: tuple[int, int, int]):
    batch, heads, width = sizes
    g = torch.Generator().manual_seed(0)
    q, k, v, dy = torch.randn(4, batch, heads, length, width, generator=g).unbind()
    values = {role: t.requires_grad_() for role, t in zip("qkv", (q, k, v), strict=True)}
    return "attention", values, F.scaled_dot_product_attention(q, k, v), dy


def linear(width: int, rows: int):
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, rows, width, generator=g).unbind()
    w = torch.randn(width, width, generator=g) / width**0.5
    return "linear", {"x": x.requires_grad_(), "weight": w.requires_grad_()}, x @ w.T, dy


def norm(width: int, rows: int):
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, rows, width, generator=g).unbind()
    values = {"x": x.requires_grad_(), "weight": torch.ones(width).requires_grad_()}
    values["bias"] = torch.zeros(width).requires_grad_()
    return "norm", values, F.layer_norm(x, (width,), values["weight"], values["bias"]), dy


def ratio(name: str, case) -> tuple[float, float]:
    """The check, and one bare sum of each large tensor that it reads, over the backward pass."""
    kind, values, y, dy = case
    leaves = list(values.values())

    def backward() -> int:
        torch.autograd.grad(y, leaves, dy, retain_graph=True)
        return 1

    found = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    gradients = dict(zip(values, found, strict=True)) | {"y": dy}

    def check() -> int:
        report = check_recorded(kind, values | {"y": y}, gradients)
        assert report.verdict == "lawful"  # a fast check that sees nothing would be none
        return 1

    large = [values["x"].detach(), y.detach(), gradients["x"], dy] if "x" in values else []

    def reading() -> int:
        for tensor in large:
            tensor.sum()
        return 1

    timings = compare({BACKWARD: backward, CHECK: check, READING: reading}, least=7, budget=4.0)
    print(f"{name}: {timings}")
    return timings.ratio(CHECK), timings.ratio(READING)


def block_ratio(width: int, rows: int) -> float:
    """A norm and two linear layers with a ReLU between: what the check adds, over the pass forward and backward."""
    torch.manual_seed(0)
    layers = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
    model, x = nn.Sequential(*layers), torch.randn(rows, width)
    dy = torch.randn(rows, width)

    def training_pass() -> int:
        torch.autograd.grad(model(x), list(model.parameters()), dy)
        return 1

    def checked() -> int:
        assert check_gradients(model, x, grad_output=dy).verdict == "lawful"
        return 1

    timings = compare({BACKWARD: training_pass, CHECK: checked}, least=7, budget=4.0)
    print(f"block, {width}: {timings}")
    return timings.ratio(CHECK) - 1


def main() -> int:
    single_thread()
    # a process that has trained has freed large tensors, after which glibc keeps memory of this size for the next ones;
    # in a fresh one every temporary tensor is memory that the system must map, which measures the system
    torch.empty(6 << 20)
    report = Report("Laws of a backward pass, on tensors that are there: check / backward pass")
    for make, sizes in ((attention, ATTENTION), (linear, LINEAR), (norm, NORM)):
        for size, rest in sizes.items():
            name = f"{make.__name__}, {size}"
            checked, read = ratio(name, make(size, rest))
            report.add(name, checked, target=LIMIT)
            if make is norm:
                report.add(f"{name}: its four tensors added up once", read)
    for width, rows in BLOCK.items():
        report.add(f"block, {width}: added to forward and backward", block_ratio(width, rows), target=LIMIT)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
