"""A feed: an org's entries to one consumer, from a place in the log and then live, under the consumer's credit.

It is one stream of the link whose batches each hold a few log entries as they are stored, each behind its position and
length. What is not there is told in between, where it would be: a *gap* that retention made, an entry that is
*quarantined* since it is not what was written. Before all that comes, for who asks, what exporters had told in options
data by then: no records of the log, and marked as such. A consumer that is slow gets no more than the credit it gave;
it is read for from the log, so it costs no memory here and holds up nobody.
"""

from __future__ import annotations

import itertools
import struct

import structlog
import trio
from attrs import define, evolve, field, frozen

from phloem.engine.embedded import EmbeddedLog
from phloem.engine.engine import Engine, Stretch
from phloem.engine.layout import Place
from phloem.engine.repeats import Repeats
from phloem.places import Found
from sapflow.entry import CorruptEntry, decode_entry, entry_counts
from sapflow.link import Batch, StreamId
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.session import LinkSession
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

ENTRY = struct.Struct("!QI")
"""position, length of the entry that follows."""

FEED = StreamId(bytes(16))


Faults = dict[int, str]
"""By position, why an entry is not what was written."""


@define
class ConsumeCounts:
    """What consumers were given; never goes down, but for `consumers`."""

    consumers: int = 0
    entries_out: int = 0
    bytes_out: int = 0
    messages_out: int = 0
    records_out: int = 0
    options_out: int = 0
    options_bytes_out: int = 0
    """Of what exporters had told before the place where a reader began; none of it is an entry of the log."""
    repeats: int = 0
    """Entries that stand in the log twice, and were not given again."""
    unauthorized: int = 0
    gaps: int = 0
    """Told, of …"""
    gap_entries: int = 0
    quarantined: int = 0
    """Damaged entries that were kept from consumers, each time that one came to them."""


@define
class Shelf:
    """What feeds read from: the log, and when there is more in it."""

    engine: Engine
    reading: ThreadKind
    counting: ThreadKind
    """In which ledgers are asked for."""
    feed_bytes: int
    feed_entries: int
    counts: ConsumeCounts = field(factory=ConsumeCounts)
    damaged: Seldom = field(factory=Seldom)
    _followers: dict[str, set[trio.Event]] = field(factory=dict)

    def stored(self, orgs: set[str]) -> None:
        """Wake the feeds that follow these orgs."""
        for org in orgs:
            for event in self._followers.get(org, ()):
                event.set()

    def followed(self) -> set[str]:
        """Orgs whose next commit somebody waits for."""
        return set(self._followers)

    def follow(self, org: str, event: trio.Event) -> None:
        """Have `event` set at the org's next commit."""
        self._followers.setdefault(org, set()).add(event)

    def unfollow(self, org: str, event: trio.Event) -> None:
        """Let go of an event."""
        followers = self._followers.get(org, set())
        followers.discard(event)
        if not followers:
            self._followers.pop(org, None)


@frozen
class _Read:
    position: int
    data: bytes
    fault: str | None


