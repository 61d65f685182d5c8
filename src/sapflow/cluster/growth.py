"""Operations of a coordinator beside the changes that they are for.

In 2012 a watch that was set twice for every event made ZooKeeper's traffic grow without end. When all is well a change
costs about one operation, however large the fleet; one that costs several, for a whole window, is an alarm.
"""

from __future__ import annotations

from collections import deque

import structlog
import trio
from attrs import define, field

log = structlog.get_logger()

WINDOW_S = 10.0
MOST = 3.0
LEAST_OPERATIONS = 100
"""In a window; fewer are no matter, whatever they were for."""


@define
class Growth:
    """`note` is told both totals again and again; `per_change` and `is_alarming` are of the last window."""

    per_change: float = 0.0
    is_alarming: bool = False
    _history: deque[tuple[float, int, int]] = field(factory=deque)

    def gauges(self) -> dict[str, float]:
        """Both figures, for status and metrics."""
        return {
            "coordinator_operations_per_change": round(self.per_change, 2),
            "coordinator_alarm": int(self.is_alarming),
        }

    def note(self, operations: int, changes: int, now: float) -> bool:
        """The totals now: whether the alarm began or ended with them."""
        history = self._history
        history.append((now, operations, changes))
        while len(history) > 1 and history[1][0] <= now - WINDOW_S:
            history.popleft()
        since, operations_then, changes_then = history[0]
        grown = operations - operations_then
        self.per_change = grown / max(1, changes - changes_then)
        was_alarming = self.is_alarming
        is_whole = now - since >= WINDOW_S
        self.is_alarming = is_whole and grown >= LEAST_OPERATIONS and self.per_change > MOST
        return self.is_alarming != was_alarming


def note(growth: Growth, operations: int, changes: int, member: str) -> None:
    """Note the totals now, with an event when the alarm begins or ends."""
    if growth.note(operations, changes, trio.current_time()):
        event = "coordinator alarm" if growth.is_alarming else "coordinator alarm ended"
        report = log.error if growth.is_alarming else log.info
        report(
            event,
            member=member,
            operations_per_change=round(growth.per_change, 2),
            meaning=f"above {MOST:g} for {WINDOW_S:g} s, requests to the coordinator beget each other",
        )
