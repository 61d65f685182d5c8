"""Reading an org's records: from a position in the log, and then live.

Drops what it has seen already by (stream, number), gives gaps as what they are, and holds one feed of the door's at a
time, at most `connect.MAX_FEED_BYTES`.
"""

from __future__ import annotations

import base64
import itertools
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import anyio.abc
from attrs import field, frozen

from sapflow.client.connect import Connect, greeted
from sapflow.client.marks import Marks
from sapflow.client.missing import Corrupt, Gap
from sapflow.entry import CorruptEntry, decode_entry
from sapflow.errors import LinkError, Refused, Unreachable
from sapflow.flows.columns.batches import FlowBatch, decode
from sapflow.link import BatchReceived, Close, Closed, Connection, CreditWanted, Event, Noticed, Opened, Ponged

ENTRY = struct.Struct("!QI")
PING_INTERVAL_S = 10.0
SILENCE_S = 35.0
SAY_S = 5.0


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
class OptionsData:
    """What one exporter's stream had told of itself (sampling rates, names) by the place where reading began.

    Whole IPFIX messages, self-contained, of options data only. They are no records of the log: each stands in a batch
    before that place, which who read from there was given.
    """

    org: str
    stream: bytes
    exporter: str
    records: int
    payload: bytes = field(repr=False)

    def columns(self) -> list[FlowBatch]:
        """As numpy columns, for whoever learns from them (`sapflow.flows.meaning`)."""
        return decode(self.payload)


@frozen
class Joined:
    """What a consumer group is when its member begins to read for it."""

    position: int
    generation: int
    resets: int
    state: bytes
    state_bytes: int
    """The most that the state may be."""


@frozen
class Answer:
    """What became of a commit; `why` says why it is not durable."""

    number: int
    position: int = 0
    why: Literal["", "fenced", "state", "storage"] = ""
    reason: str = ""


