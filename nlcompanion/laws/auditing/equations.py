r"""Equations that every symmetry must satisfy: what gradients at random places say of each slice.

For a slice :math:`\theta_S` the numbers are :math:`\sum_S g\theta` (scale), :math:`\sum_S g` (shift), for a bias
:math:`b` and the weight :math:`W` beside it :math:`W^T g_b` (shear), and for an activation
:math:`\sum\delta\,(z s'(z) - s(z))` (source). A generator is a symmetry if its numbers add up to 0 at every place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nlcompanion.laws.auditing.double_copy import STRETCH, DoubleCopy
from nlcompanion.laws.auditing.double_precision import Activation
from nlcompanion.laws.auditing.slices import SCALE, SHEAR, SHIFT, SOURCE, Atom, Layout, SourcePlace


@dataclass
class Equations:
    """``values[kind]`` of shape (draws, slices), and ``sizes[kind]``: the same sums of absolute values."""

    layout: Layout
    values: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]

    @property
    def draws(self) -> int:
        return len(self.values[SCALE])

    def column(self, atom: Atom, which: str = "values") -> np.ndarray:
        """What the draws say of an atom: shape (draws, n)."""
        start = _start(self.layout, atom.kind, atom.axis)
        return getattr(self, which)[atom.kind][:, start + atom.index].sum(-1)

    def ratio(self, atom: Atom) -> np.ndarray:
        """``|value| / size`` of an atom, as :func:`relative` has it: shape (draws, n)."""
        return relative(self.column(atom), self.column(atom, "sizes"))

    @property
    def per_weight(self) -> np.ndarray:
        """The mean size of the gradient's numbers on each slice, shape (draws, slices)."""
        return self.sizes[SHIFT] / self.layout.weights

    @property
    def levels(self) -> np.ndarray:
        """The same relative to the largest of each draw; 0 in a draw that has no gradient."""
        largest = self.per_weight.max(1, keepdims=True)
        return self.per_weight / np.where(largest > 0, largest, 1.0)

    def extended(self, more: Equations) -> Equations:
        join = lambda a, b: {kind: np.concatenate([a[kind], b[kind]]) for kind in a}  # noqa: E731
        return Equations(self.layout, join(self.values, more.values), join(self.sizes, more.sizes))


