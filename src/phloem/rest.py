"""What a backlog gets of the log while there are others: pure.

An org that sends more than the log takes would keep it, and the processors, busy without a pause, and every batch of
another org would wait for a large commit before it and share the machine with the next. So as long as there are others,
a commit takes so much of a backlog as makes it about twice as long as one without, and after it the log rests from the
backlog for so long as that cost: what others send meanwhile is stored at once. Where a commit takes long however little
is in it (a slow disk, a Kafka) a backlog costs nothing more, and nothing rests. Nor where all have a backlog, or one is
alone.
"""

from __future__ import annotations

from math import inf

from attrs import define, field

OTHERS_S = 1.0
"""For so long after a turn that left no backlog beside one they are taken to be there."""
MOST_S = 0.1
"""A rest is no longer, however long a commit hung."""
LEAST_PART = 8
"""A commit takes at least so small a part of what it may of a backlog."""
STEADY = 8
"""A commit without a backlog changes what one is taken to cost by so small a part."""


@define
class Rest:
    """Until when nothing of a backlog is stored, on the clock of who asks, and how much of it then."""

    ratio: float
    """To what the backlog cost; 0: no rest, and whole commits."""
    commit_bytes: int
    until: float = -inf
    _part_bytes: int = field(init=False)
    _brief: int = 0
    _brief_at: float = -inf
    _brief_s: float = 0.0
    """What a commit without a backlog takes; 0: not known."""

    def __attrs_post_init__(self) -> None:
        self._part_bytes = self.commit_bytes

    def is_shared(self, now: float) -> bool:
        """Whether there are others."""
        return now - self._brief_at < OTHERS_S

    def part_bytes(self, now: float) -> int | None:
        """What a commit may take of a backlog; None: all that it has room for."""
        return self._part_bytes if self.ratio and self.is_shared(now) else None

    def after(self, began: float, ended: float, *, brief: int, heavy: bool, backlog: bool) -> None:
        """A commit took from `began` to `ended`.

        `brief` orgs so far had no more than a turn's beside a backlog; it was `heavy` when it took of a backlog or left
        one; and there is, or is no, backlog now.
        """
        took = ended - began
        if brief > self._brief:
            self._brief, self._brief_at = brief, ended
        if not heavy:
            self._brief_s += (min(took, 2 * self._brief_s) - self._brief_s) / STEADY if self._brief_s else took
        elif not self.is_shared(ended):
            self._part_bytes = self.commit_bytes
        else:
            cost = max(took - self._brief_s, 0.0)
            if cost > self._brief_s:
                self._part_bytes = max(self._part_bytes // 2, self.commit_bytes // LEAST_PART)
            elif cost < self._brief_s / 2:
                self._part_bytes = min(self._part_bytes * 2, self.commit_bytes)
            self.until = ended + min(self.ratio * cost, MOST_S)
        if not backlog or not self.is_shared(ended):
            self.until = -inf
