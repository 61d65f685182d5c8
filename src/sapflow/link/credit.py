"""A receiver's budget, granted to streams in fair turns.

Rule 1: bytes granted and not yet used, plus bytes received and not yet released, never exceed the budget.
Rule 2: an org's part of that never exceeds its share, so one whose consumer is gone cannot starve the rest.
Rule 3: nothing is granted that was not asked for; idle streams hold no budget, however many there are.
Rule 4: what is asked is granted whole or not yet. Senders ask for whole batches, so no budget is lost in pieces too
        small to use; two streams that each hold half of what they need would wait for each other for ever.
Orgs take turns, and inside an org its streams do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from attrs import define, field

from sapflow.errors import LinkError
from sapflow.link.frames import Close


@define
class _Stream:
    org: str
    granted: int = 0
    received: int = 0
    wanted: int = 0
    queued: bool = False


@define
class _Org:
    used: int = 0
    waiting: deque[Hashable] = field(factory=deque)


class CreditPool:
    """Grants of one receiver. `key` names a stream on a link: any hashable."""

    def __init__(self, budget_bytes: int, *, org_share: float = 0.5, max_want_bytes: int = 4 << 20) -> None:
        self.budget_bytes = budget_bytes
        self.org_bytes = max(max_want_bytes, int(budget_bytes * org_share))
        self.max_want_bytes = max_want_bytes
        if budget_bytes < max_want_bytes:
            raise ValueError(f"a budget of {budget_bytes:,} bytes cannot hold one grant of {max_want_bytes:,}")
        self.used_bytes = 0
        self._streams: dict[Hashable, _Stream] = {}
        self._orgs: dict[str, _Org] = {}
        self._turns: deque[str] = deque()

    def open(self, key: Hashable, org: str) -> None:
        """A stream begins; it has no credit."""
        assert key not in self._streams, key
        self._streams[key] = _Stream(org)

    def close(self, key: Hashable) -> None:
        """A stream or its link ended: what it was granted and did not use is free again."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            self.release(stream.org, stream.granted - stream.received)

    def want(self, key: Hashable, limit: int) -> None:
        """A stream asks to send up to `limit` bytes in all. Raises LinkError when that is too much at once."""
        stream = self._streams[key]
        if limit - stream.granted > self.max_want_bytes:
            raise LinkError(
                f"a stream asks for {limit - stream.granted:,} bytes at once (limit {self.max_want_bytes:,})",
                code=Close.PROTOCOL,
            )
        stream.wanted = max(stream.wanted, limit)
        self._enqueue(key, stream)

    def received(self, key: Hashable, size: int) -> None:
        """`size` granted bytes came; they are held until released."""
        stream = self._streams[key]
        stream.received += size
        assert stream.received <= stream.granted, (key, stream)

    def release(self, org: str, size: int) -> None:
        """`size` bytes of an org are no longer held here."""
        self.used_bytes -= size
        assert self.used_bytes >= 0
        state = self._orgs.get(org)
        if state is not None:
            state.used -= size
            assert state.used >= 0
            if state.used == 0 and not state.waiting and org not in self._turns:
                del self._orgs[org]

    def turn(self) -> list[tuple[Hashable, int]]:
        """What can be granted now: (key, cumulative limit) pairs to tell the senders."""
        grants = []
        skipped = 0
        while self._turns and skipped < len(self._turns):
            name = self._turns.popleft()
            org = self._orgs[name]
            while org.waiting and org.waiting[0] not in self._streams:
                org.waiting.popleft()
            if not org.waiting:
                if org.used == 0:
                    del self._orgs[name]
                continue
            key = org.waiting[0]
            stream = self._streams[key]
            size = stream.wanted - stream.granted
            if size > self.budget_bytes - self.used_bytes:
                # Whoever is first waits for room; passing it over would starve large asks behind small ones.
                self._turns.appendleft(name)
                break
            if size > self.org_bytes - org.used:
                self._turns.append(name)
                skipped += 1
                continue
            skipped = 0
            org.waiting.popleft()
            stream.queued = False
            stream.granted += size
            org.used += size
            self.used_bytes += size
            grants.append((key, stream.granted))
            if org.waiting:
                self._turns.append(name)
        return grants

    def _enqueue(self, key: Hashable, stream: _Stream) -> None:
        if stream.queued or stream.wanted <= stream.granted:
            return
        stream.queued = True
        org = self._orgs.setdefault(stream.org, _Org())
        org.waiting.append(key)
        if len(org.waiting) == 1 and stream.org not in self._turns:
            self._turns.append(stream.org)
