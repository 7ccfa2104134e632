"""The audit of any model, a room each: a copy in float64, equations, bases, families, confirmation, words."""

from nlcompanion.laws.auditing.double_copy import AuditError
from nlcompanion.laws.auditing.examine import audit
from nlcompanion.laws.auditing.report import Audit

__all__ = ["Audit", "AuditError", "audit"]
