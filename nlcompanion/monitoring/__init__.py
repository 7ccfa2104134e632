"""Laws beside a running training: ledger, monitor with its alerts, and the radius that a rule foresees."""

from nlcompanion.monitoring.adapters import hugging_face_callback, lightning_callback
from nlcompanion.monitoring.alerts import Alert
from nlcompanion.monitoring.ledger import Account, Ledger, LedgerError
from nlcompanion.monitoring.monitor import Monitor
from nlcompanion.monitoring.norm_forecasts import NormForecast, NormForecasts
from nlcompanion.monitoring.radius_tracker import RadiusTracker

__all__ = [
    "Account",
    "Alert",
    "Ledger",
    "LedgerError",
    "Monitor",
    "NormForecast",
    "NormForecasts",
    "RadiusTracker",
    "hugging_face_callback",
    "lightning_callback",
]
