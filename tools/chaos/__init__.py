"""Faults with an account of every record: a real fleet under load is hurt, then the whole log is read."""

from tools.chaos.account import Account, count
from tools.chaos.faults import FAULTS, Plan
from tools.chaos.run import run

__all__ = ["FAULTS", "Account", "Plan", "count", "run"]
