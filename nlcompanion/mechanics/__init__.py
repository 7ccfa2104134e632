r"""Calculus on a Lagrangian ``L(t, q, v)``; knows nothing of learning."""

from nlcompanion.mechanics.lagrangian import (
    Lagrangian,
    acceleration,
    action,
    along,
    energy,
    euler_lagrange,
    first_variation,
    generalized_momentum,
    lift,
)
from nlcompanion.mechanics.least_action import StationaryPath, discrete_action, stationary_path, variational_derivative

__all__ = [
    "Lagrangian",
    "StationaryPath",
    "acceleration",
    "action",
    "along",
    "discrete_action",
    "energy",
    "euler_lagrange",
    "first_variation",
    "generalized_momentum",
    "lift",
    "stationary_path",
    "variational_derivative",
]
