"""Laws beside a running training: the ledger of every step, and the radius that a rule foresees."""

from nlcompanion.monitoring.ledger import Account, Ledger, LedgerError
from nlcompanion.monitoring.radius_tracker import RadiusTracker

__all__ = ["Account", "Ledger", "LedgerError", "RadiusTracker"]
