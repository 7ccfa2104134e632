"""Symmetries without a charge, as equations that every gradient obeys: rotations, and biases moved into the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nlcompanion.laws.auditing.families import Family
from nlcompanion.laws.auditing.slices import SCALE, SHEAR, Layout, rows_of


@dataclass(frozen=True)
class Identity:
    """What a symmetry says of a gradient at parameters: the slope of the loss along it is 0.

    Attributes:
        kind: ``"shear"`` or ``"rotation"``.
        statement: in one line.
        parameters: names.
    """

    kind: str
    statement: str
    parameters: tuple[str, ...]
    _family: Family
    _layout: Layout

    def slope(self, values: dict[str, Tensor], gradients: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """``<g, xi(theta)>`` of each neuron (of a rotation: each pair), and the sum of its absolute terms.

        Args:
            values, gradients: by the names of parameters.
        """
        turns = self._family.is_rotation
        shares = [(self._turn if turns else self._share)(atom, c, values, gradients) for atom, c in self._family.atoms]
        return torch.stack([x for x, _ in shares]).sum(0), torch.stack([size for _, size in shares]).sum(0)

    def _share(self, atom, c: float, values, gradients) -> tuple[Tensor, Tensor]:
        if atom.kind == SHEAR:
            shear = self._layout.shears[atom.axis]
            weight, g = shear.matrix(values[shear.weight]), gradients[shear.bias]
            value, size = g @ weight, g.abs() @ weight.abs()
        else:
            axis = self._layout.axes[atom.axis]
            g = gradients[axis.name]
            g = g * values[axis.name] if atom.kind == SCALE else g
            value, size = axis.sums(g), axis.sums(g.abs())
        index = torch.as_tensor(atom.index, device=value.device)
        return c * value[index].sum(1), abs(c) * size[index].sum(1)

    def _turn(self, atom, c: float, values, gradients) -> tuple[Tensor, Tensor]:
        axis, pairs = self._layout.axes[atom.axis], self._family.planes
        g = [rows_of(axis, atom.index[pairs[:, k]], gradients[axis.name]) for k in (0, 1)]
        x = [rows_of(axis, atom.index[pairs[:, k]], values[axis.name]) for k in (0, 1)]
        there, back = g[0] * x[1], g[1] * x[0]
        return c * (there - back).sum(1), abs(c) * (there.abs() + back.abs()).sum(1)


def identity_of(family: Family, kind: str, layout: Layout, text: str) -> Identity:
    """The identity of a family that conserves nothing."""
    names = list(family.names(layout))
    names += [layout.shears[atom.axis].weight for atom, _ in family.atoms if atom.kind == SHEAR]
    return Identity(kind, f"⟨g, ξ⟩ = 0: {text}", tuple(dict.fromkeys(names)), family, layout)
