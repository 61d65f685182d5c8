"""When the log is left to those who have little to store: pure.

An org that sends more than the log takes would keep it, and the processors, busy without a pause, and every batch of
another org would wait for a large commit before it and share the machine with the next. So after a commit that left a
backlog the log rests for about as long as that took, as long as there are others: what they send meanwhile is stored
at once, and the backlog waits. Where all have a backlog, or one is alone, there is no rest.
"""

from __future__ import annotations

from math import inf

from attrs import define

OTHERS_S = 1.0
"""For so long after a brief turn others are taken to be there."""


@define
class Rest:
    """Until when nothing of a backlog is stored, on the clock of who asks."""

    ratio: float
    """To how long the commit took; 0: no rest."""
    until: float = -inf
    _brief: int = 0
    _brief_at: float = -inf

    def is_shared(self, now: float) -> bool:
        """Whether there is rest at all, and there are others."""
        return self.ratio > 0 and now - self._brief_at < OTHERS_S

    def after(self, began: float, ended: float, *, brief: int, backlog: bool) -> None:
        """A commit took from `began` to `ended`; `brief` orgs so far had no more than a turn's, and there is, or is
        no, backlog behind it. One that was stored in a rest lengthens none."""
        if brief > self._brief:
            self._brief, self._brief_at = brief, ended
        if not backlog:
            self.until = -inf
        elif began >= self.until and self.is_shared(ended):
            self.until = ended + self.ratio * (ended - began)
