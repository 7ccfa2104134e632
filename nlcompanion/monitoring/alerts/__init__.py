"""Alerts, a kind a file: each a test of one law that a run should keep, with what rounding and noise allow."""

from nlcompanion.monitoring.alerts.alert import Alert, Rule, RunView
from nlcompanion.monitoring.alerts.broken_gradient import BrokenGradient
from nlcompanion.monitoring.alerts.dead_direction import DeadDirection
from nlcompanion.monitoring.alerts.decay import Decay
from nlcompanion.monitoring.alerts.frozen import Frozen
from nlcompanion.monitoring.alerts.not_finite import NotFinite
from nlcompanion.monitoring.alerts.replicas import Replicas, replica_ranks
from nlcompanion.monitoring.alerts.schedule import Schedule

KINDS = (
    "broken gradient",
    "frozen",
    "decay",
    "replicas",
    "schedule",
    "dead direction",
    "not finite",
    "replaced",
)

__all__ = [
    "KINDS",
    "Alert",
    "BrokenGradient",
    "DeadDirection",
    "Decay",
    "Frozen",
    "NotFinite",
    "Replicas",
    "Rule",
    "RunView",
    "Schedule",
    "replica_ranks",
]