def relative(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``|values| / sizes`` for draws in rows; 0 where nothing happened.

    In a draw where a slice gets next to no gradient (a softmax that is certain) its sum is rounding of what cancelled
    before; there the size counts as a ten thousandth of what it is in the median draw.
    """
    usual = np.median(sizes, axis=0)
    bound = np.maximum(sizes, 1e-4 * usual)
    return np.abs(values) / np.where(bound > 0, bound, 1.0)


def _start(layout: Layout, kind: str, axis: int) -> int:
    if kind in (SCALE, SHIFT):
        return layout.axes[axis].start
    return layout.shears[axis].start if kind == SHEAR else layout.sources[axis].start


def find_sources(room: DoubleCopy, layout: Layout, number: int) -> None:
    """Which activations are called, and along which axes their sources may be summed.

    An activation may be linear for ordinary weights and not for larger ones (ReLU6, hardtanh): then every second draw
    is to have larger ones.
    """
    ordinary, record = _with_a_source(room, number, 1.0)
    stretched, _ = _with_a_source(room, number, STRETCH)
    room.stretched = bool(stretched - ordinary)
    start, lengths = 0, {len(axis) for axis in layout.axes}
    for call in sorted(ordinary | stretched):
        activation = record[call]
        before = [(one.module, one.name) for one in record[:call]]
        count = before.count((activation.module, activation.name))
        for axis in range(1, activation.z.ndim):
            length = activation.z.shape[axis]
            if length > 1 and length in lengths:
                layout.sources.append(SourcePlace(call, axis, activation.module, activation.name, count, start, length))
                start += length


def _with_a_source(room: DoubleCopy, number: int, stretch: float) -> tuple[set[int], list[Activation]]:
    """Which noticed activations have a source that is not 0 in this draw, and all of them."""
    record: list[Activation] = []
    try:
        room.gradient(room.draw(number, stretch), seed=number, record=record)
    except Exception:
        if stretch == 1:
            raise
        return set(), record  # what fails for larger weights is not drawn so
    found = set()
    for call, activation in enumerate(record):
        if activation.delta is not None:
            of_output = activation.delta * activation.function(activation.z)
            if bool(activation.source().abs().max() > 1e-12 * of_output.abs().max()):
                found.add(call)
    return found, record


def collect(room: DoubleCopy, layout: Layout, numbers: range) -> Equations:
    """The equations of the draws ``numbers``."""
    rows: dict[str, list[Tensor]] = {kind: [] for kind in (SCALE, SHIFT, SHEAR, SOURCE)}
    sizes: dict[str, list[Tensor]] = {kind: [] for kind in rows}
    for number in numbers:
        data = room.draw(number)
        record: list[Activation] | None = [] if layout.sources else None
        _, gradient = room.gradient(data, seed=number, record=record)
        for kind, (value, size) in _numbers(room, layout, gradient, record).items():
            rows[kind].append(value)
            sizes[kind].append(size)
    stack = lambda many: {kind: torch.stack(each).cpu().numpy() for kind, each in many.items()}  # noqa: E731
    return Equations(layout, stack(rows), stack(sizes))


@dataclass
class Here:
    """What one gradient says: the loss, its gradient by name, and the equations at the copy's present parameters."""

    loss: float
    gradient: dict[str, Tensor]
    equations: Equations


def here(room: DoubleCopy, layout: Layout, data, seed: int, *, exact: bool = True) -> Here:
    """The loss, its gradient and their equations where the copy is now, on these data (None: its own)."""
    record: list[Activation] | None = [] if layout.sources else None
    loss, gradient = room.gradient(data, seed=seed, record=record, exact=exact)
    found = _numbers(room, layout, gradient, record)
    values = {kind: value[None].cpu().numpy() for kind, (value, _) in found.items()}
    sizes = {kind: size[None].cpu().numpy() for kind, (_, size) in found.items()}
    return Here(float(loss), gradient, Equations(layout, values, sizes))


@torch.no_grad()
def _numbers(room: DoubleCopy, layout: Layout, gradient: dict[str, Tensor], record) -> dict:
    scale, shift, scale_size, shift_size = [], [], [], []
    previous = None
    for axis in layout.axes:
        if axis.name != previous:
            g, theta = gradient[axis.name], room.parameters[axis.name]
            product = g * theta
            absolute, g_absolute, previous = product.abs(), g.abs(), axis.name
        scale.append(axis.sums(product))
        shift.append(axis.sums(g))
        scale_size.append(axis.sums(absolute))
        shift_size.append(axis.sums(g_absolute))
    shear, shear_size = [torch.zeros(0)], [torch.zeros(0)]
    for one in layout.shears:
        weight, g = one.matrix(room.parameters[one.weight]), gradient[one.bias]
        shear.append(g @ weight)
        shear_size.append(g.abs() @ weight.abs())
    source, source_size = [torch.zeros(0)], [torch.zeros(0)]
    if layout.sources:
        fields = [activation.source() for activation in record]
        for place in layout.sources:
            call, along, length = place.call, place.axis, place.length
            field = fields[call] if call < len(fields) else torch.zeros(length)
            if field.ndim <= along or field.shape[along] != length:
                field, along = torch.zeros(1, length), 1
            others = [k for k in range(field.ndim) if k != along]
            source.append(field.sum(others))
            source_size.append(field.abs().sum(others))
    pairs = {
        SCALE: (scale, scale_size),
        SHIFT: (shift, shift_size),
        SHEAR: (shear, shear_size),
        SOURCE: (source, source_size),
    }
    return {kind: (torch.cat([x.cpu() for x in a]), torch.cat([x.cpu() for x in b])) for kind, (a, b) in pairs.items()}
