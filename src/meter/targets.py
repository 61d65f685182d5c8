"""Where a meter's streams go: through the door, or, when no door answers, straight to collectors it was told of.

The collectors last known are a text that the spool keeps, so that a meter which starts while no balancer answers finds
them too. Pure, but for the clock that is given.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import structlog
from attrs import define, field

from meter.rendezvous import place
from meter.uplink import Target, UplinkStream
from sapflow.errors import ConfigurationError
from sapflow.runtime.addresses import split_address

log = structlog.get_logger()

DOOR = "the door"
MAX_COLLECTORS = 256
DOOR_FAILURES = 3
"""After so many in a row the door is held to be gone."""
DOOR_RETRY_S = 30.0
COLLECTOR_RETRY_S = 10.0


@define
class Targets:
    """A `Chooser`: the door first."""

    door: str
    clock: Callable[[], float]
    collectors: dict[str, str] = field(factory=dict)
    """Name and address of those last known."""
    changed: Callable[[str], None] = lambda _: None
    """Told the text to keep when what is known changes."""
    _door_failures: int = 0
    _door_again: float = 0.0
    _failed: dict[str, float] = field(factory=dict)
    _placed: dict[bytes, str] = field(factory=dict)

    def choose(self, stream: UplinkStream) -> Target:
        """The target for a stream."""
        now = self.clock()
        if not self.collectors or self._door_failures < DOOR_FAILURES or now >= self._door_again:
            self._placed.pop(stream.id, None)
            return Target(DOOR, self.door)
        # When all have failed, each is tried again.
        alive = [name for name in self.collectors if self._failed.get(name, 0.0) <= now] or list(self.collectors)
        self._placed.pop(stream.id, None)
        name = self._placed[stream.id] = place(stream.id, alive, Counter(self._placed.values()))
        return Target(name, self.collectors[name])

    def failed(self, target: str) -> None:
        """A link broke or could not be made."""
        if target == DOOR:
            self._door_failures += 1
            self._door_again = self.clock() + DOOR_RETRY_S
            if self._door_failures == DOOR_FAILURES and self.collectors:
                log.warning("door gone", door=self.door, next="collectors last known", collectors=len(self.collectors))
        elif target in self.collectors:
            self._failed[target] = self.clock() + COLLECTOR_RETRY_S

    def leaving(self, target: str, deadline_s: float) -> None:
        """A link is to be left; the door places the next one elsewhere."""
        if target in self.collectors:
            self._failed[target] = self.clock() + deadline_s

    def welcomed(self, target: str) -> None:
        """A link is up."""
        if target == DOOR:
            self._door_failures = 0
        self._failed.pop(target, None)

    def released(self, stream: UplinkStream) -> None:
        """A stream is no more."""
        self._placed.pop(stream.id, None)

    def heard(self, named: object, *, all_of_them: bool) -> None:
        """The fleet named collectors: {name: address}; `all_of_them`, or some more. What is no address is left out."""
        if not isinstance(named, dict):
            return
        found = {str(name)[:256]: address for name, address in named.items() if _is_address(address)}
        known = found if all_of_them else {**self.collectors, **found}
        known = dict(list(known.items())[-MAX_COLLECTORS:])
        if known and known != self.collectors:
            self.collectors = known
            self.changed(json.dumps(known))

    def remember(self, text: str | None) -> None:
        """What was kept in an earlier life."""
        self.heard(json.loads(text) if text else None, all_of_them=True)


def _is_address(address: object) -> bool:
    try:
        return isinstance(address, str) and split_address(address)[1] > 0
    except ConfigurationError:
        return False
