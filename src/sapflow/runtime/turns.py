"""Items that wait in lanes, an org's in one: taken in turns, so that nobody waits behind all that another has queued.

Within a lane they stay in order. Pure; the channel between tasks and the writer of a link are made of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """One item of each lane, and then again from the first; a lane without items is forgotten."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of the items inside."""
        self._lanes: dict[Hashable, deque[tuple[T, int]]] = {}
        self._order: deque[Hashable] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, item: T, size: int, lane: Hashable) -> None:
        """Last in its lane; a lane that was empty comes last."""
        items = self._lanes.get(lane)
        if items is None:
            items = self._lanes[lane] = deque()
            self._order.append(lane)
        items.append((item, size))
        self.bytes += size
        self._count += 1

    def take(self, at_most_bytes: int) -> list[T]:
        """The next items, up to so many bytes, but at least one if there is one."""
        taken: list[T] = []
        total = 0
        while self._order:
            lane = self._order[0]
            items = self._lanes[lane]
            item, size = items[0]
            if taken and total + size > at_most_bytes:
                break
            items.popleft()
            self._order.popleft()
            if items:
                self._order.append(lane)
            else:
                del self._lanes[lane]
            taken.append(item)
            total += size
        self.bytes -= total
        self._count -= len(taken)
        return taken
