"""Streams onto links to collectors, re-homed at a batch boundary when a collector dies.

Streams are opened and fed by whoever reads exporters. Which collector takes a stream is asked of a `Chooser`; each
collector's link is a task of the uplink's own nursery, so no task that carries data ever connects. A stream keeps
each batch until it is acknowledged as durable, and after any reconnect sends again from its lowest.

A collector that asks to be left (move, go-away) keeps its streams until the link to the next one is up: make before
break. A link that its last stream has left ends. A stream obeys one move in a while: whoever sends it round and round
costs it little. A collector that says hold is not dialled before its time, and not by all at the same moment.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
import trio
from attrs import define, field, frozen

from meter.batching import MAX_BATCH_BYTES, Draft
from meter.budget import Budget
from meter.target_link import TargetLink
from sapflow.errors import LinkError, Overloaded, Refused, Unreachable, first_of
from sapflow.link import Batch, Outbox, Sender, StreamId, Traffic
from sapflow.link.frames import Hint
from sapflow.runtime.seldom import Seldom

log = structlog.get_logger()

STEADY_S = 60.0
"""A link that lasted for so long is dialled again as if it had never failed."""
MOVE_PAUSE_S = 30.0
"""A stream that obeyed a move obeys none for so long."""


@frozen
class Target:
    """A collector, or a door to one."""

    name: str
    address: str
    want: str = ""
    """The collector that a door is asked for, in the hint."""


class ExporterStream(Protocol):
    """Where an intake puts what one exporter sends."""

    def is_full(self, most_bytes: int) -> bool:
        """Whether what an exporter sends that cannot be made to wait is to be dropped: `most_bytes` are in memory."""

    async def room(self) -> None:
        """Wait until an exporter that can wait may be read from."""

    async def put(self, draft: Draft) -> object:
        """Take a batch, waiting for room."""

    def put_now(self, draft: Draft) -> object:
        """As `put`, whatever is held: for the last batch of a session that has ended."""

    def end(self) -> None:
        """Nothing more will be put."""


class StreamSource(Protocol):
    """Gives an intake its streams: an uplink, or the spool in front of one."""

    def open_stream(self, org: str, exporter: str) -> ExporterStream:
        """A stream for an exporter's session."""


class Chooser(Protocol):
    """Where streams go."""

    def choose(self, stream: UplinkStream) -> Target | None:
        """The target for a stream; None when none can take it now."""

    def failed(self, target: str) -> None:
        """A link to this target broke or could not be made."""

    def released(self, stream: UplinkStream) -> None:
        """A stream is no more."""


@frozen
class FixedTarget:
    """Everything goes through one door; who is behind it is the door's affair."""

    target: Target

    def choose(self, stream: UplinkStream) -> Target | None:
        return self.target

    def failed(self, target: str) -> None:
        """There is no other."""

    def released(self, stream: UplinkStream) -> None:
        """Nothing is kept about streams."""


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
    on_acknowledged: Callable[[Batch], None] | None = None
    target: str | None = None
    link: TargetLink | None = None
    sender: Sender | None = None
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


