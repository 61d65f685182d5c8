"""Batches that have their number and are not durable yet, in the order that they are written: values only.

Orgs take turns, so that one that brings much does not hold up the others; inside an org what came first is first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import attrs
from attrs import define, field, frozen

from meter.spooled import Put
from sapflow.link import StreamId

Fits = Callable[[str, int, Counter[str]], bool]
"""Whether so much more of an org may be written, in a transaction that has so much of each already."""


@frozen(slots=True)
class _Waiting:
    put: Put
    charge: int
    """What it will take on disk."""


@define(eq=False)
class _Queue:
    waiting: deque[_Waiting] = field(factory=deque)
    used_bytes: int = 0
    charge: int = 0


@define
class Pending:
    """What waits, by org; what a transaction took counts until it is `done`."""

    used_bytes: int = 0
    """In memory."""
    charge: int = 0
    """On disk, when all is there."""
    _queues: dict[str, _Queue] = field(factory=dict)
    _taken: list[tuple[str, _Waiting]] = field(factory=list)

    def bytes_of(self, org: str) -> int:
        """An org's part of `used_bytes`."""
        return self._queues[org].used_bytes if org in self._queues else 0

    def charge_of(self, org: str) -> int:
        """An org's part of `charge`."""
        return self._queues[org].charge if org in self._queues else 0

    def add(self, org: str, put: Put, charge: int) -> None:
        """One more."""
        queue = self._queues.setdefault(org, _Queue())
        queue.waiting.append(_Waiting(put, charge))
        self._count(queue, put.batch.size, charge)

    def may_take(self, fits: Fits) -> bool:
        """Whether `take` would give any."""
        nothing: Counter[str] = Counter()
        return any(queue.waiting and fits(org, queue.waiting[0].charge, nothing) for org, queue in self._queues.items())

    def take(self, most_bytes: int, fits: Fits) -> list[Put]:
        """About so much, for a transaction; an org of which nothing more fits is passed over."""
        turns = deque(org for org, queue in self._queues.items() if queue.waiting)
        by_org: Counter[str] = Counter()
        size = 0
        while turns and size < most_bytes:
            org = turns.popleft()
            waiting = self._queues[org].waiting
            if not fits(org, waiting[0].charge, by_org):
                continue
            one = waiting.popleft()
            self._taken.append((org, one))
            by_org[org] += one.charge
            size += one.put.batch.size
            if waiting:
                turns.append(org)
        for org in by_org:  # those that had no turn in this transaction come first in the next
            self._queues[org] = self._queues.pop(org)
        return [one.put for _, one in self._taken]

    def put_back(self) -> None:
        """What was taken was not written, and comes again."""
        for org, one in reversed(self._taken):
            self._queues[org].waiting.appendleft(one)
        self._taken = []

    def done(self) -> None:
        """What was taken is durable."""
        for org, one in self._taken:
            queue = self._queues[org]
            self._count(queue, -one.put.batch.size, -one.charge)
            if not (queue.waiting or queue.used_bytes):
                del self._queues[org]
        self._taken = []

    def rename(self, org: str, old: StreamId, new: StreamId) -> None:
        """What waits of a stream is of another now."""
        if (queue := self._queues.get(org)) is not None:
            queue.waiting = deque(
                attrs.evolve(one, put=attrs.evolve(one.put, stream=new)) if one.put.stream == old else one
                for one in queue.waiting
            )

    def _count(self, queue: _Queue, size: int, charge: int) -> None:
        queue.used_bytes += size
        queue.charge += charge
        self.used_bytes += size
        self.charge += charge
