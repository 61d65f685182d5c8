"""Consumers: reading an org's log from a position, or live, over a link.

A consumer is sent a *feed*: one stream of the link whose batches each hold a few log entries as they are stored, each
behind its position and length. A consumer that is slow gets no more than the credit it gave; it is read for from the
log, so it costs no memory here.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from typing import Any

import structlog
import trio
from attrs import define, frozen

from phloem.engine.engine import Engine
from phloem.engine.repeats import Repeats
from phloem.telling import tell_ledger
from sapflow.entry import entry_counts
from sapflow.errors import LinkError, Refused, StorageError
from sapflow.link import (
    Batch,
    Close,
    Connection,
    CreditGranted,
    HelloReceived,
    Side,
    StreamId,
    Subscribed,
)
from sapflow.runtime.session import LinkSession
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

ENTRY = struct.Struct("!QI")
"""position, length of the entry that follows."""

FEED = StreamId(bytes(16))


@frozen
class ConsumeSettings:
    """Bounds of the consume door."""

    fleet_token: str
    feed_bytes: int = 512 << 10
    feed_entries: int = 4096
    hello_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    reading_threads: int = 4


@define
class ConsumeCounts:
    """What consumers were given; never goes down, but for `consumers`."""

    consumers: int = 0
    entries_out: int = 0
    bytes_out: int = 0
    messages_out: int = 0
    records_out: int = 0
    repeats: int = 0
    """Entries that stand in the log twice, and were not given again."""
    unauthorized: int = 0


class Consumers:
    """The consume door of one Phloem node."""

    def __init__(
        self,
        engine: Engine,
        settings: ConsumeSettings,
        authenticate: Callable[[str], str | None],
        is_org: Callable[[str], bool],
    ) -> None:
        self.counts = ConsumeCounts()
        self.settings = settings
        self.engine = engine
        self.authenticate = authenticate
        self.is_org = is_org
        self.reading = ThreadKind("reading", settings.reading_threads)
        self._followers: dict[str, set[trio.Event]] = {}

    def stored(self, orgs: set[str]) -> None:
        """Wake the consumers that follow these orgs."""
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

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One consumer from its hello to its end."""
        session = LinkSession(
            stream,
            Connection(Side.SERVER),
            peer=peer,
            idle_timeout_s=self.settings.idle_timeout_s,
            max_unsent_bytes=16 << 20,
        )
        self.counts.consumers += 1
        try:
            async with session.open():
                await _Feed(self, session).run()
        except* (LinkError, Refused, StorageError) as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            log.warning("consumer cut off", peer=peer, reason=str(error))
        finally:
            self.counts.consumers -= 1


