"""The tangent kernel of 100, 300, 1,000 and more samples: by layers, and by rows of the Jacobian.

The baseline is the kernel in two lines, the whole Jacobian by `vmap(jacrev(...))` and one product, for which everything
must fit into memory at once. `ntk` takes the layers' inputs and slopes instead. By rows it gets the memory of the
baseline first, then a tenth of it: then it must form most rows of the Jacobian more than once. The network has
784-100-1 and 78,500 parameters, the Jacobian of 1,000 samples 628 MB; no Jacobian is formed of 3,000 samples.
"""

from __future__ import annotations

import sys

import torch
from _timing import Report, compare, single_thread
from torch.func import jacrev, vmap

import nlcompanion as nl

SIZES = (100, 300, 1000)
BEYOND = 3000


def main() -> int:
    single_thread()
    f = nl.flat_loss(
        nl.mlp((784, 100, 1), "tanh"), torch.zeros(1, 784), torch.zeros(1, 1), torch.nn.functional.mse_loss
    )
    inputs = torch.randn(BEYOND, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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

        def by_layers(x=x, kernels=kernels) -> int:
            kernels["layers"] = nl.ntk(f, x, output=0)
            return 1

        def ample(x=x, kernels=kernels, whole=whole) -> int:
            kernels["ample"] = nl.ntk(f, x, output=0, max_memory=2 * whole, method="jacobian")
            return 1

        def tight(x=x, kernels=kernels, whole=whole) -> int:
            memory = 8 * len(x) ** 2 + whole // 10
            kernels["tight"] = nl.ntk(f, x, output=0, max_memory=memory, method="jacobian")
            return 1

        timings = compare(
            {"plain": plain, "ntk": by_layers, "by rows": ample, "rows in a tenth": tight},
            least=2,
            most=4,
            budget=4.0,
        )
        apart = max((kernels[name] - kernels["plain"]).abs().max() for name in ("layers", "ample", "tight"))
        if not apart < 1e-10 * kernels["plain"].abs().max():
            raise RuntimeError(f"the kernels of {size} samples differ by {apart:.1e}")
        seconds[size] = timings.median("ntk")
        print(f"{size} samples: {timings}; {1e6 * seconds[size] / size**2:.3g} µs per entry")
        report.add(f"{size} samples: ntk / whole Jacobian and product", timings.ratio("ntk"))
        report.add(f"{size} samples: by rows of the Jacobian", timings.ratio("by rows"))
        report.add(f"{size} samples: the same with a tenth of the memory", timings.ratio("rows in a tenth"))
    beyond = compare({"ntk": lambda: len([nl.ntk(f, inputs, output=0)])}, least=2, most=3, budget=4.0)
    print(f"{BEYOND} samples: {beyond}")
    seconds[BEYOND] = beyond.median("ntk")
    for small, large in ((100, 300), (300, 1000), (1000, BEYOND)):
        report.add(f"ntk of {large} samples / ntk of {small}", seconds[large] / seconds[small])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
