"""The audit of any model, a room each: a copy in float64, equations, bases, families, confirmation, words."""

from nlcompanion.laws.audit.double_copy import AuditError
from nlcompanion.laws.audit.examine import audit
from nlcompanion.laws.audit.report import Audit

__all__ = ["Audit", "AuditError", "audit"]
