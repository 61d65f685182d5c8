"""Reading an org's records: from a position in the log, and then live.

Drops what it has seen already by (stream, number), gives gaps as what they are, and holds one feed of the door's at a
time, at most `MAX_FEED_BYTES`.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
from attrs import field, frozen

from sapflow.client.connect import connect
from sapflow.entry import CorruptEntry, decode_entry
from sapflow.errors import LinkError, Refused, Unreachable
from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.link import BatchReceived, Closed, Connection, CreditWanted, Event, Noticed, Opened, Side, Welcomed
from sapflow.link.frames import Close, Hint, LinkLimits

ENTRY = struct.Struct("!QI")
MAX_FEED_BYTES = 4 << 20
PING_INTERVAL_S = 10.0
SILENCE_S = 35.0
SAY_S = 5.0
MAX_STREAMS = 65_536
"""Whose last number is kept, to know repeats by: those heard of last."""


@frozen
class ConsumedBatch:
    """One stored batch: whole IPFIX messages, self-contained, and where they stand in the org's log."""

    position: int
    org: str
    stream: bytes
    seq: int
    exporter: str
    received_us: int
    messages: int
    records: int
    payload: bytes = field(repr=False)

    def columns(self) -> list[FlowBatch]:
        """The records as numpy columns, one FlowBatch for all templates of the same fields."""
        return decode(self.payload)


@frozen
class Gap:
    """Positions that are not in the log any more: retention removed them before they were read."""

    after: int
    next: int

    @property
    def entries(self) -> int:
        """How many stored batches are missing."""
        return self.next - self.after - 1


@frozen
class Corrupt:
    """An entry that is not what was written, at its position; the others around it are."""

    position: int
    reason: str


class Subscription:
    """Iterate over it, also by several loops one after the other: each goes on with the batch after the last one given.

    `position` is that of the last batch given: to go on after a break, subscribe again `at=` it. Before the first batch
    it is where reading began; `ahead` is how far that which was asked for lay beyond the log's end. `gaps` holds what
    was found missing, `corrupt` what was found damaged; whoever follows for long empties them.
    """

    def __init__(self, stream: anyio.abc.ByteStream, connection: Connection, org: str) -> None:
        self.org = org
        self.gaps: list[Gap] = []
        self.corrupt: list[Corrupt] = []
        self.ahead = 0
        self.position = 0
        self.repeats = 0
        self._stream = stream
        self._connection = connection
        self._marks: dict[bytes, int] = {}
        self._ended = False
        self._events: deque[Event] = deque()
        self._feed: Iterator[ConsumedBatch] = iter(())

    async def begin(self) -> None:
        """Wait until it is known where reading begins. Raises Refused, Unreachable, LinkError."""
        while True:
            if not self._events:
                await self._receive()
                continue
            match self._events.popleft():
                case Opened():
                    continue
                case Noticed(fields) if fields.get("kind") == "start":
                    self._noticed(fields)
                    return
                case Closed(code, reason):
                    raise Refused(f"the consume door closed: {reason}", code=code)
                case event:
                    raise LinkError(f"{type(event).__name__} before the place where it begins", code=Close.PROTOCOL)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> ConsumedBatch:
        """The next batch. When it is cancelled nothing is lost: the next call goes on."""
        while True:
            batch = next(self._feed, None)
            if batch is not None:
                return batch
            if self._events:
                await self._take(self._events.popleft())
            elif self._ended:
                raise StopAsyncIteration
            else:
                await self._receive()

    async def _take(self, event: Event) -> None:
        match event:
            case CreditWanted(handle, limit):
                await self._say(self._connection.grant(handle, limit))
            case BatchReceived(_, batch):
                self._feed = self._entries(batch.payload)
            case Noticed(fields):
                self._noticed(fields)
            case Closed(code, reason):
                self._ended = True
                if code != Close.NORMAL:
                    raise Refused(f"the consume door closed: {reason}", code=code)

    async def _receive(self) -> None:
        quiet_s = 0.0
        while True:
            with anyio.move_on_after(PING_INTERVAL_S):
                try:
                    data = await self._stream.receive(256 << 10)
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    raise Unreachable(
                        f"the consume door went away after position {self.position}; read on from there"
                    ) from None
                self._events += self._connection.receive(data)
                for reply in self._connection.take_replies():
                    await self._say(reply)
                return
            quiet_s += PING_INTERVAL_S
            if quiet_s > SILENCE_S:
                raise Unreachable(f"the consume door is silent; read on from position {self.position}")
            await self._say(self._connection.ping(0))

    async def _say(self, data: bytes) -> None:
        """Send a few bytes. Not cancelled in the midst: half a frame would end the link."""
        try:
            with anyio.fail_after(SAY_S, shield=True):
                await self._stream.send(data)
        except (TimeoutError, anyio.BrokenResourceError):
            raise Unreachable(f"the consume door takes nothing; read on from position {self.position}") from None

    def _entries(self, payload: bytes) -> Iterator[ConsumedBatch]:
        at = 0
        while at < len(payload):
            position, length = ENTRY.unpack_from(payload, at)
            at += ENTRY.size
            data = payload[at : at + length]
            at += length
            # Set as each is given, so that whoever stops in between goes on with the next.
            self.position = position
            try:
                entry = decode_entry(data)
            except CorruptEntry as error:
                self.corrupt.append(Corrupt(position, str(error)))
                continue
            if self._is_repeat(entry.stream, entry.seq):
                self.repeats += 1
                continue
            yield ConsumedBatch(
                position,
                self.org,
                entry.stream,
                entry.seq,
                entry.exporter,
                entry.received_us,
                entry.messages,
                entry.records,
                bytes(entry.payload),
            )

    def _is_repeat(self, stream: bytes, seq: int) -> bool:
        mark = self._marks.pop(stream, 0)
        self._marks[stream] = max(mark, seq)
        if len(self._marks) > MAX_STREAMS:
            del self._marks[next(iter(self._marks))]
        return seq <= mark

    def _noticed(self, fields: dict[str, Any]) -> None:
        match fields.get("kind"):
            case "gap":
                self.gaps.append(Gap(int(fields["after"]), int(fields["next"])))
            case "start":
                self.position, self.ahead = int(fields["position"]), int(fields["ahead"])


