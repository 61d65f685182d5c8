"""The real fleet in one process and in virtual time, with faults from a seed."""

from tools.simulate.run import Outcome, Scenario, simulate

__all__ = ["Outcome", "Scenario", "simulate"]
