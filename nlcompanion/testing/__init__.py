"""Laws as tests: backward passes and optimisers held against their own laws, without a reference implementation."""

from nlcompanion.testing.gradients import assert_gradients_lawful, check_gradients, check_recorded
from nlcompanion.testing.optimizer_laws import OptimizerLaws
from nlcompanion.testing.optimizers import assert_optimizer_lawful, check_optimizer
from nlcompanion.testing.parameters import GainIntoLinear
from nlcompanion.testing.report import LawCheck, LawError, Report

__all__ = [
    "GainIntoLinear",
    "LawCheck",
    "LawError",
    "OptimizerLaws",
    "Report",
    "assert_gradients_lawful",
    "assert_optimizer_lawful",
    "check_gradients",
    "check_optimizer",
    "check_recorded",
]
