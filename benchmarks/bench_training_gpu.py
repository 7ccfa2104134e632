"""Training VGG-11 with BatchNorm on a GPU: images a second, against what the card's matrix products allow.

Whole steps of `train` as it takes them: batches gathered from bytes on the device, bfloat16 products, torch's SGD, all
replayed as one CUDA graph, with the network as torch runs it and as torch.compile fuses it. The images are noise. The
card's own speed is that of a large bfloat16 product. Without a GPU this says so and ends.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from _timing import Report
from torch import nn

from nlcompanion.datasets import Dataset
from nlcompanion.networks import vgg11
from nlcompanion.training.arithmetic import in_precision
from nlcompanion.training.batches import Batches
from nlcompanion.training.config import TrainConfig
from nlcompanion.training.step import Stepper

SIDE, CLASSES, IMAGES = 64, 200, 20_000
PRODUCT = 8192  # side of the matrices whose product shows the card's peak
TARGET = 0.35  # of that peak; a ratio in the report is peak / reached, so at most 1 / TARGET


def operations(model: nn.Module, side: int = SIDE) -> float:
    """Multiplications and additions for one training image: forward, and twice as many backward, the input's own
    gradient left out, which nobody needs."""
    counts = []

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        weight = module.weight
        pixels = output[0, 0].numel() if output.ndim == 4 else 1
        counts.append(2.0 * weight.numel() * pixels)

    products = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in products]
    model(torch.zeros(2, products[0].in_channels, side, side))
    for hook in hooks:
        hook.remove()
    return 3 * sum(counts) - counts[0]


def seconds(run: Callable[[], object], least: float = 1.0, rounds: int = 5) -> float:
    """Of one call, by the device's own clock: the median over rounds, each of the same number of calls."""
    run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    torch.cuda.synchronize()
    count = max(3, int(least / rounds / (time.perf_counter() - begin)))
    found = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(count):
            run()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) / 1000 / count)
    return statistics.median(found)


def peak() -> float:
    """Operations a second of a large bfloat16 product."""
    a, b = torch.randn(2, PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    return 2.0 * PRODUCT**3 / seconds(lambda: torch.mm(a, b, out=out))


def stepper(batch: int, compiled: bool, count: int = IMAGES, device_name: str = "cuda", **settings) -> Stepper:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    data = Dataset("noise", images, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))
    config = TrainConfig(
        dataset="custom", model="vgg11", batch_size=batch, device=device_name, precision="bf16", lr=0.01, **settings
    )
    device = torch.device(device_name)
    model = vgg11(CLASSES, size=SIDE).to(device, memory_format=torch.channels_last).train()
    found = Stepper(model, Batches(data, config, device, torch.float32), config, device, stride=1)
    if compiled:
        found.compile()
    found.start_epoch(0)
    return found


def step(made: Stepper) -> Callable[[], None]:
    """One of its steps, the epoch's first each time: the places for losses end with the epoch."""

    def run() -> None:
        made.rewind()
        made(record=False)

    return run


def kernels(run: Callable[[], object], calls: int = 20) -> dict[str, float]:
    """Microseconds of each kernel in one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.device_time / calls
    return dict(spent.most_common())


KINDS = {
    "products": ("gemm", "conv", "xmma", "cutlass", "wgrad", "dgrad", "fprop", "cudnn", "sm90", "sm80"),
    "optimiser": ("sgd", "multi_tensor"),
    "BatchNorm": ("batch_norm", "bn_"),
    "pool": ("max_pool",),
    "fused": ("triton",),
}


def kinds(spent: dict[str, float]) -> dict[str, float]:
    """The same by what the kernels do, as far as their names tell."""
    split: Counter[str] = Counter()
    for name, time_ in spent.items():
        low = name.lower()
        order = ("fused", "optimiser", "BatchNorm", "pool", "products")
        kind = next((kind for kind in order if any(part in low for part in KINDS[kind])), "other")
        split[kind] += time_
    return {kind: round(time_, 1) for kind, time_ in split.most_common()}


VARIANTS = {
    "plain": (128, False, {}),
    "compiled": (128, True, {}),
    "compiled, augmented": (128, True, {"augment": True}),
    "compiled, constrained": (128, True, {"constrain_norm": True}),
    "compiled, batch 512": (512, True, {}),
}


def main(names: list[str] | None = None, store: str | None = None) -> int:
    if not torch.cuda.is_available():
        print("Training on a GPU: there is none here, nothing was measured")
        return 0
    report = Report("Training VGG-11 with BatchNorm on 64 x 64 images, on a GPU")
    flops, top = operations(vgg11(CLASSES, size=SIDE)), peak()
    print(
        f"{torch.cuda.get_device_name()}: {top / 1e12:.0f} TFLOP/s in a bf16 product; {flops / 1e9:.2f} GFLOP an image"
    )
    found: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "peak": top, "flop": flops}
    with in_precision("bf16"):
        for name in names or VARIANTS:
            batch, compiled, settings = VARIANTS[name]
            begin = time.perf_counter()
            made = stepper(batch, compiled, **settings)
            made.capture()
            ready = time.perf_counter() - begin
            each = seconds(step(made))
            split = kernels(step(made))
            share = batch * flops / each / top
            print(
                f"{name}: {each * 1e3:.3f} ms a step, {batch / each:,.0f} images/s, {share:.3f} of the peak; "
                f"ready after {ready:.0f} s\n    microseconds by kind: {kinds(split)}"
            )
            for kernel, spent in list(split.items())[:14]:
                print(f"    {spent:8.1f}  {kernel[:110]}", flush=True)
            found[name] = {"batch": batch, "seconds": each, "share": share, "ready": ready, "kernels": split}
            report.add(f"{name}: matrix-product peak / training", 1 / share, target=1 / TARGET if compiled else None)
            if store:
                with open(store, "w", encoding="utf-8") as file:
                    json.dump(found, file)
            del made
            torch.cuda.empty_cache()
    top_again = peak()
    print(f"the bf16 product again: {top_again / 1e12:.0f} TFLOP/s")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], sys.argv[1] if len(sys.argv) > 1 else None))
