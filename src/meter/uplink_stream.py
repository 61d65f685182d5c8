"""One stream of an uplink: its batches, each kept until it is acknowledged, and whether more may come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field, frozen

from meter.batching import MAX_BATCH_BYTES, Draft
from meter.budget import Budget
from meter.left import LeftStream
from meter.quarantine import emptied
from sapflow.errors import LinkError
from sapflow.link import Batch, Close, Outbox, Sender, StreamId, Traffic
from sapflow.link.frames import Hint

if TYPE_CHECKING:
    from meter.target_link import TargetLink


@frozen
class UplinkSettings:
    """How an uplink presents itself, and its bounds."""

    hello: dict[str, Any]
    hint: Hint = Hint()
    connect_timeout_s: float = 2.0
    idle_timeout_s: float = 30.0
    max_unacknowledged_bytes: int = 4 << 20
    """Of one stream."""
    budget_bytes: int = 256 << 20
    """Unacknowledged, of all streams; of one org at most its share."""
    org_share: float = 0.5
    max_unsent_bytes: int = 256 << 20
    backoff_first_s: float = 0.05
    backoff_most_s: float = 5.0


@define(eq=False)
class UplinkStream:
    """The ordered batches of one exporter's transport session, each kept until it is durable."""

    id: StreamId
    org: str
    exporter: str
    settings: UplinkSettings
    budget: Budget
    taken: Traffic
    outbox: Outbox = field(factory=Outbox)
    records_acknowledged: int = 0
    batches_acknowledged: int = 0
    taken_bytes: int = 0
    """Of all batches, for its rate."""
    moved_at: float = float("-inf")
    """When the fleet last asked for it elsewhere, and it obeyed."""
    ended: bool = False
    on_left: Callable[[UplinkStream], None] | None = None
    """Told when another process goes on with it."""
    on_acknowledged: Callable[[Batch], None] | None = None
    on_replaced: Callable[[Batch, Batch], None] | None = None
    """Told of a batch that no collector takes, and what goes in its place."""
    target: str | None = None
    heading: str | None = None
    """Where it goes when the link there is up, while it is still on another."""
    link: TargetLink | None = None
    sender: Sender | None = None
    _emptied: int = 0
    """The last that was refused."""
    _changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def is_full(self, most_bytes: int) -> bool:
        """Whether as much is unacknowledged as may be."""
        return self.outbox.held_bytes >= most_bytes or not self.budget.fits(self.org, 0)

    async def room(self) -> None:
        """Wait while too much is unacknowledged, of this stream or of all."""
        while self.outbox.held_bytes >= self.settings.max_unacknowledged_bytes:
            await self._changed.park()
        await self.budget.acquire(self.org, 0)

    async def put(self, draft: Draft) -> int:
        """Number a batch and hand it to the link, waiting while too much is unacknowledged. Returns its number."""
        assert not self.ended
        while self.outbox.held_bytes >= self.settings.max_unacknowledged_bytes:
            await self._changed.park()
        await self.budget.acquire(self.org, draft.size)
        return self._put(draft)

    def put_now(self, draft: Draft) -> int:
        """As `put`, whatever is held: for the last batch of a session that has ended."""
        self.budget.take(self.org, draft.size)
        return self._put(draft)

    def offer(self, batch: Batch) -> None:
        """Hand a batch to the link that has its number already; the next must have the next."""
        self.budget.take(self.org, batch.size)
        self._hand_on(batch)

    def _put(self, draft: Draft) -> int:
        seq = self.outbox.last + 1
        received_us = time.time_ns() // 1000
        self._hand_on(Batch(seq, draft.messages, draft.records, received_us, draft.payload, draft.account))
        return seq

    def _hand_on(self, batch: Batch) -> None:
        assert batch.size <= MAX_BATCH_BYTES, (self.exporter, batch.size)
        self.outbox.put(batch)
        self.taken.add(batch)
        self.taken_bytes += batch.size
        if self.link is not None and self.sender is not None:
            self.link.send(self, self.sender.pump())

    async def drained(self) -> None:
        """Wait until all that was put is durable."""
        while len(self.outbox):
            await self._changed.park()

    def end(self) -> None:
        """Nothing more will be put; what is held is still delivered."""
        self.ended = True
        self.acknowledged(0)

    async def settled(self) -> None:
        """As `drained`: what is not durable is in memory alone."""
        await self.drained()

    def state(self) -> LeftStream | None:
        """What a successor needs to go on with it."""
        outbox = self.outbox
        return LeftStream(self.id, outbox.last, outbox.lowest - 1, tuple(outbox), self.target or "")

    def leave(self) -> None:
        """A successor goes on with it: what is held is sent by that one, under the same numbers."""
        self.ended = True
        if self.on_left is not None:
            self.on_left(self)
        if held := self.outbox.acknowledged(self.outbox.last):
            self.budget.release(self.org, held)
        self._changed.unpark_all()

    def resume(self, left: LeftStream) -> None:
        """Go on where another process left it."""
        self.outbox.last = left.last - len(left.batches)
        for batch in left.batches:
            self.offer(batch)

    def refused(self, seq: int, reason: str) -> Batch | None:
        """No collector takes this batch: one without records goes in its place. The batch; None if it is not held.

        Raises LinkError when what went in its place is refused too.
        """
        batch = self.outbox.at(seq)
        if batch is None:
            return None
        if seq == self._emptied:
            what = f"batch {seq} of stream {self.id.hex()} is refused again, though it is empty: {reason}"
            raise LinkError(what, code=Close.PROTOCOL)
        self._emptied = seq
        replaced = emptied(batch, reason)
        change = self.outbox.replace(replaced)
        if change > 0:
            self.budget.take(self.org, change)
        else:
            self.budget.release(self.org, -change)
        if self.on_replaced is not None:
            self.on_replaced(batch, replaced)
        return batch

    def acknowledged(self, through: int) -> None:
        """All up to `through` is durable."""
        for batch in self.outbox:
            if batch.seq > through:
                break
            self.records_acknowledged += batch.records
            self.batches_acknowledged += 1
            if self.on_acknowledged is not None:
                self.on_acknowledged(batch)
        released = self.outbox.acknowledged(through)
        if released:
            self.budget.release(self.org, released)
        self._changed.unpark_all()
        if self.ended and not len(self.outbox) and self.link is not None:
            self.link.detach(self)
