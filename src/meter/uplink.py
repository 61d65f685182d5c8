"""Streams onto links to collectors, re-homed at a batch boundary when a collector dies.

Streams are opened and fed by whoever reads exporters. Which collector takes a stream is asked of a `Chooser`; each
collector's link is a task of the uplink's own nursery, so no task that carries data ever connects. A stream keeps
each batch until it is acknowledged as durable, and after any reconnect sends again from its lowest.
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

from meter.batching import Draft
from sapflow.errors import LinkError, Overloaded, Refused, Unreachable
from sapflow.link import (
    Acknowledged,
    Batch,
    Closed,
    Connection,
    CreditGranted,
    Event,
    GoAway,
    Hold,
    Moved,
    Outbox,
    Rewound,
    Sender,
    Side,
    StreamId,
    Welcomed,
)
from sapflow.link.frames import Hint
from sapflow.runtime.session import LinkSession

log = structlog.get_logger()


@frozen
class Target:
    """A collector, or a door to one."""

    name: str
    address: str


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
    outbox: Outbox = field(factory=Outbox)
    records_acknowledged: int = 0
    batches_acknowledged: int = 0
    ended: bool = False
    on_acknowledged: Callable[[Batch], None] | None = None
    bytes_put: int = 0
    target: str | None = None
    link: _TargetLink | None = None
    sender: Sender | None = None
    _changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def put(self, draft: Draft) -> int:
        """Number a batch and hand it to the link, waiting while too much is unacknowledged. Returns its number."""
        assert not self.ended
        while self.outbox.held_bytes >= self.settings.max_unacknowledged_bytes:
            await self._changed.park()
        return self.put_now(draft)

    def put_now(self, draft: Draft) -> int:
        """As `put`, whatever is held: for the last batch of a session that has ended."""
        seq = self.outbox.last + 1
        self.outbox.put(Batch(seq, draft.messages, draft.records, time.time_ns() // 1000, draft.payload))
        self.bytes_put += len(draft.payload)
        if self.link is not None and self.sender is not None:
            self.link.send(self.sender.pump())
        return seq

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
        self.outbox.acknowledged(through)
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
        self.links: dict[str, _TargetLink] = {}
        self.streams: set[UplinkStream] = set()
        self.bytes_out = 0
        self.refused: Refused | None = None
        self.was_refused = trio.Event()
        self._dial = dial
        self._homeless: dict[StreamId, UplinkStream] = {}
        self._wake = trio.Event()
        self._failures: dict[str, int] = {}

    def open_stream(self, org: str, exporter: str) -> UplinkStream:
        """A stream with an id that was never used before."""
        stream = UplinkStream(StreamId(os.urandom(16)), org, exporter, self.settings)
        self.streams.add(stream)
        self.rehome(stream)
        return stream

    def rehome(self, stream: UplinkStream) -> None:
        """Find the stream a collector anew; what it holds is sent again from its lowest."""
        stream.link = None
        stream.target = None
        self._homeless[stream.id] = stream
        self._wake.set()

    def forget(self, stream: UplinkStream) -> None:
        """A stream that ended, with all of it durable."""
        self.streams.discard(stream)
        self._homeless.pop(stream.id, None)
        self.chooser.released(stream)

    @property
    def unacknowledged_bytes(self) -> int:
        """Bytes held in all streams."""
        return sum(stream.outbox.held_bytes for stream in self.streams)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Place streams and keep links until cancelled."""
        async with trio.open_nursery() as nursery:
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
                    stream.target = target.name
                    link = self.links.get(target.name)
                    if link is None:
                        link = self.links[target.name] = _TargetLink(self, target)
                        nursery.start_soon(self._carry, link)
                    link.attach(stream)
                if self._homeless:
                    with trio.move_on_after(random.uniform(0.05, 0.2)):
                        await self._wake.wait()
                    self._wake.set()

    async def _carry(self, link: _TargetLink) -> None:
        name = link.target.name
        failures = self._failures.get(name, 0)
        reason = "closed by the other end"
        settings = self.settings
        try:
            if failures:
                most = min(settings.backoff_most_s, settings.backoff_first_s * 2 ** min(failures, 20))
                await trio.sleep(random.uniform(0, most))
            await link.run(await self._dial(link.target))
        except* Unreachable as group:
            reason = str(group.exceptions[0])
        except* (Refused, Overloaded, LinkError) as group:
            error = group.exceptions[0]
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            reason = str(error)
            if isinstance(error, Refused):
                self.refused = error
                self.was_refused.set()
        finally:
            self._failures[name] = 0 if link.welcomed else failures + 1
            del self.links[name]
            streams = link.leave()
            self.chooser.failed(name)
            for stream in streams:
                self.rehome(stream)
        log.warning("link lost", target=name, reason=reason, streams=len(streams))
        if link.hold_s:
            await trio.sleep(random.uniform(0, link.hold_s))


