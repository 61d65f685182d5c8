"""What all streams of a process may hold that is not acknowledged: a budget in bytes, given in fair turns.

Rule 1: an exporter that can wait is given room before it puts; one that cannot (UDP) is told that there is none.
Rule 2: no org holds more than its share, so one whose records nobody takes cannot stop the others.
Rule 3: orgs take turns, and inside an org its exporters do. One batch always fits the share of an org that holds none.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import trio
from attrs import define, field


@define(eq=False)
class _Waiter:
    size: int
    given: trio.Event = field(factory=trio.Event)


@define
class Budget:
    """Counts what is held; `acquire` waits for room, `take` does not ask for it."""

    limit_bytes: int
    org_share: float = 0.5
    held_bytes: int = 0
    _held: dict[str, int] = field(factory=dict)
    _waiting: OrderedDict[str, deque[_Waiter]] = field(factory=OrderedDict)

    @property
    def waiting(self) -> int:
        """Exporters that wait for room."""
        return sum(map(len, self._waiting.values()))

    def fits(self, org: str, size: int) -> bool:
        """Whether so much of an org has room now."""
        if not self.held_bytes:
            return True
        held = self._held.get(org, 0)
        within_share = not held or held + size <= self.limit_bytes * self.org_share
        return within_share and self.held_bytes + size <= self.limit_bytes

    async def acquire(self, org: str, size: int) -> None:
        """Hold so much of an org, when there is room and those before it have had their turn."""
        if org not in self._waiting and self.fits(org, size):
            self.take(org, size)
            return
        waiter = _Waiter(size)
        self._waiting.setdefault(org, deque()).append(waiter)
        try:
            await waiter.given.wait()
        except BaseException:
            if waiter.given.is_set():
                self.release(org, size)
            else:
                self._leave(org, waiter)
            raise

    def take(self, org: str, size: int) -> None:
        """Hold so much of an org, whatever is held."""
        self.held_bytes += size
        self._held[org] = self._held.get(org, 0) + size

    def release(self, org: str, size: int) -> None:
        """So much of an org is held no longer: whoever waits and fits now has its turn."""
        self.held_bytes -= size
        self._held[org] -= size
        assert self._held[org] >= 0, (org, self._held[org])
        if not self._held[org]:
            del self._held[org]
        self._turn()

    def _turn(self) -> None:
        passed = 0
        while self._waiting and passed < len(self._waiting):
            org, waiters = next(iter(self._waiting.items()))
            self._waiting.move_to_end(org)
            if not self.fits(org, waiters[0].size):
                passed += 1
                continue
            passed = 0
            waiter = waiters.popleft()
            if not waiters:
                del self._waiting[org]
            self.take(org, waiter.size)
            waiter.given.set()

    def _leave(self, org: str, waiter: _Waiter) -> None:
        waiters = self._waiting[org]
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[org]
        self._turn()