class _Feed:
    """One consumer's link and its place in the log."""

    def __init__(self, owner: Consumers, session: LinkSession) -> None:
        self._owner = owner
        self._session = session
        self._org: str | None = None
        self._fleet = False
        self._granted = trio.Event()
        self._started = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._owner.settings.hello_timeout_s) as hello:
                async for events in self._session.events():
                    for event in events:
                        match event:
                            case HelloReceived():
                                if not await self._greet(event.fields):
                                    return
                                hello.deadline = float("inf")
                            case Subscribed(fields) if not self._started:
                                self._started = True
                                org = str(fields.get("org", ""))
                                await self._check(org)
                                if fields.get("ledger"):
                                    owner = self._owner
                                    await tell_ledger(self._session, owner.engine, owner.reading, org, fields)
                                    return
                                nursery.start_soon(self._send, org, fields)
                            case CreditGranted():
                                self._granted.set()
                            case _:
                                raise LinkError(f"{type(event).__name__} from a consumer", code=Close.PROTOCOL)
            if hello.cancelled_caught:
                await self._session.finish(Close.TIMEOUT, "no hello in time")
            nursery.cancel_scope.cancel()

    async def _check(self, org: str) -> None:
        """Raises LinkError, after telling the consumer, for an org that is not its own, or that nobody has."""
        owner = self._owner
        if not self._fleet and org != self._org:
            code, reason = Close.FORBIDDEN, "this credential does not name that org"
        elif self._fleet and not owner.is_org(org) and not await owner.reading.run(lambda: owner.engine.holds(org)):
            code, reason = Close.UNKNOWN, f"no org '{org}'; see 'sapflow orgs list'"
        else:
            return
        await self._session.finish(code, reason)
        raise LinkError(f"a consumer asked for another org: {reason}", code=code)

    async def _greet(self, fields: dict[str, Any]) -> bool:
        owner = self._owner
        token = str(fields.get("token", ""))
        self._fleet = hmac.compare_digest(token.encode(), owner.settings.fleet_token.encode())
        if not self._fleet:
            self._org = owner.authenticate(token)
            if self._org is None:
                owner.counts.unauthorized += 1
                log.warning("consumer refused", peer=self._session.peer, reason="credential not accepted")
                await self._session.finish(
                    Close.UNAUTHORIZED,
                    "credential not accepted; check the token, or issue one with 'sapflow orgs token'",
                )
                return False
        self._session.send(self._session.connection.welcome(org=self._org))
        return True

    async def _send(self, org: str, fields: dict[str, Any]) -> None:
        owner, session, settings = self._owner, self._session, self._owner.settings
        handle, opening = session.connection.open(FEED, org, "")
        session.send(opening)
        try:
            after, ahead = await self._start(org, fields.get("at", "latest"))
        except LinkError as error:
            await session.finish(error.code, str(error))
            raise
        session.send(session.connection.notice(kind="start", position=after, ahead=ahead))
        follow = bool(fields.get("follow", True))
        repeats = Repeats() if owner.engine.is_shared else None
        seq = 0
        while True:
            committed = trio.Event()
            owner.follow(org, committed)
            try:
                stretch = await owner.reading.run(
                    lambda: owner.engine.stretch(
                        org,
                        after,  # noqa: B023
                        max_bytes=settings.feed_bytes,
                        max_entries=settings.feed_entries,
                    )
                )
                if stretch.gap_to is not None:
                    session.send(session.connection.notice(kind="gap", after=after, next=stretch.gap_to))
                is_end = stretch.through == after and not stretch.entries
                after = stretch.through
                if is_end:
                    if not follow:
                        session.send(session.connection.notice(kind="end", position=after))
                        await session.finish(Close.NORMAL, "all that is stored was sent", deadline_s=30.0)
                        return
                    await committed.wait()
            finally:
                owner.unfollow(org, committed)
            found = stretch.entries
            if repeats is not None:
                found = repeats.without(found)
                owner.counts.repeats += len(stretch.entries) - len(found)
            if not found:
                continue
            payload = b"".join(
                piece for position, entry in found for piece in (ENTRY.pack(position, len(entry)), entry)
            )
            await self._credit(handle, len(payload))
            seq += 1
            session.send(*session.connection.batch(handle, Batch(seq, len(found), 0, 0, payload)))
            owner.counts.entries_out += len(found)
            owner.counts.bytes_out += len(payload)
            for _, entry in found:
                messages, records = entry_counts(entry)
                owner.counts.messages_out += messages
                owner.counts.records_out += records

    async def _credit(self, handle: int, size: int) -> None:
        connection = self._session.connection
        while connection.credit(handle) < size:
            self._granted = trio.Event()
            self._session.send(connection.want(handle, size))
            await self._granted.wait()

    async def _start(self, org: str, at: object) -> tuple[int, int]:
        """The position after which to begin, and by how much one that was asked for lies beyond the log's end.

        Such a position is from another log, or from a time that this one has lost: reading begins at the end.
        Raises LinkError for what is no position.
        """
        engine = self._owner.engine
        reading = self._owner.reading
        if at == "earliest":
            return max(0, await reading.run(lambda: engine.first_position(org)) - 1), 0
        last = await reading.run(lambda: engine.last_position(org))
        if at == "latest":
            return last, 0
        if isinstance(at, int) and not isinstance(at, bool) and at >= 0:
            return min(at, last), max(0, at - last)
        if isinstance(at, dict) and isinstance(at.get("time_us"), int) and 0 <= at["time_us"] < 1 << 63:
            return max(0, await reading.run(lambda: engine.position_at(org, at["time_us"])) - 1), 0
        raise LinkError(f"'{at!r:.80}' is no position: earliest, latest, a number or a time", code=Close.PROTOCOL)
