"""A memory channel bounded in bytes: between every two tasks that pass batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

import trio
from attrs import define

from sapflow.runtime.turns import Turns

T = TypeVar("T")


@define
class ChannelCounts:
    """What went through a channel; never goes down."""

    items_in: int = 0
    bytes_in: int = 0
    items_out: int = 0
    bytes_out: int = 0


class ByteChannel(Generic[T]):
    """`send` waits while `limit_bytes` are inside, `receive_all` takes everything that waits.

    First in, first out within a lane; lanes take turns, those that were empty first. One item larger than the limit
    passes when the channel is empty, so nothing can be stuck for its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.counts = ChannelCounts()
        self._items: Turns[T] = Turns()
        self._room = trio.lowlevel.ParkingLot()
        self._filled = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def fill_bytes(self) -> int:
        """Bytes inside."""
        return self._items.bytes

    def try_send(self, item: T, size: int, lane: Hashable = None) -> bool:
        """Put without waiting; False when there is no room."""
        if len(self._items) and self.fill_bytes + size > self.limit_bytes:
            return False
        self._items.put(item, size, lane)
        self.counts.items_in += 1
        self.counts.bytes_in += size
        self._filled.unpark()
        return True

    async def send(self, item: T, size: int, lane: Hashable = None) -> None:
        """Put, waiting for room."""
        while not self.try_send(item, size, lane):
            await self._room.park()

    @property
    def has_backlog(self) -> bool:
        """Whether a lane has more than its first turn's."""
        return self._items.has_backlog

    @property
    def brief(self) -> int:
        """How many lanes had no more than one turn's while others had a backlog; never goes down."""
        return self._items.brief

    async def receive_all(self, at_most_bytes: int, *, of_backlog_bytes: int | None = None) -> list[T]:
        """Everything that waits, up to about `at_most_bytes`, and so many of a backlog; at least one item."""
        while not len(self._items):
            await self._filled.park()
        return self._out(partial(self._items.take, of_backlog_bytes=of_backlog_bytes), at_most_bytes)

    async def receive_fresh(self, at_most_bytes: int) -> list[T]:
        """As `receive_all`, but only of lanes that were empty: whoever has a backlog waits."""
        while not self._items.has_fresh:
            await self._filled.park()
        return self._out(self._items.take_fresh, at_most_bytes)

    def take_all(self) -> list[T]:
        """Everything that is there, and be it nothing, without waiting."""
        return self._out(self._items.take, self.fill_bytes)

    def _out(self, take: Callable[[int], list[T]], at_most_bytes: int) -> list[T]:
        before = self.fill_bytes
        taken = take(at_most_bytes)
        self.counts.items_out += len(taken)
        self.counts.bytes_out += before - self.fill_bytes
        self._room.unpark_all()
        return taken
