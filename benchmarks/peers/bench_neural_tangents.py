"""The tangent kernel of 64-256-256-10, traced over outputs, against neural-tangents' fastest way, compiled.

Its three implementations are tried on the smallest number of samples, and the fastest one runs from then on. Ratios are
given without its compilation, and with it, as for one kernel of one network.
"""

from __future__ import annotations

import sys

import torch
from peer import Peer, Report, compare, single_thread

import nlcompanion as nl

SIZES = (30, 100, 300)
WIDTHS = (64, 256, 256, 10)


def main() -> int:
    single_thread()
    report = Report("The tangent kernel of " + "-".join(map(str, WIDTHS)) + " traced over 10 outputs")
    model = nl.mlp(WIDTHS, "tanh")
    x = torch.randn(max(SIZES), WIDTHS[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = {f"W{k}": p.detach().numpy() for k, p in enumerate(model.parameters())}
    with Peer("with_neural_tangents") as peer:
        fastest = ""
        for size in SIZES:
            file = peer.arrays(f"{size}", x=x[:size].numpy(), **weights)
            tried = {}
            for way in [fastest] if fastest else peer("implementations"):
                name = f"{way} {size}"
                peer("make", name=name, data=file, implementation=way)
                compiled = _time(peer, name)
                tried[way] = (_time(peer, name), compiled)
            fastest = min(tried, key=lambda way: tried[way][0])
            name, compiled = f"{fastest} {size}", tried[fastest][1]
            _compare(peer, report, model, x[:size], name, compiled)
    return report.finish()


def _time(peer: Peer, name: str) -> float:
    before = peer.clock()
    peer("run", name=name)
    return peer.clock() - before


def _compare(peer: Peer, report: Report, model, x: torch.Tensor, name: str, compiled: float) -> None:
    ours = nl.ntk(model, x, output="trace")
    theirs = torch.tensor(peer("corner", name=name), dtype=torch.float64) * WIDTHS[-1]  # a mean over outputs
    apart = (ours[:3, :3] - theirs).abs().max() / ours.max()
    if not apart < 1e-10:
        raise RuntimeError(f"the kernels differ by {apart:.1e}")

    def run() -> int:
        nl.ntk(model, x, output="trace")
        return 1

    rounds = {"least": 1, "most": 5, "budget": 15.0}  # one call there takes most of a minute at 300 samples
    timings = compare(
        {"neural-tangents": lambda: peer("run", name=name), "ntk": run}, clock=peer.clock, warm=False, **rounds
    )
    print(f"{len(x)} samples: {timings}; {name}, the first call there took {compiled:.1f} s")
    last = len(x) == max(SIZES)
    label = f"{len(x)} samples: ntk / neural-tangents"
    report.add(f"{label}, compilation included", timings.median("ntk") / compiled, target=0.5 if last else None)
    report.add(f"{label}, without", timings.ratio("ntk"), target=2.0 if last else None)


if __name__ == "__main__":
    sys.exit(main())