class Feed:
    """One consumer's place in the log."""

    def __init__(self, shelf: Shelf, session: LinkSession, org: str, found: Found, *, options: bool = False) -> None:
        self._shelf = shelf
        self._session = session
        self._org = org
        self._place, self._measured = found.place, found.measured
        self._options = options
        """Whether the consumer wants what exporters had told."""
        self._repeats = Repeats() if shelf.engine.is_shared else None
        self._granted = trio.Event()
        self._seq = itertools.count(1)
        self._handle, opening = session.connection.open(FEED, org, "")
        session.send(opening)

    def granted(self) -> None:
        """The consumer gave credit."""
        self._granted.set()

    async def run(self, *, follow: bool) -> None:
        """Send what comes, until cancelled; without `follow` to the end of what is stored, which is told."""
        await self._tell_gap()
        if self._options:
            await self._give_options()
        while (found := await self._next(follow)) is not None:
            stretch, faults = found
            if stretch.entries and stretch.entries[0][0] > self._place.position + 1 and await self._tell_gap():
                continue  # reading again, from where the log begins now
            if stretch.gap_to is not None:
                self._gap(Place(stretch.gap_to - 1), measured=False)
            read = [_Read(position, data, faults.get(position)) for position, data in self._new(stretch)]
            for damaged, run in itertools.groupby(read, lambda one: one.fault is not None):
                if damaged:
                    self._quarantine(list(run))
                else:
                    await self._give(list(run))
            self._place = evolve(self._place, position=stretch.through)
        self._notice(kind="end", position=self._place.position)

    async def _next(self, follow: bool) -> tuple[Stretch, Faults] | None:
        """The log behind the place, waited for if need be, and what is damaged in it; None at its end."""
        shelf = self._shelf
        while True:
            committed = trio.Event()
            shelf.follow(self._org, committed)
            try:
                stretch, faults = await shelf.reading.run(self._read)
                if stretch.entries or stretch.through > self._place.position:
                    return stretch, faults
                if not follow:
                    return None
                await committed.wait()
            finally:
                shelf.unfollow(self._org, committed)

    def _read(self) -> tuple[Stretch, Faults]:
        """In a reading thread."""
        shelf = self._shelf
        stretch = shelf.engine.stretch(
            self._org, self._place.position, max_bytes=shelf.feed_bytes, max_entries=shelf.feed_entries
        )
        faults = ((position, _fault(data)) for position, data in stretch.entries)
        return stretch, {position: fault for position, fault in faults if fault is not None}

    def _new(self, stretch: Stretch) -> list[tuple[int, bytes]]:
        """What was not given before, where a log may hold it twice."""
        if self._repeats is None:
            return stretch.entries
        found = self._repeats.without(stretch.entries)
        self._shelf.counts.repeats += len(stretch.entries) - len(found)
        return found

    async def _tell_gap(self) -> bool:
        """Where the log counts what it removed: tell what is no more behind the place, and step over it, if any is."""
        engine = self._shelf.engine
        if not isinstance(engine, EmbeddedLog):
            return False
        start = (await self._shelf.reading.run(lambda: engine.tail(self._org))).start
        if start.position <= self._place.position:
            return False
        self._gap(start, measured=True)
        return True

    async def _give_options(self) -> None:
        """First of all, what the exporters had told by here: entries of number 0, behind no position of their own."""
        engine, position = self._shelf.engine, self._place.position
        thread = self._shelf.reading if engine.shared_ledger is None else self._shelf.counting
        for stream in await thread.run(lambda: engine.told_streams(self._org)):
            told = await thread.run(lambda: engine.told(self._org, stream, position))  # noqa: B023
            if told is not None:
                await self._send([(0, told)])
                self._shelf.counts.options_out += 1
                self._shelf.counts.options_bytes_out += len(told)

    def _gap(self, to: Place, *, measured: bool) -> None:
        before, counts = self._place, self._shelf.counts
        known = measured and self._measured
        self._notice(
            kind="gap",
            after=before.position,
            next=to.position + 1,
            bytes=to.bytes - before.bytes if known else None,
            records=to.records - before.records if known else None,
        )
        counts.gaps += 1
        counts.gap_entries += to.position - before.position
        self._place, self._measured = to, measured

    def _quarantine(self, run: list[_Read]) -> None:
        for one in run:
            self._shelf.counts.quarantined += 1
            if times := self._shelf.damaged.again((self._org, one.position)):
                log.error(
                    "damaged entry left out",
                    org=self._org,
                    position=one.position,
                    reason=one.fault,
                    data="this entry cannot be read; those around it are given",
                    times=times,
                )
            self._notice(kind="quarantined", position=one.position, reason=one.fault)
            self._step(one)

    async def _give(self, run: list[_Read]) -> None:
        size = await self._send([(one.position, one.data) for one in run])
        counts = self._shelf.counts
        counts.entries_out += len(run)
        counts.bytes_out += size
        for one in run:
            messages, records = entry_counts(one.data)
            counts.messages_out += messages
            counts.records_out += records
            self._step(one)

    async def _send(self, entries: list[tuple[int, bytes]]) -> int:
        """In one batch, when there is credit for it: its size."""
        payload = b"".join(piece for at, data in entries for piece in (ENTRY.pack(at, len(data)), data))
        await self._credit(len(payload))
        batch = Batch(next(self._seq), len(entries), 0, 0, payload)
        self._session.send(*self._session.connection.batch(self._handle, batch))
        return len(payload)

    def _step(self, one: _Read) -> None:
        place = self._place
        records = entry_counts(one.data)[1]
        self._place = Place(one.position, place.bytes + len(one.data), place.records + records)

    async def _credit(self, size: int) -> None:
        connection = self._session.connection
        while connection.credit(self._handle) < size:
            self._granted = trio.Event()
            self._session.send(connection.want(self._handle, size))
            await self._granted.wait()

    def _notice(self, **fields: object) -> None:
        self._session.send(self._session.connection.notice(**fields))


def _fault(data: bytes) -> str | None:
    """Why an entry is not what was written, if it is not."""
    try:
        decode_entry(data)
    except CorruptEntry as error:
        return str(error)
    return None
