"""The link to one collector, or to a door, and the streams on it: events of the link into what streams do.

Whoever runs it owns it: `run` speaks until either end closes. Where streams go next is the uplink's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import evolve

from sapflow.link import (
    Acknowledged,
    BatchRefused,
    Close,
    Closed,
    Connection,
    CreditGranted,
    Event,
    GoAway,
    Hold,
    Moved,
    Rewound,
    Sender,
    Side,
    Welcomed,
)
from sapflow.link.frames import CAN_REPLACE
from sapflow.runtime.session import LinkSession

if TYPE_CHECKING:
    from meter.choosing import Target
    from meter.uplink import Uplink
    from meter.uplink_stream import UplinkStream

log = structlog.get_logger()


class TargetLink:
    """The link to one collector and the streams on it."""

    def __init__(self, uplink: Uplink, target: Target) -> None:
        self.target = target
        self.welcomed = False
        self.leaving = False
        self.hold_s = 0.0
        self.told = ""
        self.progress_at = trio.current_time()
        """When it last acknowledged anything, or came up."""
        self.is_of_use = False
        """Whether it acknowledged anything."""
        self._uplink = uplink
        self._streams: dict[int, UplinkStream] = {}
        self._waiting: list[UplinkStream] = []
        self._expected: list[UplinkStream] = []
        self._session: LinkSession | None = None

    def streams(self) -> list[UplinkStream]:
        """Those that it carries."""
        return list(self._streams.values())

    def expect(self, stream: UplinkStream) -> None:
        """Carry this stream as soon as the link is up; until then it stays where it is."""
        if not self.welcomed:
            stream.heading = self.target.name
            self._expected.append(stream)
        elif stream.link is not None:
            old = stream.link
            if old is not self:
                old.let_go(stream)
                self.attach(stream)
                old.end_if_empty()
        elif self._uplink.take_homeless(stream):
            self.attach(stream)

    def attach(self, stream: UplinkStream) -> None:
        """Carry this stream as soon as the link is up; it is on no other."""
        stream.target, stream.heading = self.target.name, None
        if self._session is None or not self.welcomed:
            self._waiting.append(stream)
            return
        sender = Sender(
            self._session.connection,
            stream.outbox,
            stream=stream.id,
            org=stream.org,
            exporter=stream.exporter,
            traffic=self._uplink.given,
        )
        self._streams[sender.handle] = stream
        stream.link, stream.sender = self, sender
        self.send(stream, [sender.opening, *sender.pump()])
        if stream.ended:
            stream.acknowledged(0)

    def detach(self, stream: UplinkStream) -> None:
        """The stream ended and all of it is durable."""
        self.let_go(stream)
        self._uplink.forget(stream)

    def leave(self) -> list[UplinkStream]:
        """The link is gone: its streams, which need another."""
        streams = [*self._streams.values(), *self._waiting]
        for stream in (*streams, *self._expected):
            stream.heading = None
        self._streams, self._waiting, self._expected, self._session = {}, [], [], None
        for stream in streams:
            stream.link = stream.sender = None
        return streams

    def send(self, stream: UplinkStream, pieces: list[bytes]) -> None:
        """Queue what is said of a stream."""
        assert self._session is not None
        self._session.send(*pieces, lane=stream.org)

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
        )
        self._session = session
        async with session.open():
            hint = evolve(settings.hint, want=self.target.want) if self.target.want else settings.hint
            session.send(connection.hello(hint, can=[CAN_REPLACE], **settings.hello))
            async for events in session.events():
                for event in events:
                    self._handle(event)
                if self.hold_s:
                    return

    def _handle(self, event: Event) -> None:
        match event:
            case Acknowledged(handle, through):
                self.progress_at = trio.current_time()
                self.is_of_use = True
                if (stream := self._streams.get(handle)) is not None:
                    stream.acknowledged(through)
            case CreditGranted(handle, _):
                if (stream := self._streams.get(handle)) is not None and stream.sender is not None:
                    self.send(stream, stream.sender.pump())
            case Rewound(handle, _):
                if (stream := self._streams.get(handle)) is not None and stream.sender is not None:
                    stream.sender.reset()
                    self.send(stream, stream.sender.pump())
            case BatchRefused(handle, seq, reason):
                if (stream := self._streams.get(handle)) is not None and stream.sender is not None:
                    self._uplink.batch_refused(stream, seq, reason, self.target.name)
                    stream.sender.go_back(seq)
                    self.send(stream, stream.sender.pump())
            case Welcomed(fields):
                self._welcomed(fields)
            case Moved(handle, to, address):
                if (stream := self._streams.get(handle)) is not None:
                    self._uplink.moved(stream, to, address)
            case Hold(seconds, reason):
                log.info("told to hold", target=self.target.name, seconds=seconds, reason=reason)
                self.hold_s, self.told = max(seconds, 0.01), f"told to hold for {seconds:g} s: {reason}"
            case GoAway(deadline_s, reason):
                log.info("told to leave", target=self.target.name, deadline_s=deadline_s, reason=reason)
                self.leaving = True
                self._uplink.leave(self, deadline_s)
            case Closed(code, reason):
                log.info("link closed", target=self.target.name, code=code, reason=reason)
                self.told = f"closed by the other end: {reason}"
            case _:
                log.debug("event not for an uplink", target=self.target.name, got=type(event).__name__)

    def _welcomed(self, fields: dict[str, Any]) -> None:
        self.welcomed = True
        self.progress_at = trio.current_time()
        if self._uplink.on_welcomed is not None:
            self._uplink.on_welcomed(self.target.name, fields)
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            self.attach(stream)
        expected, self._expected = self._expected, []
        for stream in expected:
            self.expect(stream)

    def abandon(self, stream: UplinkStream) -> None:
        """Carry this stream no longer, without a word to the other end: another process goes on with it."""
        self._streams = {handle: one for handle, one in self._streams.items() if one is not stream}
        self._waiting = [one for one in self._waiting if one is not stream]
        self._expected = [one for one in self._expected if one is not stream]
        if stream.link is self:
            stream.link = stream.sender = None

    def let_go(self, stream: UplinkStream) -> None:
        """Carry this stream no longer; a link that is to be left ends with its last one."""
        assert self._session is not None
        assert stream.sender is not None
        self.send(stream, [self._session.connection.end(stream.sender.handle)])
        del self._streams[stream.sender.handle]
        stream.link = stream.sender = None
        if self.leaving and not self._streams:
            self._session.cut()

    def end_if_empty(self) -> None:
        """A link whose last stream was moved away is of no more use."""
        if not (self._streams or self._waiting or self._expected or self.leaving):
            self.leaving = True
            self._uplink.retire(self)

    async def close(self) -> None:
        """Say so, and end the link; in a second whatever happens."""
        if self._session is not None:
            await self._session.finish(Close.NORMAL, "its streams were moved")

    def cut(self) -> None:
        """End the link now."""
        if self._session is not None:
            self._session.cut()
