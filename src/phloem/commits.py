"""Batches into the engine: a channel bounded in bytes, one storage thread, group commit, then the acknowledgements.

An acknowledgement is sent only for what the engine has synced. When the engine fails nothing is acknowledged: all
links are cut, the engine is reopened, and the collectors send again from their lowest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio
from attrs import define, frozen

from phloem.engine.engine import Engine, Outcome
from phloem.rest import Rest
from sapflow.entry import LogEntry
from sapflow.errors import StorageError
from sapflow.link import Batch, Traffic
from sapflow.runtime.channel import ByteChannel
from sapflow.runtime.seldom import Seldom
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

REOPEN_S = 1.0
"""Between two tries to open a log that failed."""


class Source(Protocol):
    """Where batches came from, and where their outcomes go. Calls never wait."""

    def committed(self, commit: Commit, outcome: Outcome) -> None:
        """The engine has said what became of a batch."""

    def is_due(self, commit: Commit) -> bool:
        """Whether a batch is still to be stored for this source; once it is not, nor are those behind it."""

    def dropped(self, commit: Commit) -> None:
        """A batch of this source was let go without being durable."""

    def settle(self) -> None:
        """All outcomes of a commit have been told: answer now."""

    def failed(self) -> None:
        """The engine failed; what this source gave and saw no outcome of is not durable."""


@frozen(slots=True)
class Commit:
    """A batch on its way into the log."""

    org: str
    entry: LogEntry
    source: Source
    handle: int
    batch: Batch

    @property
    def size(self) -> int:
        """Bytes that count against the channel and the budget."""
        return self.batch.size


@define
class CommitCounts:
    """What has become of batches; never goes down."""

    commits: int = 0
    stored: int = 0
    stored_records: int = 0
    duplicates: int = 0
    refused: int = 0
    conflicts: int = 0
    failures: int = 0


class Committer:
    """The one writer of this node's log."""

    def __init__(
        self,
        engine: Engine,
        *,
        channel_bytes: int,
        commit_bytes: int,
        on_stored: Callable[[set[str]], None],
        backlog_rest: float = 0.0,
    ) -> None:
        self.counts = CommitCounts()
        self.channelled = Traffic()
        """Into the channel; `drawn` out of it, `stored` in the log."""
        self.drawn = Traffic()
        self.stored = Traffic()
        self.channel: ByteChannel[Commit] = ByteChannel(channel_bytes)
        self.storage = ThreadKind("storage", 1)
        self._ahead = ThreadKind("ahead", 1)
        self._removed = trio.Event()
        self._engine = engine
        self._commit_bytes = commit_bytes
        self._on_stored = on_stored
        self._rest = Rest(backlog_rest, commit_bytes)
        self.sources: dict[Source, None] = {}
        """In the order that they came, and so in the same in every run of a simulation."""

    def put(self, commit: Commit) -> None:
        """Have a batch committed. Its bytes were granted as credit, which never exceeds the channel."""
        sent = self.channel.try_send(commit, commit.size, commit.org)
        assert sent, commit
        self.channelled.add(commit.batch)

    async def run(self) -> None:
        """Commit what comes until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_ahead)
            await self._commit()

    async def _commit(self) -> None:
        if not self._engine.is_open:
            await self._reopen()
        while True:
            drawn, heavy = await self._draw()
            group, began = self._due(drawn), trio.current_time()
            if not group:
                continue
            found = await self._append(group)
            # Not in an exception's handler: its traceback would hold the engine's buffers for as long as that takes.
            if isinstance(found, str):
                await self._recover(found, group)
            else:
                self.counts.commits += 1
                self._tell(group, found)
                if self._engine.removes:
                    self._removed.set()
                channel = self.channel
                self._rest.after(
                    began, trio.current_time(), brief=channel.brief, heavy=heavy, backlog=channel.has_backlog
                )

    async def _look_ahead(self) -> None:
        """While old entries are removed as new ones are stored, have the next of them read off the disk."""
        while True:
            await self._removed.wait()
            self._removed = trio.Event()
            try:
                await self._ahead.run(self._engine.look_ahead)
            except StorageError:
                log.debug("nothing looked ahead", exc_info=True)

    def _due(self, group: list[Commit]) -> list[Commit]:
        """Those that are still to be stored here; the others are let go of."""
        others = [commit for commit in group if not commit.source.is_due(commit)]
        if not others:
            return group
        for commit in others:
            commit.source.dropped(commit)
        for source in dict.fromkeys(commit.source for commit in others):
            source.settle()
        return [commit for commit in group if commit.source.is_due(commit)]

    async def _append(self, group: list[Commit]) -> list[Outcome] | str:
        """What became of each; why it failed, when it did."""
        try:
            return await self.storage.run(lambda: self._engine.append([(c.org, c.entry) for c in group]))
        except StorageError as error:
            return str(error)

    async def _draw(self) -> tuple[list[Commit], bool]:
        """What goes into the next commit, and whether any of it is of a backlog, or leaves one."""
        rest, channel, heavy = self._rest, self.channel, False
        group: list[Commit] = []
        if rest.until > trio.current_time():
            with trio.move_on_at(rest.until):
                group = await channel.receive_fresh(self._commit_bytes)
        if not group:
            had = channel.has_backlog
            part_bytes = rest.part_bytes(trio.current_time())
            group = await channel.receive_all(self._commit_bytes, of_backlog_bytes=part_bytes)
            heavy = had or channel.has_backlog
        for commit in group:
            self.drawn.add(commit.batch)
        return group, heavy

    def _tell(self, group: list[Commit], outcomes: list[Outcome]) -> None:
        counts = self.counts
        orgs = set()
        for commit, outcome in zip(group, outcomes, strict=True):
            match outcome.kind:
                case "stored":
                    counts.stored += 1
                    self.stored.add(commit.batch)
                    counts.stored_records += commit.entry.records
                    orgs.add(commit.org)
                case "duplicate":
                    counts.duplicates += 1
                case "refused":
                    counts.refused += 1
                case "conflict":
                    counts.conflicts += 1
            commit.source.committed(commit, outcome)
        # In the order that they came in: what is said after a commit depends on nothing else.
        for source in dict.fromkeys(commit.source for commit in group):
            source.settle()
        if orgs:
            self._on_stored(orgs)

    async def _recover(self, reason: str, group: list[Commit]) -> None:
        self.counts.failures += 1
        log.error(
            "log cannot be written",
            reason=reason,
            data="nothing of this commit was acknowledged; senders keep it, and phloem tries again by itself",
        )
        for source in list(self.sources):
            source.failed()
        # Nothing is waited for here: what a new link puts is not to be let go of without a word.
        waiting = self.channel.take_all()
        for commit in waiting:
            self.drawn.add(commit.batch)
        group += waiting
        for commit in group:
            commit.source.dropped(commit)
        # While it is waited for, what is sent again takes the place of these.
        group.clear()
        await trio.sleep(REOPEN_S)
        await self._reopen()

    async def _reopen(self) -> None:
        """Until it is open; each reason is told, but the same one not each time."""
        told = Seldom()
        while True:
            try:
                await self.storage.run(self._engine.reopen)
            except StorageError as error:
                if times := told.again(str(error)):
                    log.error("log cannot be opened", reason=str(error), times=times, retry_s=REOPEN_S)
                await trio.sleep(REOPEN_S)
                continue
            log.info("log opened")
            return