@asynccontextmanager
async def subscribe(
    url: str,
    org: str,
    token: str,
    *,
    at: str | int | dict[str, int] = "latest",
    follow: bool = True,
    connect_timeout_s: float = 5.0,
) -> AsyncIterator[Subscription]:
    """An org's batches from `at`: "earliest", "latest", a position (what comes after it), or {"time_us": …}.

    With `follow=False` iteration ends at what was stored when it got there. Raises Refused for a credential or org that
    is not accepted, LinkError for another protocol, and Unreachable when the door does not answer or goes away, now or
    while iterating: subscribe again at `position`, and nothing is missed or given twice.
    """
    stream = await connect(url, timeout_s=connect_timeout_s)
    async with stream:
        connection = Connection(Side.CLIENT, LinkLimits(max_batch_bytes=MAX_FEED_BYTES))
        try:
            with anyio.fail_after(connect_timeout_s):
                await stream.send(connection.hello(Hint(org=org), role="consumer", token=token))
                await welcomed(stream, connection)
        except (TimeoutError, anyio.BrokenResourceError):
            raise Unreachable(f"{url} did not greet within {connect_timeout_s:g} s; is it a consume door?") from None
        subscription = Subscription(stream, connection, org)
        try:
            with anyio.fail_after(connect_timeout_s):
                await stream.send(connection.subscribe(org=org, at=at, follow=follow))
                await subscription.begin()
        except (TimeoutError, anyio.BrokenResourceError):
            raise Unreachable(f"{url} did not say within {connect_timeout_s:g} s where reading begins") from None
        yield subscription


async def welcomed(stream: anyio.abc.ByteStream, connection: Connection) -> None:
    """Wait for the door's greeting. Raises Refused, Unreachable, LinkError."""
    while True:
        try:
            events = connection.receive(await stream.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise Unreachable("the consume door closed without a word") from None
        for event in events:
            match event:
                case Welcomed():
                    return
                case Closed(code, reason):
                    raise Refused(f"the consume door refused: {reason}", code=code)
                case _:
                    raise LinkError("the consume door did not greet", code=Close.PROTOCOL)
