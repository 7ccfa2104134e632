"""Learning rules as data, their Lagrangians, their flows and their steps."""

from nlcompanion.dynamics.bregman import bregman_momentum, kinetic_energy, lagrangian, modified_loss
from nlcompanion.dynamics.descent import DescentError, convergence_order, descend
from nlcompanion.dynamics.flows import integrate
from nlcompanion.dynamics.learning_rules import (
    LearningRule,
    Steps,
    bregman,
    damped,
    euclidean,
    general,
    gradient_flow,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.dynamics.linearized import linearized_dynamics
from nlcompanion.dynamics.stopping import Steady, loss_below, steady
from nlcompanion.dynamics.trajectory import FlowError, Trajectory

__all__ = [
    "DescentError",
    "FlowError",
    "LearningRule",
    "Steady",
    "Steps",
    "Trajectory",
    "bregman",
    "bregman_momentum",
    "convergence_order",
    "damped",
    "descend",
    "euclidean",
    "general",
    "gradient_flow",
    "integrate",
    "kinetic_energy",
    "lagrangian",
    "linearized_dynamics",
    "loss_below",
    "modified_loss",
    "natural_gradient",
    "nesterov",
    "newtonian",
    "sgd",
    "steady",
]
