"""The clock of a simulation: it jumps to what is due next as soon as no task can run.

Trio's MockClock does the same, but asks for a pass of the run loop in which nothing happens before each jump, since
there may be sockets to hear from. Here there are none.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class VirtualClock(trio.abc.Clock):
    """Virtual seconds, from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.next_due: Callable[[], float] = lambda: float("inf")
        """When the network has something to deliver, …"""
        self.deliver: Callable[[], None] = lambda: None
        """… and its deliveries of now. Done here, between the passes of the run loop, since a task that waited for them
        took a fifth of a simulation's time."""

    def start_clock(self) -> None:
        """Nothing runs by itself."""

    def current_time(self) -> float:
        """Seconds since the simulation began."""
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Called when no task can run: it is `deadline` now."""
        due = self.next_due()
        if min(due, deadline) == float("inf"):
            return deadline
        self.now = max(self.now, min(due, deadline))
        if due <= self.now:
            self.deliver()
        return 0.0
