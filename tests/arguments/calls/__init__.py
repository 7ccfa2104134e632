"""A valid call of every public function and method, in a module for each folder of the package."""

import importlib
import pkgutil

from calls.table import CALLS, WITHOUT_DATA, Call

__all__ = ["CALLS", "ERRORS", "RESULTS", "TYPES", "WITHOUT_DATA", "Call"]

for found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"calls.{found.name}")

# what calls return, and errors: nobody makes them by hand
RESULTS = {
    "Account",
    "Alert",
    "Audit",
    "BeforeStep",
    "ConservedQuantities",
    "ConservedQuantity",
    "Equilibrium",
    "Forecast",
    "LawCheck",
    "LearningRule",
    "Match",
    "MatchedGroup",
    "Motion",
    "NLDTerms",
    "NormForecast",
    "NormForecasts",
    "OutputMotion",
    "Persistence",
    "Polar",
    "RMSPropTwin",
    "Record",
    "Report",
    "Run",
    "RundTrautmann",
    "StationaryPath",
    "Steady",
    "Sweep",
    "Trajectory",
    "UpdateEquilibrium",
}
ERRORS = {"AuditError", "ClaimError", "DataError", "DescentError", "FlowError", "LawError", "LedgerError", "SweepError"}
TYPES = {"Lagrangian", "Part"}  # aliases for annotations
