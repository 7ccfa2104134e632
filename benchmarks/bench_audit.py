"""What an audit costs against the size of the model: transformers of 10^5 to 10^8 parameters.

Every size is a run in a process of its own, so that its peak of memory is its own. Give the sizes as arguments:
``python benchmarks/bench_audit.py 1e5 1e7``; without any 10^5 and 10^6 are run.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch
from torch import nn

import nlcompanion as nl

SIZES = {"1e5": (48, 3, 4, 100), "1e6": (128, 4, 4, 600), "1e7": (384, 5, 6, 1500), "1e8": (768, 12, 12, 10_000)}
LENGTH, SAMPLES = 12, 4


class Transformer(nn.Module):
    """Embedding, positions, pre-norm blocks with GELU, a norm, and an untied classifier of the next token."""

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, activation="gelu", norm_first=True, dropout=0.0, batch_first=True
        )
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions)))


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def run(size: str) -> None:
    torch.manual_seed(0)
    width, layers, heads, vocabulary = SIZES[size]
    model = Transformer(width, layers, heads, vocabulary)
    tokens = torch.randint(vocabulary, (SAMPLES, LENGTH))
    began = time.perf_counter()
    found = nl.audit(model, tokens, tokens.roll(-1, 1), loss)
    seconds, processor = time.perf_counter() - began, time.process_time()
    kinds = {line.kind for line in found.lines}
    needed = {"source", "query-key", "value-output", "rescaling", "scale", "shift", "logit shift", "dead", "shear"}
    count = sum(p.numel() for p in model.parameters())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{count:>12,} parameters  {seconds:7.1f} s  {processor:7.1f} s of processor  {memory:5.2f} GiB  "
        f"{found.count:,} functions in {len(found.lines)} families, missing: {', '.join(needed - kinds) or 'none'}",
        flush=True,
    )
    for limit in found.limits:
        print(f"             {limit}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        run(sys.argv[2])
        return
    for size in sys.argv[1:] or ["1e5", "1e6"]:
        subprocess.run([sys.executable, __file__, "--one", size], check=True)


if __name__ == "__main__":
    main()
