"""When a source of malformed sessions is let in again: a policy, pure; the clock and the dice stay outside.

An exporter that is cut off for a malformed message often comes back at once and does it again (RFC 7011, 9.1: one
should stop processing what comes from a clearly malfunctioning exporter). After `after` such sessions in a row from one
address its connections are turned away for a time that doubles with each more, up to a most, and is spread at random
so that many exporters of one kind do not come back together. Any session that ends well, or `forget_s` without one that
did not, clears the address.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from attrs import define, field, frozen


@frozen
class BackoffSettings:
    """`after` malformed sessions in a row shut the door for `first_s`, and up to `most_s` as they go on."""

    after: int = 3
    first_s: float = 1.0
    most_s: float = 60.0
    forget_s: float = 600.0
    max_sources: int = 4096


@define
class _Source:
    malformed: int
    last: float
    shut_until: float = 0.0


@define
class Backoff:
    """What is remembered of sources; `jitter` gives numbers from 0 to 1."""

    settings: BackoffSettings
    jitter: Callable[[], float]
    turned_away: int = 0
    shut: int = 0
    """How often an address was shut out."""
    _sources: OrderedDict[str, _Source] = field(factory=OrderedDict)

    def admits(self, address: str, now: float) -> bool:
        """Whether a connection from this address is taken; one that is not is counted."""
        known = self._sources.get(address)
        if known is None or now >= known.shut_until:
            return True
        self.turned_away += 1
        return False

    def malformed(self, address: str, now: float) -> float:
        """A session from this address ended by what it sent: for how long the address is now shut out (0: it is not).

        The time is between half of what its malformed sessions come to and all of it.
        """
        settings = self.settings
        known = self._sources.pop(address, None)
        if known is None or now - known.last > settings.forget_s:
            known = _Source(0, now)
        known.malformed, known.last = known.malformed + 1, now
        self._sources[address] = known
        if len(self._sources) > settings.max_sources:
            self._sources.popitem(last=False)
        over = known.malformed - settings.after
        if over < 0:
            return 0.0
        full = min(settings.most_s, settings.first_s * 2.0 ** min(over, 32))
        wait = full * (0.5 + self.jitter() / 2)
        known.shut_until = now + wait
        self.shut += 1
        return wait

    def well(self, address: str) -> None:
        """A session from this address ended otherwise."""
        self._sources.pop(address, None)
