"""Slices of the parameters, and the generators that scale or shift them: the unknowns of an audit.

An :class:`Axis` cuts one tensor into slices; an :class:`Atom` says which slice belongs to which of ``n`` aligned
neurons (channels, heads, whole tensors). Every generator that an audit knows is a sum of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SCALE, SHIFT, SHEAR, SOURCE = "scale", "shift", "shear", "source"


@dataclass(frozen=True)
class Axis:
    """One way to cut a tensor into slices: seen in the shape ``view``, one slice per index of the axes ``keep``."""

    name: str
    view: tuple[int, ...]
    keep: tuple[int, ...]
    start: int  # of its slices among those of all axes

    def __len__(self) -> int:
        return math.prod(self.view[k] for k in self.keep)

    @property
    def rest(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.view)) if k not in self.keep)

    @property
    def weights_per_slice(self) -> int:
        return math.prod(self.view[k] for k in self.rest)

    def sums(self, x: Tensor) -> Tensor:
        """The sum over every slice, shape ``(len(self),)``."""
        x = x.reshape(self.view)
        return (x.sum(self.rest) if self.rest else x).reshape(-1)

    def rows(self, x: Tensor) -> Tensor:
        """The slices as rows, shape ``(len(self), weights per slice)``."""
        return x.reshape(self.view).permute(*self.keep, *self.rest).reshape(len(self), -1)

    def spread(self, values: Tensor) -> Tensor:
        """One value for each slice, in a shape that multiplies the tensor seen as ``view``."""
        return values.reshape([n if k in self.keep else 1 for k, n in enumerate(self.view)])

    def weights_of(self, index: np.ndarray) -> np.ndarray:
        """Which weights of the flat tensor lie in the slices ``index``."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[index.reshape(-1)] = True
        kept = chosen.reshape([n if k in self.keep else 1 for k, n in enumerate(self.view)])
        return np.broadcast_to(kept, self.view).reshape(-1)

    def unrows(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of :meth:`rows`."""
        order = (*self.keep, *self.rest)
        x = rows.reshape([self.view[k] for k in order])
        return x.permute(*(order.index(k) for k in range(len(order)))).reshape(shape)


@dataclass(frozen=True)
class Shear:
    """A bias moved through the weight behind it: column ``j`` of ``weight`` added to ``bias``."""

    bias: str
    weight: str
    transposed: bool  # a weight of shape (in, out)
    start: int
    length: int

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (out, in)."""
        return weight.T if self.transposed else weight.flatten(1)


@dataclass(frozen=True)
class SourcePlace:
    """An activation whose source is summed along one axis of its input.

    Attributes:
        call: which noticed activation of a forward pass it is.
        axis: that numbers the neurons.
        module, function: where it is called, and what.
        count: how many times that was called there before.
        start, length: of its numbers among those of all sources.
    """

    call: int
    axis: int
    module: str
    function: str
    count: int
    start: int
    length: int


@dataclass(frozen=True)
class Atom:
    """One unknown of a family of ``n`` aligned laws: what ``kind`` does to the slices ``index`` of an axis.

    ``index`` has shape ``(n, r)``: the ``r`` slices of neuron ``i`` are those of row ``i``.
    """

    kind: str
    axis: int  # which axis, shear or source
    index: np.ndarray
    role: str = ""

    @property
    def key(self) -> tuple:
        return self.kind, self.axis, self.index.shape, self.index.tobytes()


@dataclass
class Layout:
    """All axes and shears of a model's parameters."""

    axes: list[Axis]
    shears: list[Shear]
    sources: list[SourcePlace]
    shapes: dict[str, tuple[int, ...]]
    roles: dict[tuple[str, int], str]  # (tensor, axis of it) -> "in", "out" or ""
    numbers: tuple[int, ...]  # that the model's own modules carry: heads, groups, head sizes

    @property
    def count(self) -> int:
        return self.axes[-1].start + len(self.axes[-1]) if self.axes else 0

    @property
    def weights(self) -> np.ndarray:
        """How many weights each slice has, shape ``(count,)``; at least 1, also in an empty tensor."""
        return np.concatenate([np.full(len(axis), max(axis.weights_per_slice, 1)) for axis in self.axes])

    def axes_of(self, name: str) -> list[int]:
        return [k for k, axis in enumerate(self.axes) if axis.name == name]


def layout_of(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Layout:
    """Cut every parameter along each of its axes; the kernel positions of convolutions are left together."""
    owners = _owners(model)
    axes: list[Axis] = []
    shears: list[Shear] = []
    roles: dict[tuple[str, int], str] = {}
    start = 0
    for name, p in parameters.items():
        module, _ = owners[name]
        for view, keep, role in _cuts(tuple(p.shape), module):
            axis = Axis(name, view, keep, start)
            roles[name, len(axes)] = role
            axes.append(axis)
            start += len(axis)
    start = 0
    for name, p in parameters.items():
        module, _ = owners[name]
        head, dot, own = name.rpartition(".")
        bias = head + dot + own.replace("weight", "bias")
        if p.ndim < 2 or "weight" not in own or bias not in parameters:
            continue
        transposed = type(module).__name__ == "Conv1D"
        out = p.shape[1] if transposed else p.shape[0]
        if isinstance(module, nn.Embedding) or parameters[bias].shape != (out,) or _is_transposed(module):
            continue
        if getattr(module, "groups", 1) != 1:
            continue
        length = p.numel() // out
        shears.append(Shear(bias, name, transposed, start, length))
        start += length
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return Layout(axes, shears, [], shapes, roles, _numbers(model))


def _owners(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    owners = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            owners[f"{path}.{name}" if path else name] = (module, path)
    return owners


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def _cuts(shape: tuple[int, ...], module: nn.Module) -> Iterable[tuple[tuple[int, ...], tuple[int, ...], str]]:
    """``(view, kept axes, role)`` of each way to cut a tensor of this shape in this module."""
    if not shape:
        yield (1,), (0,), "out"
    elif len(shape) == 1:
        yield shape, (0,), "out"
    elif isinstance(module, nn.modules.conv._ConvNd) and len(shape) >= 3:
        groups, rest = module.groups, shape[2:]
        if groups == 1:
            first, second = ("in", "out") if _is_transposed(module) else ("out", "in")
            yield shape, (0,), first
            yield shape, (1,), second
        else:
            view = (groups, shape[0] // groups, shape[1], *rest)
            first, second = ("in", "out") if _is_transposed(module) else ("out", "in")
            yield view, (0, 1), first
            if view[1] * view[2] > 1:  # otherwise the same slices again
                yield view, (0, 2), second
    else:
        roles = {0: "out", 1: "in"} if len(shape) == 2 else {}
        if type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding):
            roles = {0: "in", 1: "out"}
        for k in range(len(shape)):
            yield shape, (k,), roles.get(k, "")


def _numbers(model: nn.Module) -> tuple[int, ...]:
    """Small whole numbers among the attributes of the modules and of their configuration."""
    found = set()
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            if holder is not None and hasattr(holder, "__dict__"):
                values = vars(holder).values()
                found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool) and 2 <= v <= 4096}
    return tuple(sorted(found))


def atoms_of(layout: Layout, kind: str, axis: int, n: int, inner: int) -> list[Atom]:
    """How the slices of one axis belong to ``n`` aligned neurons: as ``(n / inner, repeats, inner)``.

    Up to 64 repeats are unknowns of their own (chunks of a packed weight, queries that share a key, pixels of a
    channel); more are taken together.
    """
    length = len(layout.axes[axis]) if kind in (SCALE, SHIFT) else _length(layout, kind, axis)
    role = layout.roles.get((layout.axes[axis].name, axis), "") if kind in (SCALE, SHIFT) else ""
    if length % n:
        return []
    repeats = length // n
    index = np.arange(length).reshape(n // inner, repeats, inner).transpose(0, 2, 1).reshape(n, repeats)
    if kind in (SHEAR, SOURCE) and repeats > 1:
        return []
    if repeats <= 64 and n > 1:
        return [Atom(kind, axis, index[:, [k]], role) for k in range(repeats)]
    return [Atom(kind, axis, index, role)]


def _length(layout: Layout, kind: str, axis: int) -> int:
    return layout.shears[axis].length if kind == SHEAR else layout.sources[axis].length


def rows_of(axis: Axis, index: np.ndarray, x: Tensor) -> Tensor:
    """The slices of an atom as rows, shape ``(n, r * weights per slice)``."""
    n, r = index.shape
    chosen = torch.as_tensor(index.reshape(-1), device=x.device)
    if len(axis.keep) > 1:
        return axis.rows(x)[chosen].reshape(n, r * axis.weights_per_slice)
    (kept,) = axis.keep
    return x.reshape(axis.view).index_select(kept, chosen).movedim(kept, 0).reshape(n, r * axis.weights_per_slice)