class Subscription:
    """Iterate over it, also by several loops one after the other: each goes on with the batch after the last one given.

    `position` is that of the last batch given: to go on after a break, subscribe again `at=` it. Before the first batch
    it is where reading began; `ahead` is how far that which was asked for lay beyond the log's end. `gaps` holds what
    was found missing, `corrupt` what was found damaged; whoever follows for long empties them. `options` is what
    exporters had told before the first batch, all of it by when that is given: to be learned from, and let go.
    """

    def __init__(self, stream: anyio.abc.ByteStream, connection: Connection, org: str, marks: Marks) -> None:
        self.org = org
        self.gaps: list[Gap] = []
        self.corrupt: list[Corrupt] = []
        self.options: list[OptionsData] = []
        self.ahead = 0
        self.position = 0
        self.repeats = 0
        self.joined: Joined | None = None
        """Of a consumer group's member, when its turn has come."""
        self._stream = stream
        self._connection = connection
        self._marks = marks
        self._begun = False
        self._standby = False
        self._ended = False
        self._events: deque[Event] = deque()
        self._feed: Iterator[ConsumedBatch | Corrupt] = iter(())

    async def begin(self) -> None:
        """Wait until it is known where reading begins, or that others are before us.

        Raises Refused, Unreachable, LinkError.
        """
        while not (self._begun or self._standby):
            await self._await_start()

    async def turn(self) -> Joined:
        """Wait for as long as others are before us: what the group is now. Raises as `begin` does."""
        while not self._begun:
            await self._await_start()
        assert self.joined is not None, "not of a group"
        return self.joined

    async def _await_start(self) -> None:
        if not self._events:
            await self._receive()
            return
        match self._events.popleft():
            case Opened() | Ponged():
                pass
            case Noticed({"kind": "standby"}):
                self._standby = True
            case Noticed({"kind": "start"} as fields):
                self._start(fields)
            case Closed(code, reason):
                raise Refused(f"the consume door closed: {reason}", code=code)
            case event:
                raise LinkError(f"{type(event).__name__} before the place where it begins", code=Close.PROTOCOL)

    def _start(self, fields: dict[str, Any]) -> None:
        self._begun = True
        self.position, self.ahead = int(fields["position"]), int(fields["ahead"])
        if "generation" in fields:
            state, most = base64.b64decode(fields["state"]), int(fields["state_bytes"])
            self.joined = Joined(self.position, int(fields["generation"]), int(fields["resets"]), state, most)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> ConsumedBatch:
        """The next batch. When it is cancelled nothing is lost: the next call goes on."""
        while True:
            match await self.next():
                case ConsumedBatch() as batch:
                    return batch
                case Gap() as gap:
                    self.gaps.append(gap)
                case Corrupt() as corrupt:
                    self.corrupt.append(corrupt)
                case None:
                    raise StopAsyncIteration

    async def next(self) -> ConsumedBatch | Gap | Corrupt | Answer | None:
        """What comes next, in its order; None at the end. When it is cancelled nothing is lost."""
        while True:
            item = next(self._feed, None)
            if item is not None:
                return item
            if self._events:
                found = await self._take(self._events.popleft())
                if found is not None:
                    return found
            elif self._ended:
                return None
            else:
                await self._receive()

    async def _take(self, event: Event) -> Gap | Corrupt | Answer | None:
        match event:
            case CreditWanted(handle, limit):
                await self._say(self._connection.grant(handle, limit))
            case BatchReceived(_, batch):
                self._feed = self._entries(batch.payload)
            case Noticed({"kind": "gap"} as fields):
                gap = Gap(int(fields["after"]), int(fields["next"]), fields.get("bytes"), fields.get("records"))
                self.position = gap.next - 1
                return gap
            case Noticed({"kind": "quarantined"} as fields):
                self.position = int(fields["position"])
                return Corrupt(self.position, str(fields["reason"]))
            case Noticed({"kind": "end"}):
                self._ended = True
            case Noticed(fields):
                return _answer(fields)
            case Closed(code, reason):
                self._ended = True
                if code != Close.NORMAL:
                    raise Refused(f"the consume door closed: {reason}", code=code)
        return None

    def take_options(self) -> list[OptionsData]:
        """What exporters had told, those that told last at the end; what was taken is let go."""
        taken, self.options = self.options, []
        return taken

    async def ask_commit(self, number: int, position: int, state: bytes, quarantined: int) -> None:
        """Ask to have a position committed, with what is kept beside it. Raises Unreachable."""
        text = base64.b64encode(state).decode()
        await self._say(
            self._connection.notice(
                kind="commit", number=number, position=position, state=text, quarantined=quarantined
            )
        )

    async def answer_to(self, number: int) -> Answer:
        """Wait for what became of a commit; what comes before it is kept. Raises Refused, Unreachable."""
        seen = 0
        while True:
            for at, event in enumerate(itertools.islice(self._events, seen, None), seen):
                if isinstance(event, Noticed) and (found := _answer(event.fields)) and found.number >= number:
                    del self._events[at]
                    return found
                if isinstance(event, Closed):
                    raise Refused(f"the consume door closed: {event.reason}", code=event.code)
            seen = len(self._events)
            await self._receive()

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

    def _entries(self, payload: bytes) -> Iterator[ConsumedBatch | Corrupt]:
        at = 0
        while at < len(payload):
            position, length = ENTRY.unpack_from(payload, at)
            at += ENTRY.size
            data = payload[at : at + length]
            at += length
            if position == 0:
                told = decode_entry(data)
                self.options.append(OptionsData(self.org, told.stream, told.exporter, told.records, told.payload))
                continue
            # Set as each is given, so that whoever stops in between goes on with the next.
            self.position = position
            try:
                entry = decode_entry(data)
            except CorruptEntry as error:
                yield Corrupt(position, str(error))
                continue
            if self._marks.is_repeat(entry.stream, entry.seq):
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


def _answer(fields: dict[str, Any]) -> Answer | None:
    match fields:
        case {"kind": "committed", "number": int(number), "position": int(position)}:
            return Answer(number, position)
        case {"kind": "uncommitted", "number": int(number), "why": ("fenced" | "state" | "storage") as why}:
            return Answer(number, why=why, reason=str(fields.get("reason", "")))
        case _:
            return None


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
    wanted = {"at": at, "follow": follow}
    async with open_subscription(url, org, token, wanted, Marks(), connect_timeout_s=connect_timeout_s) as subscription:
        yield subscription


@asynccontextmanager
async def open_subscription(
    url: str,
    org: str,
    token: str,
    wanted: dict[str, Any],
    marks: Marks,
    *,
    connect_timeout_s: float,
    dial: Connect | None = None,
) -> AsyncIterator[Subscription]:
    """One connection that has asked for what is `wanted`, and dropped by `marks` what came before."""
    async with greeted(url, org, token, connect_timeout_s=connect_timeout_s, dial=dial) as (stream, connection):
        subscription = Subscription(stream, connection, org, marks)
        try:
            with anyio.fail_after(connect_timeout_s):
                await stream.send(connection.subscribe(org=org, options=True, **wanted))
                await subscription.begin()
        except (TimeoutError, anyio.BrokenResourceError):
            raise Unreachable(f"{url} did not say within {connect_timeout_s:g} s where reading begins") from None
        yield subscription
