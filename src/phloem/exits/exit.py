"""An exit: it reads its org's log as a consumer group does, and has what it read published before it commits.

Its group is `exit.NAME`: where it has come to is durable, stays while its Kafka is away, is shown with the lag by
`sapflow groups`, and is set elsewhere there. What was published and not committed when a process died is published
again. The Kafka's answers are waited for in a thread that is the exit's own; nothing else waits for it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Literal

import anyio
import structlog
import trio
from attrs import define, frozen

from phloem.consume import RESERVED
from phloem.exits.opening import Serve
from phloem.exits.sending import Alone, Given, Interrupted, Sending, SentCounts
from sapflow.client.member import Member, joined
from sapflow.client.missing import Gap, Missing
from sapflow.client.subscription import ConsumedBatch, OptionsData, open_subscription
from sapflow.config import ExitConfig
from sapflow.errors import Fenced, MalformedMessage, SapflowError, first_of
from sapflow.flows.columns.records import Context
from sapflow.flows.formats.messages import Make
from sapflow.flows.meaning.typeinfo import Dictionaries
from sapflow.flows.registry import Registry, using
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

COMMIT_INTERVAL_S = 1.0
"""How long at most what was published is not committed, while Kafka answers."""
BACKOFF_FIRST_S = 0.5
DOOR_TIMEOUT_S = 5.0
IDLE_S = 60.0
"""With nothing to publish for so long an exit lets go of its producer: nobody would hear what that complains of."""
END_S = 5.0
"""How long it is waited for that a producer is gone."""


def group_of(exit_: ExitConfig) -> str:
    """The consumer group whose position is the exit's."""
    return RESERVED + exit_.name


@define
class ReadCounts:
    """What an exit has read; never goes down. What is published again was read again."""

    read_entries: int = 0
    read_records: int = 0
    gaps: int = 0
    gap_entries: int = 0
    """Past retention before they were read."""
    undecodable: int = 0
    """Entries that are damaged or cannot be decoded."""


@frozen
class Publishing:
    """What an exit's thread does with one batch, and what it needs for that."""

    exit: ExitConfig
    sending: Sending
    make: Make
    dictionaries: Dictionaries

    def give(self, batch: ConsumedBatch, told: Sequence[OptionsData] = ()) -> None:
        """Make its messages and send them; exporters had `told` something before it.

        Raises ExitFailed, MalformedMessage.
        """
        for one in told:
            with suppress(MalformedMessage):  # then it describes nothing
                self.dictionaries.registry_for(Context(one.org, one.exporter, one.stream.hex()), one.payload)
        context = Context(batch.org, batch.exporter, batch.stream.hex(), batch.position)
        with using(self.dictionaries.registry_for(context, batch.payload)):
            made = self.make(batch.payload, context, self.sending.most_bytes)
            self.sending.give(Given(batch.stream, batch.position), made)


