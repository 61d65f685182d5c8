"""How much one org may have of what all share, by what is *free*: arithmetic only.

An org may hold at most share / (1 - share) times what is free. So one whose records nobody takes ends at its share, two
of them end at less, and however many there are, something is left for the next (dynamic thresholds: Choudhury and
Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). With a share of 1 an org may have it all.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Share:
    """An org's share of something that all share."""

    of_all: float

    def room(self, mine: float, total: float, limit: float) -> float:
        """How much more one may have that has `mine`, while all together have `total` of `limit`."""
        return self.of_all * (limit - total) - (1 - self.of_all) * mine

    def fits(self, size: float, mine: float, total: float, limit: float) -> bool:
        """Whether one may have so much more; who has nothing may have whatever is free."""
        return size <= self.room(mine, total, limit) or (not mine and total + size <= limit)
