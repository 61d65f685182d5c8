"""Items that wait in lanes, an org's in one: taken in turns, so that nobody waits behind all that another has queued.

Within a lane they stay in order. Pure; the channel between tasks and the writer of a link are made of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Of each lane one item, and then again from the first; a lane without items is forgotten.

    Lanes that were empty come first: they are *fresh* until their first turn. What is left after it is *backlog*.
    """

    def __init__(self) -> None:
        self.bytes = 0
        """Of the items inside."""
        self.lone = 0
        """Items that were all that their lane had at its first turn; never goes down."""
        self._lanes: dict[Hashable, deque[tuple[T, int]]] = {}
        self._fresh: deque[Hashable] = deque()
        self._backlog: deque[Hashable] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def has_fresh(self) -> bool:
        """Whether a lane waits for its first turn."""
        return bool(self._fresh)

    @property
    def has_backlog(self) -> bool:
        """Whether a lane has more than it was given its first turn for."""
        return bool(self._backlog)

    def put(self, item: T, size: int, lane: Hashable) -> None:
        """Last in its lane."""
        items = self._lanes.get(lane)
        if items is None:
            items = self._lanes[lane] = deque()
            self._fresh.append(lane)
        items.append((item, size))
        self.bytes += size
        self._count += 1

    def take(self, at_most_bytes: int) -> list[T]:
        """The next items, up to so many bytes; but at least one of the fresh, and one of the backlog that there was: so
        neither can wait for the other for ever."""
        taken: list[T] = []
        least = min(1, len(self._backlog))
        room = self._take(self._fresh, at_most_bytes, 1, taken)
        self._take(self._backlog, room if not self._fresh else -1, least, taken)
        return taken

    def take_fresh(self, at_most_bytes: int) -> list[T]:
        """As `take`, but nothing of the backlog."""
        taken: list[T] = []
        self._take(self._fresh, at_most_bytes, 1, taken)
        return taken

    def _take(self, lanes: deque[Hashable], room: int, least: int, taken: list[T]) -> int:
        """Take from lanes in turn, `least` items at least: how much room is left."""
        fresh = lanes is self._fresh
        while lanes:
            items = self._lanes[lanes[0]]
            item, size = items[0]
            if least <= 0 and size > room:
                break
            lane = lanes.popleft()
            items.popleft()
            if items:
                self._backlog.append(lane)
            else:
                del self._lanes[lane]
                self.lone += fresh
            taken.append(item)
            least -= 1
            room -= size
            self.bytes -= size
            self._count -= 1
        return room
