"""A memory channel bounded in bytes: between every two tasks that pass batches."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio
from attrs import define

T = TypeVar("T")


@define
class ChannelCounts:
    """What went through a channel; never goes down."""

    items_in: int = 0
    bytes_in: int = 0
    items_out: int = 0
    bytes_out: int = 0


class ByteChannel(Generic[T]):
    """First in, first out; `send` waits while `limit_bytes` are inside, `receive_all` takes everything that waits.

    One item larger than the limit passes when the channel is empty, so nothing can be stuck for its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.fill_bytes = 0
        self.counts = ChannelCounts()
        self._items: deque[tuple[T, int]] = deque()
        self._room = trio.lowlevel.ParkingLot()
        self._filled = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    def try_send(self, item: T, size: int) -> bool:
        """Put without waiting; False when there is no room."""
        if self._items and self.fill_bytes + size > self.limit_bytes:
            return False
        self._items.append((item, size))
        self.fill_bytes += size
        self.counts.items_in += 1
        self.counts.bytes_in += size
        self._filled.unpark()
        return True

    async def send(self, item: T, size: int) -> None:
        """Put, waiting for room."""
        while not self.try_send(item, size):
            await self._room.park()

    async def receive_all(self, at_most_bytes: int) -> list[T]:
        """Everything that waits, up to about `at_most_bytes`, at least one item."""
        while not self._items:
            await self._filled.park()
        taken: list[T] = []
        total = 0
        while self._items and (not taken or total + self._items[0][1] <= at_most_bytes):
            item, size = self._items.popleft()
            taken.append(item)
            total += size
        self.fill_bytes -= total
        self.counts.items_out += len(taken)
        self.counts.bytes_out += total
        self._room.unpark_all()
        return taken