class _TargetLink:
    """The link to one collector and the streams on it."""

    def __init__(self, uplink: Uplink, target: Target) -> None:
        self.target = target
        self.welcomed = False
        self.hold_s = 0.0
        self._uplink = uplink
        self._streams: dict[int, UplinkStream] = {}
        self._waiting: list[UplinkStream] = []
        self._session: LinkSession | None = None

    def attach(self, stream: UplinkStream) -> None:
        """Carry this stream as soon as the link is up."""
        if self._session is None or not self.welcomed:
            self._waiting.append(stream)
            return
        sender = Sender(
            self._session.connection, stream.outbox, stream=stream.id, org=stream.org, exporter=stream.exporter
        )
        self._streams[sender.handle] = stream
        stream.link, stream.sender = self, sender
        self.send([sender.opening, *sender.pump()])
        if stream.ended:
            stream.acknowledged(0)

    def detach(self, stream: UplinkStream) -> None:
        """The stream ended and all of it is durable."""
        self._let_go(stream)
        self._uplink.forget(stream)

    def leave(self) -> list[UplinkStream]:
        """The link is gone: its streams, which need another."""
        streams = [*self._streams.values(), *self._waiting]
        self._streams, self._waiting, self._session = {}, [], None
        for stream in streams:
            stream.link = stream.sender = None
        return streams

    def send(self, pieces: list[bytes]) -> None:
        """Queue bytes for the link."""
        assert self._session is not None
        self._session.send(*pieces)

    async def run(self, stream: trio.abc.Stream) -> None:
        """Speak until either end closes."""
        uplink = self._uplink
        settings = uplink.settings
        connection = Connection(Side.CLIENT)
        session = LinkSession(
            stream,
            connection,
            peer=f"{self.target.name} ({self.target.address})",
            idle_timeout_s=settings.idle_timeout_s,
            max_unsent_bytes=settings.max_unsent_bytes,
            on_out=self._count,
        )
        self._session = session
        async with session.open():
            session.send(connection.hello(settings.hint, **settings.hello))
            async for events in session.events():
                for event in events:
                    self._handle(event)
                if self.hold_s:
                    return

    def _count(self, size: int) -> None:
        self._uplink.bytes_out += size

    def _handle(self, event: Event) -> None:
        match event:
            case Acknowledged(handle, through):
                if (stream := self._streams.get(handle)) is not None:
                    stream.acknowledged(through)
            case CreditGranted(handle, _):
                if (stream := self._streams.get(handle)) is not None and stream.sender is not None:
                    self.send(stream.sender.pump())
            case Rewound(handle, _):
                if (stream := self._streams.get(handle)) is not None and stream.sender is not None:
                    stream.sender.reset()
                    self.send(stream.sender.pump())
            case Welcomed():
                self.welcomed = True
                waiting, self._waiting = self._waiting, []
                for stream in waiting:
                    self.attach(stream)
            case Moved(handle, to, _):
                if (stream := self._streams.get(handle)) is not None:
                    log.info("stream moves", stream=stream.id.hex(), source=self.target.name, destination=to)
                    self._let_go(stream)
                    self._uplink.rehome(stream)
            case Hold(seconds, reason):
                log.info("told to hold", target=self.target.name, seconds=seconds, reason=reason)
                self.hold_s = max(seconds, 0.01)
            case GoAway(deadline_s, reason):
                log.info("told to leave", target=self.target.name, deadline_s=deadline_s, reason=reason)
                for stream in list(self._streams.values()):
                    self._let_go(stream)
                    self._uplink.rehome(stream)
            case Closed(code, reason):
                log.info("link closed", target=self.target.name, code=code, reason=reason)
            case _:
                log.debug("event not for an uplink", target=self.target.name, got=type(event).__name__)

    def _let_go(self, stream: UplinkStream) -> None:
        assert self._session is not None
        assert stream.sender is not None
        self._session.send(self._session.connection.end(stream.sender.handle))
        del self._streams[stream.sender.handle]
        stream.link = stream.sender = None
