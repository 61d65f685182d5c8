"""Whether a member may act on its claims: only while its session is known to live.

The session was alive when the last report that ZooKeeper took began to be sent, and ends no sooner than its timeout
after that. A member stops acting at two thirds of it, by its own clock, whatever it was told: one that was paused, cut
off, or kept from running finds that out when it looks, before it does anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

ACTING_SHARE = 2 / 3


class Acting:
    """`on_lost(reason)` is called when acting must end. `run()` is the task that ends it in time."""

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._until = -math.inf
        self._is_acting = trio.Event()

    def is_on(self) -> bool:
        """Whether it may act now; ends it when its time is up."""
        if self._is_acting.is_set() and trio.current_time() >= self._until:
            self.lose("no sign of life for 2/3 of the session's timeout")
        return self._is_acting.is_set()

    def alive(self, since: float, session_timeout_s: float) -> bool:
        """The session was alive at that time: whether acting began with it."""
        until = since + ACTING_SHARE * session_timeout_s
        if until <= trio.current_time():
            return False
        self._until = max(self._until, until)
        begins = not self._is_acting.is_set()
        self._is_acting.set()
        return begins

    def lose(self, reason: str) -> None:
        """End it, if it is not ended yet."""
        if self.stop():
            self._on_lost(reason)

    def stop(self) -> bool:
        """End it without telling: whether it was acting."""
        self._until = -math.inf
        was_acting = self._is_acting.is_set()
        if was_acting:
            self._is_acting = trio.Event()
        return was_acting

    async def run(self) -> None:
        """End it at its time, until cancelled."""
        while True:
            await self._is_acting.wait()
            await trio.sleep_until(self._until)
            self.is_on()