class Exit:
    """One exit of this node, as long as `run` lasts."""

    def __init__(
        self, exit_: ExitConfig, sending: Sending, make: Make, elements: Registry, serve: Serve, fleet_token: str
    ) -> None:
        self.config = exit_
        self.read = ReadCounts()
        self.state: Literal["starting", "publishing", "waiting"] = "starting"
        self.reason = ""
        """Why it waits."""
        self.position = 0
        """Committed."""
        self._sending = sending
        self._publishing = Publishing(exit_, sending, make, Dictionaries(elements))
        self._thread = ThreadKind(f"exit-{exit_.org}-{exit_.name}", 1)
        self._serve = serve
        self._token = fleet_token
        self._failures = 0
        self._told = Seldom()
        self._running = trio.Lock()

    @property
    def sent(self) -> SentCounts:
        """What became of its messages."""
        return self._sending.counts

    @property
    def waiting_bytes(self) -> int:
        """What is on its way to its Kafka."""
        return self._sending.waiting_bytes

    def figures(self) -> dict[str, Any]:
        """What the status tells of it."""
        sent, read, exit_ = self.sent, self.read, self.config
        return {
            "org": exit_.org,
            "name": exit_.name,
            "group": group_of(exit_),
            "topic": exit_.topic,
            "format": exit_.format,
            "state": self.state,
            "reason": self.reason,
            "position": self.position,
            "messages": sent.messages,
            "bytes": sent.bytes,
            "records": sent.records,
            "refused_records": sent.refused_records,
            "waiting_bytes": self.waiting_bytes,
            "window_bytes": exit_.window_bytes,
            "failures": sent.failures,
            "offsets_back": sent.offsets_back,
            "read_entries": read.read_entries,
            "read_records": read.read_records,
            "gap_entries": read.gap_entries,
            "undecodable": read.undecodable,
        }

    async def run(self) -> None:
        """Publish until cancelled, whatever fails; one that was cancelled a moment ago is waited for."""
        async with self._running, trio.open_nursery() as nursery:
            self._sending.begin()
            nursery.start_soon(self._interrupt_at_the_end)
            while True:
                failed = False
                try:
                    await self._publish()
                except* (Alone, Interrupted):
                    pass  # at once, from where it was committed; or this ends
                except* Fenced:
                    log.info("exit set elsewhere", org=self.config.org, exit=self.config.name)
                except* Exception as group:
                    failed = True
                    self._failed(first_of(group))
                if failed:
                    await trio.sleep(self._backoff_s())

    async def _interrupt_at_the_end(self) -> None:
        """The thread waits for Kafka, and is waited for."""
        try:
            await trio.sleep_forever()
        finally:
            self._sending.interrupt()

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        self.state, self.reason = "waiting", str(error) or type(error).__name__
        if times := self._told.again(self.reason):
            say = log.error if isinstance(error, SapflowError) else log.exception
            say(
                "exit not published to",
                org=self.config.org,
                exit=self.config.name,
                topic=self.config.topic,
                reason=self.reason,
                position=self.position,
                data="records wait in the log, as long as that keeps them; the exit goes on behind its position",
                times=times,
            )

    def _backoff_s(self) -> float:
        most = min(self.config.backoff_most_s, BACKOFF_FIRST_S * 2 ** min(self._failures, 20))
        return random.uniform(0, most)

    async def _publish(self) -> None:
        """Read, publish, commit. Raises what goes wrong: then all since the last commit is done again."""
        try:
            async with self._member() as member:
                await member.turn()
                self.position = member.committed
                if not self._failures:
                    self.state = "publishing"
                await self._follow(member)
        finally:
            with trio.move_on_after(END_S, shield=True):
                await self._thread.run(self._sending.throw_away, abandon=True)

    async def _follow(self, member: Member) -> None:
        due = trio.current_time() + COMMIT_INTERVAL_S
        while True:
            await member.turn()
            batch = None
            is_done = member.position == member.committed
            with trio.move_on_at(trio.current_time() + IDLE_S if is_done else due):
                batch = await anext(member)
            if batch is not None:
                await self._give(member, batch)
            elif is_done:
                await self._thread.run(self._sending.throw_away)
            if trio.current_time() >= due and member.position > member.committed:
                await self._commit(member)
            if member.position == member.committed or trio.current_time() >= due:
                due = trio.current_time() + COMMIT_INTERVAL_S

    async def _give(self, member: Member, batch: ConsumedBatch) -> None:
        self.read.read_entries += 1
        self.read.read_records += batch.records
        try:
            await self._thread.run(partial(self._publishing.give, batch, member.take_options()))
        except MalformedMessage as error:
            member.quarantine(batch, f"it cannot be decoded: {error}")

    async def _commit(self, member: Member) -> None:
        await self._thread.run(self._sending.settle)
        await member.commit()
        self.position = member.committed
        self.state, self.reason, self._failures = "publishing", "", 0

    def _missing(self, what: Missing) -> None:
        if isinstance(what, Gap):
            self.read.gaps += 1
            self.read.gap_entries += what.entries
        else:
            self.read.undecodable += 1
        log.error("not published", org=self.config.org, exit=self.config.name, what=str(what))

    @asynccontextmanager
    async def _member(self) -> AsyncIterator[Member]:
        """A member of its group, over a connection within this process."""
        wanted = {"at": self.config.at, "follow": True, "group": group_of(self.config)}
        async with trio.open_nursery() as nursery:

            async def dial() -> anyio.abc.ByteStream:
                ours, theirs = socket.socketpair()
                theirs.setblocking(False)
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
                nursery.start_soon(self._serve, stream, group_of(self.config))
                return await anyio.abc.UNIXSocketStream.from_socket(ours)

            open_ = partial(
                open_subscription,
                "this node's consume door",
                self.config.org,
                self._token,
                wanted,
                connect_timeout_s=DOOR_TIMEOUT_S,
                dial=dial,
            )
            group = group_of(self.config)
            async with joined(open_, self.config.org, group, auto_commit=False, on_missing=self._missing) as member:
                yield member
            nursery.cancel_scope.cancel()
