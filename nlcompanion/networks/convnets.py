"""Convolutional networks with BatchNorm (private; public as ``nlcompanion.networks.vgg11`` and ``conv_bn``)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import nn

from nlcompanion._arguments import check_size, described, integer, real_number, seed_number

# VGG's configuration A: the channels of its eight convolutions, None for a pool
_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)
_SIZES = (8, 64)
_LARGEST = 2**24
# In train mode torch refuses eps = 0. These vanish beside any variance above 1e-22 (1e-284): the sum has its bits.
_NO_EPS = {torch.float64: 1e-300, torch.float32: 1e-30}


def vgg11(
    classes: int = 200,
    *,
    in_channels: int = 3,
    size: int = 64,
    width: float = 1.0,
    eps: float = 1e-5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    r"""VGG-11 with BatchNorm between each convolution and its ReLU: the network of TK's experiments.

    Eight 3 x 3 convolutions without bias and up to five 2 x 2 max pools. The pools halve the image from 64 to 2 pixels;
    for a smaller image, those that would leave less than one pixel are left out (the last two of five at ``size=8``).
    The paper does not say what follows the convolutions. Here the average over all pixels and one linear layer do:
    9.3 million parameters at 200 classes, where VGG's own three layers would hold ten times as many, none of them
    scale-invariant.

    Args:
        classes: number of outputs.
        in_channels: 3 for colour, 1 for grey images.
        size: side of the square images in pixels, 8 to 64.
        width: factor on the 64 to 512 channels, rounded.
        eps: BatchNorm's, added to a variance. With 0 a filter's scale drops out of the outputs exactly; it is carried
            out as 1e-30 (1e-300 in float64), since torch refuses 0, and the outputs are the same to the last bit.
        seed: of the initialisation (torch's default for each layer); the global random state stays untouched. The same
            numbers are drawn in every precision.
        dtype: float32 for training; float64 to check a law.

    Returns:
        ``nn.Sequential`` with layers ``conv1``, ``bn1``, ``relu1``, ``pool1``, ... and ``head``: images
        (N, in_channels, size, size) to logits (N, classes).

    Raises:
        ValueError: sizes that are impossible or out of range.

    Source: TK Section 4 and SI E; Simonyan and Zisserman (2015), configuration A.

    Example:
        >>> import torch
        >>> model = vgg11(10, size=16, width=0.25)
        >>> [tuple(p.shape) for name, p in model.named_parameters() if name.startswith("conv")][:2]
        [(16, 3, 3, 3), (32, 16, 3, 3)]
        >>> model(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    size, width = _whole_number(size, "size", "the side of the images in pixels"), real_number("width", width)
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ValueError(
            f"vgg11 is for images of {_SIZES[0]} to {_SIZES[1]} pixels a side, got size={size}; resize them"
        )
    if not (math.isfinite(width) and round(_VGG11[0] * width) >= 1):
        raise ValueError(
            f"width={width:g} leaves no channel of the first layer's {_VGG11[0]}; take {1 / _VGG11[0]:g} or more"
        )
    plan = [None if channels is None else round(channels * width) for channels in _VGG11]
    return _blocks(plan, classes, in_channels, size, eps, seed, dtype)


def conv_bn(
    channels: Sequence[int] = (8, 16, 16),
    classes: int = 10,
    *,
    in_channels: int = 1,
    size: int = 8,
    eps: float = 1e-5,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    r"""A small network of VGG's kind: 3 x 3 convolutions, each followed by BatchNorm and ReLU.

    A 2 x 2 max pool lies between two convolutions as long as it leaves a pixel; at the end, the average over all pixels
    and one linear layer. Every filter is scale-invariant, as in :func:`vgg11`, and a step on 64 digits takes 2 ms.

    Args:
        channels: of each convolution.
        classes: number of outputs.
        in_channels: 1 for grey, 3 for colour images.
        size: side of the square images in pixels.
        eps, seed, dtype: as in :func:`vgg11`.

    Returns:
        ``nn.Sequential`` with layers ``conv1``, ``bn1``, ``relu1``, ``pool1``, ... and ``head``.

    Raises:
        ValueError: sizes that are impossible.

    Example:
        >>> import torch
        >>> model = conv_bn()
        >>> sum(p.numel() for p in model.parameters())
        3778
        >>> filters = model.conv1.weight  # a filter's scale drops out
        >>> x, exact = torch.randn(32, 1, 8, 8, generator=torch.manual_seed(0)), conv_bn(eps=0)
        >>> before = exact(x)
        >>> _ = exact.conv1.weight.data.mul_(2)
        >>> torch.equal(exact(x), before)
        True
    """
    if isinstance(channels, str | bytes) or not isinstance(channels, Sequence) or not channels:
        raise ValueError(f"channels has one number per convolution, like (8, 16, 16), got {channels!r}")
    plan: list[int | None] = []
    for count in channels:
        plan += [_whole_number(count, "channels", "of each convolution"), None]
    return _blocks(plan[:-1], classes, in_channels, _whole_number(size, "size", "in pixels"), eps, seed, dtype)


def _whole_number(value: int, name: str, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is an integer >= 1, {what}, got {described(value)}")
    return integer(name, value, 1, _LARGEST)


def _blocks(
    plan: Sequence[int | None], classes: int, in_channels: int, size: int, eps: float, seed: int, dtype: torch.dtype
) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU for each number in the plan, a pool for each None that has two pixels to pool."""
    classes = _whole_number(classes, "classes", "the number of outputs")
    before = _whole_number(in_channels, "in_channels", "1 for grey and 3 for colour images")
    if not isinstance(dtype, torch.dtype) or dtype not in _NO_EPS:
        got = dtype if isinstance(dtype, torch.dtype) else described(dtype)
        raise ValueError(f"dtype is torch.float32 or torch.float64, got {got}; for bfloat16 products use autocast")
    eps = real_number("eps", eps)
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps is added to a variance: a number >= 0, got {eps!r}")
    seed = seed_number("seed", seed)
    counts = [in_channels, *(count for count in plan if count), classes]
    check_size(9 * max(a * b for a, b in pairwise(counts)), f"a network of {max(counts)} channels or classes")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        depth = 0
        for channels in plan:
            if channels is None:
                if size >= 2:
                    layers[f"pool{depth}"] = nn.MaxPool2d(2)
                    size //= 2
                continue
            depth += 1
            # drawn in float64 and rounded afterwards, so that every precision starts from the same network
            layers[f"conv{depth}"] = nn.Conv2d(before, channels, 3, padding=1, bias=False, dtype=torch.float64)
            layers[f"bn{depth}"] = nn.BatchNorm2d(channels, eps=eps or _NO_EPS[dtype])
            layers[f"relu{depth}"] = nn.ReLU()
            before = channels
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(before, classes, dtype=torch.float64)
    return nn.Sequential(layers).to(dtype)
