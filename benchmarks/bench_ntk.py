"""The tangent kernel of 100, 300 and 1,000 samples: how its time grows, and what working in chunks costs.

The baseline is the kernel in two lines, the whole Jacobian by `vmap(jacrev(...))` and one product, for which everything
must fit into memory at once. `ntk` gets the same memory first, then a tenth of it: then it must form most rows of the
Jacobian more than once. The network has 784-100-1 and 78,500 parameters, the Jacobian of 1,000 samples 628 MB.
"""

from __future__ import annotations

import sys

import torch
from _timing import Report, compare, single_thread
from torch.func import jacrev, vmap

import nlcompanion as nl

SIZES = (100, 300, 1000)


def main() -> int:
    single_thread()
    f = nl.flat_loss(
        nl.mlp((784, 100, 1), "tanh"), torch.zeros(1, 784), torch.zeros(1, 1), torch.nn.functional.mse_loss
    )
    inputs = torch.randn(max(SIZES), 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = vmap(jacrev(lambda q, x: f.outputs(q, x[None]).reshape(-1)), (None, 0))
    report = Report(f"The tangent kernel of {len(f)} parameters, one output")
    seconds = {}
    for size in SIZES:
        x, whole = inputs[:size], 6 * 8 * len(f) * size
        kernels = {}

        def plain(x=x, kernels=kernels) -> int:
            J = rows(f.q0, x)[:, 0]
            kernels["plain"] = J @ J.T
            return 1

        def ample(x=x, kernels=kernels, whole=whole) -> int:
            kernels["ample"] = nl.ntk(f, x, output=0, max_memory=2 * whole)
            return 1

        def tight(x=x, kernels=kernels, whole=whole) -> int:
            kernels["tight"] = nl.ntk(f, x, output=0, max_memory=8 * len(x) ** 2 + whole // 10)
            return 1

        timings = compare(
            {"plain": plain, "ntk": ample, "ntk in a tenth of the memory": tight}, least=2, most=4, budget=4.0
        )
        apart = max((kernels[name] - kernels["plain"]).abs().max() for name in ("ample", "tight"))
        if not apart < 1e-10 * kernels["plain"].abs().max():
            raise RuntimeError(f"the kernels of {size} samples differ by {apart:.1e}")
        seconds[size] = timings.median("ntk")
        print(f"{size} samples: {timings}; {1e6 * seconds[size] / size**2:.3g} µs per entry")
        report.add(f"{size} samples: ntk / whole Jacobian and product", timings.ratio("ntk"))
        report.add(
            f"{size} samples: the same with a tenth of the memory", timings.ratio("ntk in a tenth of the memory")
        )
    for small, large in ((100, 300), (300, 1000)):
        report.add(f"ntk of {large} samples / ntk of {small}", seconds[large] / seconds[small])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
