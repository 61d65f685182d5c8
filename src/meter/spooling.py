"""The spool between intakes and the uplink: the task that writes it, and the streams that intakes put into.

One transaction at a time, in a thread of its own; what comes meanwhile is in the next (group commit). Acknowledgements
alone wait a moment for company, since each transaction is a sync. No task that carries data waits for the disk.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from functools import partial

import structlog
import trio
from attrs import define, field, frozen

from meter.batching import Draft
from meter.keeping import Keeping
from meter.keeping_settings import KeepingSettings
from meter.lanes import KeptStream, Lane
from meter.left import LeftStream
from meter.spool import Spool, SpoolFull
from meter.spooled import Applied, Changes
from meter.uplink import Uplink, UplinkStream
from sapflow.errors import StorageError
from sapflow.link import Batch, StreamId
from sapflow.runtime.threads import ThreadKind

log = structlog.get_logger()

COMPANY_S = 0.1
RETRY_S = 0.2
RETRY_MOST_S = 5.0


def random_id() -> StreamId:
    """An id that was never used before."""
    return StreamId(os.urandom(16))


@define(eq=False)
class SpooledStream:
    """What an intake puts one exporter's batches into."""

    spooling: Spooling
    lane: Lane
    _last: tuple[KeptStream, int] | None = None

    def is_full(self, most_bytes: int) -> bool:
        """Never because of what is in memory: an exporter that cannot wait is dropped from when no room can be made."""
        return False

    async def room(self) -> None:
        """Wait for room in the spool."""
        await self.spooling.room(self.lane.org)

    async def put(self, draft: Draft, offset: int = 0) -> None:
        """Take a batch, waiting for room in the spool."""
        await self.spooling.room(self.lane.org)
        self.put_now(draft, offset)

    def put_now(self, draft: Draft, offset: int = 0) -> None:
        """Take a batch, whatever is held; that of an exporter that cannot wait is dropped when no room can be made."""
        spooling = self.spooling
        stream = spooling.keeping.put(self.lane, draft, time.time_ns() // 1000, offset)
        if stream is None:
            spooling.told_of_drops()
        else:
            self._last = (stream, stream.last)
            spooling.wake()

    async def durable(self) -> None:
        """Wait until all that was put is on disk."""
        while self._last is not None and self._last[0].durable < self._last[1]:
            await self.spooling.changed.park()

    async def settled(self) -> None:
        """As `durable`: what is on disk is found there by the next process."""
        await self.durable()

    def state(self) -> LeftStream | None:
        """What a successor needs to go on with it, when all of it is in the spool."""
        if not self.lane.streams:
            return LeftStream(random_id(), 0, 0)
        newest = self.lane.streams[-1]
        if newest.durable < newest.last:
            return None
        return LeftStream(newest.id, newest.last, newest.acknowledged)

    def leave(self) -> None:
        """A successor goes on with it: its lane stays open on disk."""

    def end(self) -> None:
        """Nothing more will be put."""
        self.spooling.keeping.close(self.lane)
        self.spooling.wake(urgent=False)


@frozen
class SpooledDoor:
    """Streams for one kind of exporters: those that can be made to wait, or those that cannot."""

    spooling: Spooling
    droppable: bool

    def open_stream(self, org: str, exporter: str) -> SpooledStream:
        """A stream for an exporter's session."""
        return SpooledStream(self.spooling, self.spooling.keeping.lane(org, exporter, droppable=self.droppable))

    def resume_stream(self, org: str, exporter: str, left: LeftStream) -> SpooledStream:
        """A stream that another process left, for the rest of its exporter's session."""
        lane = self.spooling.keeping.resume(org, exporter, left, time.time_ns() // 1000)
        self.spooling.wake()
        return SpooledStream(self.spooling, lane)


@define
class Spooling:
    """A spool in front of an uplink. `run()` is its task."""

    spool: Spool
    uplink: Uplink
    settings: KeepingSettings = KeepingSettings()
    keeping: Keeping = field(init=False)
    changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    transactions: int = 0
    last_error: str = ""
    busy_since: float | None = None
    """When the transaction that is being written began."""
    _offered: dict[StreamId, UplinkStream] = field(factory=dict)
    _thread: ThreadKind = field(factory=lambda: ThreadKind("spool", 1))
    _waiting: defaultdict[str, trio.lowlevel.ParkingLot] = field(factory=lambda: defaultdict(trio.lowlevel.ParkingLot))
    """Exporters that wait for room, by org."""
    _work: trio.Event = field(factory=trio.Event)
    _urgent: trio.Event = field(factory=trio.Event)
    _drops_told: int = 0
    _writing: Changes | None = None

    def __attrs_post_init__(self) -> None:
        self.keeping = Keeping(self.spool, self.settings, random_id)
        if self.keeping.streams:
            self.wake()

    @property
    def waiting(self) -> SpooledDoor:
        """For exporters that can be made to wait."""
        return SpooledDoor(self, droppable=False)

    @property
    def dropping(self) -> SpooledDoor:
        """For exporters that cannot."""
        return SpooledDoor(self, droppable=True)

    def file(self, org: str, exporter: str, source: str) -> SpooledStream:
        """A stream for a file; one that was begun before a restart goes on (`lane.offset` says from where)."""
        return SpooledStream(self, self.keeping.lane(org, exporter, source=source))

    async def room(self, org: str) -> None:
        """Wait until an org's exporters that can wait may go on."""
        while not self.keeping.room.for_waiting(org):
            await self._waiting[org].park()

    @property
    def waiting_exporters(self) -> int:
        """Exporters that wait for room."""
        return sum(map(len, self._waiting.values()))

    def wake(self, *, urgent: bool = True) -> None:
        """There is something to write."""
        self._work.set()
        if urgent:
            self._urgent.set()

    def told_of_drops(self) -> None:
        """Say that batches are being dropped: the 1st, 2nd, 4th, 8th …"""
        refused = self.keeping.refused_batches
        if refused >= 2 * self._drops_told:
            self._drops_told = refused
            log.warning("batch dropped", dropped=refused, reason="the spool is full, and its exporter cannot wait")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes, and offer it to the uplink once it is durable, until cancelled."""
        task_status.started()
        while True:
            await self._work.wait()
            with trio.move_on_after(COMPANY_S):
                await self._urgent.wait()
            self._work, self._urgent = trio.Event(), trio.Event()
            await self.turn()

    async def turn(self) -> None:
        """One transaction, and what follows from it."""
        keeping = self.keeping
        # One that was cancelled on its way is begun again: what it collected is nowhere else.
        changes = self._writing = self._writing or keeping.collect()
        applied = await self._write(changes) if changes else None
        self._writing = None
        if applied is None:
            return
        self.transactions += 1
        for offer in keeping.applied(changes, applied):
            self._stream(offer.stream).offer(offer.batch)
        finished, keeping.finished = keeping.finished, []
        for stream in finished:
            if (offered := self._offered.pop(stream.id, None)) is not None:
                offered.end()
        if keeping.has_work:
            self.wake()
        self.changed.unpark_all()
        for org, waiting in self._waiting.items():
            if waiting and keeping.room.for_waiting(org):
                waiting.unpark_all()

    async def until_written(self) -> None:
        """Wait until all that was put is on disk; `run` writes it."""
        while self.keeping.pending.used_bytes:
            await self.changed.park()

    async def until_empty(self) -> None:
        """Wait until all that was put is durable in the log."""
        while self.keeping.pending.used_bytes or self.spool.totals.held_batches:
            await self.changed.park()

    async def flush(self) -> None:
        """Write all that was put, at the end; nothing more is offered to anyone who would listen."""
        while self.keeping.may_write or self._writing:
            await self.turn()
        if left := self.keeping.pending.used_bytes:
            log.error("batches not kept", bytes=left, reason="the spool is full; they were the last of their sessions")

    def _stream(self, kept: KeptStream) -> UplinkStream:
        stream = self._offered.get(kept.id)
        if stream is None:
            stream = self._offered[kept.id] = self.uplink.open_stream(kept.lane.org, kept.lane.exporter, kept.id)
            stream.on_acknowledged = partial(self._acknowledged, kept.id)
            stream.on_replaced = partial(self.keeping.replaced, kept.id)
        return stream

    def _acknowledged(self, stream: StreamId, batch: Batch) -> None:
        self.keeping.acknowledged(stream, batch)
        self.wake(urgent=False)

    async def _write(self, changes: Changes) -> Applied:
        delay_s = RETRY_S
        while True:
            self.busy_since = trio.current_time()
            try:
                with trio.CancelScope(shield=True):
                    applied = await self._thread.run(partial(self.spool.write, changes))
                self.last_error = ""
                return applied
            except SpoolFull as error:
                self._failed(error)
                # What makes room is in the same transaction: it goes without the batches, which come again.
                self.keeping.put_back(changes)
            except StorageError as error:
                self._failed(error)
                await self._reopen()
            finally:
                self.busy_since = None
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MOST_S)

    async def _reopen(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                await self._thread.run(self.spool.reopen)
        except StorageError as error:
            self._failed(error)

    def _failed(self, error: StorageError) -> None:
        if str(error) != self.last_error:
            log.error("spool not written", reason=str(error), meaning="nothing is lost; exporters that can wait do")
        self.last_error = str(error)
