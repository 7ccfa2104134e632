"""Normalisation as an adaptive optimiser: radius, angle, equilibrium."""

from nlcompanion.adaptivity.equilibrium import Equilibrium, RMSPropTwin, angular_update, equilibrium, rmsprop_twin
from nlcompanion.adaptivity.forecast import Forecast, forecast
from nlcompanion.adaptivity.matched import Match, MatchedGroup, Motion
from nlcompanion.adaptivity.persistence import Persistence, gradient_persistence, momentum_average
from nlcompanion.adaptivity.radius import (
    Polar,
    polar,
    radius_gain,
    radius_squared,
    radius_squared_of_steps,
    rmsprop_accumulator,
)
from nlcompanion.adaptivity.transfer import match
from nlcompanion.adaptivity.update_equilibrium import UpdateEquilibrium, equilibrium_of, equilibrium_of_updates
from nlcompanion.adaptivity.update_memory import UpdateMemory, update_memory, white_updates

__all__ = [
    "Equilibrium",
    "Forecast",
    "Match",
    "MatchedGroup",
    "Motion",
    "Persistence",
    "Polar",
    "RMSPropTwin",
    "UpdateEquilibrium",
    "UpdateMemory",
    "angular_update",
    "equilibrium",
    "equilibrium_of",
    "equilibrium_of_updates",
    "forecast",
    "gradient_persistence",
    "match",
    "momentum_average",
    "polar",
    "radius_gain",
    "radius_squared",
    "radius_squared_of_steps",
    "rmsprop_accumulator",
    "rmsprop_twin",
    "update_memory",
    "white_updates",
]
