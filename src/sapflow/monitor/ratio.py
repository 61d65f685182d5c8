"""What goes out of a service for each byte that comes in, beside what should: one figure that shows most of its faults.

In 2012 a handler that outlived its receiver made a collector send out 16 times what it took in, where 4.4 was right.
What is right follows from who receives, each counted once however many connections it has. Pure; the clock is given.
"""

from __future__ import annotations

import structlog
from attrs import define, frozen

log = structlog.get_logger()

MOST_OFF = 0.05
"""Of what should go out."""
AFTER_S = 9.0
"""One that is off for so long, always to the same side, is an alarm: told within ten seconds, at a reading a second."""


@frozen
class Flow:
    """Totals that never go down, in bytes: taken in, given out, and what should have been given out."""

    taken: int = 0
    given: int = 0
    due: int = 0


@define
class Ratio:
    """`note` is told the totals about once a second; `measured` and `expected` are of the last second with any flow."""

    measured: float = 0.0
    expected: float = 0.0
    is_alarming: bool = False
    _before: Flow = Flow()
    _side: int = 0
    _since: float = 0.0

    def note(self, total: Flow, now: float) -> bool:
        """The totals now: whether the alarm began or ended with them. A second in which nothing came says nothing."""
        before, self._before = self._before, total
        taken, given, due = total.taken - before.taken, total.given - before.given, total.due - before.due
        if taken <= 0:
            return False
        self.measured, self.expected = given / taken, due / taken
        off = given - due
        side = 0 if abs(off) <= MOST_OFF * due else (1 if off > 0 else -1)
        if side != self._side:
            self._side, self._since = side, now
        was_alarming = self.is_alarming
        self.is_alarming = side != 0 and now - self._since >= AFTER_S
        return self.is_alarming != was_alarming


def note(ratio: Ratio, total: Flow, now: float) -> None:
    """Note the totals, with an event when the alarm begins or ends."""
    if ratio.note(total, now):
        event = "flow alarm" if ratio.is_alarming else "flow alarm ended"
        report = log.error if ratio.is_alarming else log.info
        report(
            event,
            measured=round(ratio.measured, 2),
            expected=round(ratio.expected, 2),
            meaning="bytes out for each byte in: more than expected goes to receivers that should not be there, or is "
            "sent again and again; less does not reach those who are",
        )