class Uplink:
    """All streams of one process, and the links that carry them. `run()` is its task tree."""

    def __init__(
        self, chooser: Chooser, dial: Callable[[Target], Awaitable[trio.abc.Stream]], settings: UplinkSettings
    ) -> None:
        self.chooser = chooser
        self.settings = settings
        self.links: dict[str, TargetLink] = {}
        self.streams: set[UplinkStream] = set()
        self.budget = Budget(settings.budget_bytes, settings.org_share)
        self.taken = Traffic()
        self.given = Traffic()
        """With what was sent again."""
        self.refused: Refused | None = None
        self.was_refused = trio.Event()
        self.last_error = ""
        self.on_welcomed: Callable[[str, dict[str, Any]], None] | None = None
        """Told of a target whose link is up, and what it said."""
        self.on_moved: Callable[[str, str], None] | None = None
        """Told of a collector that a stream moves to, and its address."""
        self._dial = dial
        self._nursery: trio.Nursery | None = None
        self._not_before: dict[str, float] = {}
        self._homeless: dict[StreamId, UplinkStream] = {}
        self._wake = trio.Event()
        self._failures: dict[str, int] = {}
        self._lost = Seldom()

    def open_stream(self, org: str, exporter: str, stream_id: StreamId | None = None) -> UplinkStream:
        """A stream, with an id that was never used before if none is given."""
        stream = UplinkStream(
            stream_id or StreamId(os.urandom(16)), org, exporter, self.settings, self.budget, self.taken
        )
        self.streams.add(stream)
        self.rehome(stream)
        return stream

    def rehome(self, stream: UplinkStream) -> None:
        """Find the stream a collector anew; what it holds is sent again from its lowest."""
        stream.link = None
        stream.target = None
        self._homeless[stream.id] = stream
        self._wake.set()

    def move(self, stream: UplinkStream, target: Target) -> None:
        """Take a stream to another link; it stays where it is until that is up."""
        self._link(target).expect(stream)

    def moved(self, stream: UplinkStream, to: str, address: str) -> None:
        """The fleet wants a stream elsewhere: by the collector's own address if given, else through the same door."""
        assert stream.link is not None
        now = trio.current_time()
        if now < stream.moved_at + MOVE_PAUSE_S:
            log.info("move not obeyed", stream=stream.id.hex(), destination=to, reason="it moved just now")
            return
        stream.moved_at = now
        log.info("stream moves", stream=stream.id.hex(), source=stream.target, destination=to)
        if address and self.on_moved is not None:
            self.on_moved(to, address)
        self.move(stream, Target(to, address) if address else Target(to, stream.link.target.address, want=to))

    def leave(self, link: TargetLink, deadline_s: float) -> None:
        """A link is to be left: its streams move, and whatever is on it at the deadline finds its collector anew."""
        self.left(link)
        name = link.target.name
        # Many are told so at once: they do not all come to the next at once.
        self._hold(name, random.uniform(0, deadline_s / 2))
        for stream in link.streams():
            target = self.chooser.choose(stream)
            if target is not None:
                self.move(stream, target)
        assert self._nursery is not None
        self._nursery.start_soon(link.cut_after, deadline_s)

    def left(self, link: TargetLink) -> None:
        """A link is given no more streams."""
        if self.links.get(link.target.name) is link:
            del self.links[link.target.name]

    def retire(self, link: TargetLink) -> None:
        """A link is of no more use."""
        self.left(link)
        assert self._nursery is not None
        self._nursery.start_soon(link.close)

    @property
    def up(self) -> list[str]:
        """The targets that a link is up to."""
        return [name for name, link in self.links.items() if link.welcomed]

    def forget(self, stream: UplinkStream) -> None:
        """A stream that ended, with all of it durable."""
        self.streams.discard(stream)
        self._homeless.pop(stream.id, None)
        self.chooser.released(stream)

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes held in all streams."""
        return self.budget.held_bytes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Place streams and keep links until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                waiting = list(self._homeless.values())
                for stream in waiting:
                    if stream.ended and not len(stream.outbox):
                        self.forget(stream)
                        continue
                    target = self.chooser.choose(stream)
                    if target is None:
                        continue
                    del self._homeless[stream.id]
                    self._link(target).attach(stream)
                if self._homeless:
                    with trio.move_on_after(random.uniform(0.05, 0.2)):
                        await self._wake.wait()
                    self._wake.set()

    def take_homeless(self, stream: UplinkStream) -> bool:
        """Whether a stream has no link, and was waiting for one here: then it waits no longer."""
        return self._homeless.pop(stream.id, None) is not None

    def _link(self, target: Target) -> TargetLink:
        assert self._nursery is not None
        link = self.links.get(target.name)
        if link is None:
            link = self.links[target.name] = TargetLink(self, target)
            self._nursery.start_soon(self._carry, link)
        return link

    def _hold(self, name: str, seconds: float) -> None:
        self._not_before[name] = max(self._not_before.get(name, 0.0), trio.current_time() + seconds)

    def _pause_s(self, name: str) -> float:
        """Full jitter, but not before what the fleet said."""
        failures = self._failures.get(name, 0)
        settings = self.settings
        most = min(settings.backoff_most_s, settings.backoff_first_s * 2 ** min(failures, 20)) if failures else 0.0
        return max(random.uniform(0, most), self._not_before.pop(name, 0.0) - trio.current_time())

    async def _carry(self, link: TargetLink) -> None:
        name = link.target.name
        reason = ""
        began = trio.current_time()
        try:
            await trio.sleep(self._pause_s(name))
            await link.run(await self._dial(link.target))
        except* (Unreachable, Refused, Overloaded, LinkError, trio.BrokenResourceError) as group:
            error = first_of(group)
            reason = str(error) or type(error).__name__
            if isinstance(error, Refused):
                self.refused = error
                self.was_refused.set()
            if isinstance(error, Overloaded):
                link.hold_s = error.retry_after_s
        finally:
            failures = self._failures.pop(name, 0) if trio.current_time() - began < STEADY_S else 0
            # One that welcomes and then closes on what it is sent is not to be dialled without a pause either.
            if reason or not link.is_of_use or link.leaving:
                self._failures[name] = failures + 1
            if link.hold_s:
                self._hold(name, random.uniform(link.hold_s, 2 * link.hold_s))
            self.left(link)
            streams = link.leave()
            if not link.leaving:
                self.chooser.failed(name)
            for stream in streams:
                self.rehome(stream)
        if link.leaving and not streams:
            log.info("link left", target=name)
            return
        reason = reason or link.told or "closed by the other end"
        self.last_error = f"{name}: {reason}"
        if name not in self._failures:
            self._lost.over(name)
        if times := self._lost.again(name):
            log.warning("link lost", target=name, reason=reason, streams=len(streams), times=times)
