"""Normalisation as an adaptive optimiser: radius, angle, equilibrium."""

from nlcompanion.adaptivity.equilibrium import Equilibrium, RMSPropTwin, angular_update, equilibrium, rmsprop_twin
from nlcompanion.adaptivity.forecast import Forecast, forecast
from nlcompanion.adaptivity.persistence import Persistence, gradient_persistence, momentum_average
from nlcompanion.adaptivity.radius import (
    Polar,
    polar,
    radius_gain,
    radius_squared,
    radius_squared_of_steps,
    rmsprop_accumulator,
)

__all__ = [
    "Equilibrium",
    "Forecast",
    "Persistence",
    "Polar",
    "RMSPropTwin",
    "angular_update",
    "equilibrium",
    "forecast",
    "gradient_persistence",
    "momentum_average",
    "polar",
    "radius_gain",
    "radius_squared",
    "radius_squared_of_steps",
    "rmsprop_accumulator",
    "rmsprop_twin",
]
