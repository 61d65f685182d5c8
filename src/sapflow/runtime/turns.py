"""Items that wait in lanes, an org's in one: taken in turns, so that nobody waits behind all that another has queued.

Within a lane they stay in order. Pure; the channel between tasks and the writer of a link are made of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


TURN_BYTES = 64 << 10
"""What a lane may give in one turn; an item that is larger is a turn by itself."""


class Turns(Generic[T]):
    """A turn for each lane, and then again from the first; a lane without items is forgotten.

    Lanes that were empty come first: they are *fresh* until their first turn. What is left after it is *backlog*.
    """

    def __init__(self, turn_bytes: int = TURN_BYTES) -> None:
        self._turn_bytes = turn_bytes
        self.bytes = 0
        """Of the items inside."""
        self.brief = 0
        """Lanes that had no more than one turn's while others had a backlog; never goes down."""
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
        """Whether a lane has more than its first turn's."""
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

    def take(self, at_most_bytes: int, *, of_backlog_bytes: int | None = None) -> list[T]:
        """The next items, about so many bytes, and so many of the backlog; but at least one of the fresh, and of the
        backlog that there was a quarter as much and one item: so neither can wait for the other for ever."""
        taken: list[T] = []
        waited = bool(self._backlog)
        room = self._take(self._fresh, at_most_bytes, 1, taken)
        if self._fresh:
            room = 0
        if waited:
            room = max(room, at_most_bytes // 4)
        if of_backlog_bytes is not None:
            room = min(room, of_backlog_bytes)
        if waited or not self._fresh:
            self._take(self._backlog, room, int(waited), taken)
        return taken

    def take_fresh(self, at_most_bytes: int) -> list[T]:
        """As `take`, but nothing of the backlog."""
        taken: list[T] = []
        self._take(self._fresh, at_most_bytes, 1, taken)
        return taken

    def _take(self, lanes: deque[Hashable], room: int, least: int, taken: list[T]) -> int:
        """Give lanes their turns, of `least` items at least: how much room is left."""
        whole = min(self._turn_bytes, room)
        while lanes:
            lane = lanes[0]
            items, turn, before = self._lanes[lane], whole, len(taken)
            while items and (items[0][1] <= room or least > 0) and (items[0][1] <= turn or len(taken) == before):
                item, size = items.popleft()
                taken.append(item)
                least -= 1
                turn -= size
                room -= size
                self.bytes -= size
            self._count -= len(taken) - before
            if len(taken) == before or (lanes is self._fresh and items and items[0][1] <= turn):
                break  # there is no more room; who had less than a turn of it goes on with the next
            lanes.popleft()
            if items:
                self._backlog.append(lane)
            else:
                del self._lanes[lane]
                self.brief += lanes is self._fresh and bool(self._backlog)
        return room
