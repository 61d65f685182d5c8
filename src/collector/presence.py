"""Which orgs are here: an org whose last stream ended a while ago is gone until one comes again; pure.

Phloem nodes that share a log are told of both, so that none of them holds a claim of an org that nobody sends for.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field

GONE_S = 60.0
"""Without a stream for so long; exporters and meters that come back sooner find all as it was."""
LOOK_S = 5.0
"""Between two looks at all orgs."""


@define
class Presence:
    """By org."""

    gone: set[str] = field(factory=set)
    _quiet_since: dict[str, float] = field(factory=dict)
    _looked: float = float("-inf")

    def look(self, orgs: Iterable[tuple[str, bool]], now: float) -> list[str]:
        """Those that are gone since the last look; `orgs` are all that there are, and whether they have streams."""
        if now < self._looked + LOOK_S:
            return []
        self._looked = now
        found = []
        for org, has_streams in orgs:
            if has_streams:
                self._quiet_since.pop(org, None)
            elif org not in self.gone and now - self._quiet_since.setdefault(org, now) >= GONE_S:
                found.append(org)
        self.gone.update(found)
        for org in found:
            del self._quiet_since[org]
        return found

    def came(self, org: str) -> bool:
        """A stream of it is here: whether it was gone."""
        self._quiet_since.pop(org, None)
        was_gone = org in self.gone
        self.gone.discard(org)
        return was_gone
