"""One-parameter actions on parameters, and how a loss and a learning rule break them."""

from nlcompanion.symmetries.actions import (
    Part,
    Symmetry,
    input_rotation,
    linear_action,
    linear_pair,
    rescale,
    rotation,
    scale,
    translation,
)
from nlcompanion.symmetries.breaking import generator, invariance_defect, kinetic_symmetry_breaking
from nlcompanion.symmetries.lie_algebras import LieAlgebra, gl, so

__all__ = [
    "LieAlgebra",
    "Part",
    "Symmetry",
    "generator",
    "gl",
    "input_rotation",
    "invariance_defect",
    "kinetic_symmetry_breaking",
    "linear_action",
    "linear_pair",
    "rescale",
    "rotation",
    "scale",
    "so",
    "translation",
]
