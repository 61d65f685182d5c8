"""One exporter's TCP session, read into batches until it is over, or another process goes on with it.

A message that comes a byte at a time has its time, and so has an exporter that says nothing; what came whole is kept,
however the session ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
import trio
from attrs import define, frozen

from meter.batching import FEED_BYTES, Batcher, Draft
from meter.exporter_stream import ExporterStream
from meter.faults import Faults
from meter.left import LeftSession
from sapflow.errors import MalformedMessage
from sapflow.flows.limits import FlowLimits
from sapflow.runtime.addresses import split_address

log = structlog.get_logger()

STOPS_WITHIN_S = 1.0
"""An exporter whose session is to end is waited for so long, …"""
QUIET_S = 0.2
"""… or until it has said nothing for so long; …"""
EMPTY_S = 0.005
"""… then what has come is read, and nothing more."""
SETTLES_WITHIN_S = 1.0
"""What was read of a session that is left is waited for so long to be durable: what is not goes with it."""

Leave = Callable[[trio.SocketStream, LeftSession], Awaitable[bool]]
"""Leaves a session to a successor, with its socket: whether it is that one's now."""


@frozen
class IntakeSettings:
    """Bounds of an intake; `message_timeout_s` bounds a message that comes a byte at a time."""

    batch_bytes: int = 64 << 10
    flush_interval_s: float = 1.0
    message_timeout_s: float = 30.0
    idle_timeout_s: float = 3600.0
    receive_bytes: int = FEED_BYTES
    limits: FlowLimits = FlowLimits(max_malformed_in_a_row=3)


@define
class IntakeCounts:
    """What all exporters of this intake have brought; never goes down."""

    exporters: int = 0
    sessions: int = 0
    resumed: int = 0
    """Sessions that another process began."""
    left: int = 0
    """Sessions left to another process."""
    bytes: int = 0
    messages: int = 0
    records: int = 0
    batches: int = 0
    malformed: int = 0
    timed_out: int = 0
    lost_records: int = 0
    undecodable_sets: int = 0
    refused_sets: int = 0
    """Sets that could not be read, left out of their messages; `Intake.faults` has them by reason and exporter."""
    redefined_templates: int = 0
    stray_withdrawals: int = 0
    """Withdrawals of templates that were not known."""


class _Silent(Exception):
    """An exporter that has said nothing for long is let go; it is not at fault."""


class ExporterSession:
    """`run` carries it; `totals` and `faults` are those of all sessions."""

    def __init__(
        self,
        transport: trio.abc.Stream,
        peer: str,
        org: str,
        batcher: Batcher,
        stream: ExporterStream,
        settings: IntakeSettings,
        totals: IntakeCounts,
        faults: Faults,
    ) -> None:
        self._settings = settings
        self._totals = totals
        self._faults = faults
        self._transport = transport
        self._peer = peer
        self._org = org
        self._batcher = batcher
        self._stream = stream
        self._unput: Draft | None = None
        """What waits for room."""
        self._refused = 0
        self._noted: Counter[str] = Counter()
        self._waiting = trio.CancelScope()
        self._stops_at = float("inf")
        self._leave: Leave | None = None
        self._is_left = False

    def stop(self, leave: Leave | None = None) -> None:
        """Leave the session to a successor, if that can be; else end it when what the exporter has sent is read."""
        if isinstance(self._transport, trio.SocketStream):
            self._leave = leave
        if self._leave is None:
            self._stops_at = trio.current_time() + STOPS_WITHIN_S
        self._waiting.cancel()

    async def run(self) -> MalformedMessage | None:
        ended = "the exporter closed"
        try:
            while not await self._read():
                if await self._is_taken_over():
                    self._totals.left += 1
                    return None
                self.stop()
            if self._stops_at < float("inf"):
                ended = "this door is being drained"
        except MalformedMessage as fault:
            ended = "malformed message"
            self._totals.malformed += 1
            self._faults.count(split_address(self._peer)[0], {fault.reason: 1})
            log.warning(
                "exporter cut off",
                peer=self._peer,
                org=self._org,
                offset=fault.offset,
                what=fault.what,
                taken_records=self._batcher.counts.records,
                advice="connection closed; all records before this message are kept. The exporter is faulty or this "
                "is not IPFIX",
            )
        except _Silent:
            ended = f"it said nothing for {self._settings.idle_timeout_s:g} s"
        except trio.TooSlowError:
            ended = "a message did not come whole in time"
            self._totals.timed_out += 1
            log.warning("exporter cut off", peer=self._peer, org=self._org, what=ended)
        except trio.BrokenResourceError:
            ended = "the connection broke"
        finally:
            if not self._is_left:
                self._put_last()
                self._stream.end()
            self._add_up()
        log.info(
            "exporter left",
            peer=self._peer,
            org=self._org,
            reason=ended,
            records=self._batcher.counts.records,
            lost=self._batcher.counts.lost_records,
            undecodable_sets=self._batcher.counts.undecodable_sets,
            redefined_templates=self._batcher.counts.redefined_templates,
            stray_withdrawals=self._batcher.counts.stray_withdrawals,
        )
        return self._batcher.fault

    def _note_refused(self) -> None:
        """Count sets that were left out since last time; told at the 1st, 2nd, 4th, 8th … of a session."""
        refused = self._batcher.counts.refused_sets
        before, self._refused = self._refused, refused.total()
        self._totals.refused_sets += self._refused - before
        self._faults.count(split_address(self._peer)[0], refused - self._noted)
        self._noted = refused.copy()
        if self._refused.bit_length() > before.bit_length():
            log.warning(
                "sets left out",
                peer=self._peer,
                org=self._org,
                sets=self._refused,
                reasons=dict(refused),
                advice="they could not be read; all other sets are kept. The exporter is faulty, or its templates are "
                "out of step with its data",
            )

    async def _is_taken_over(self) -> bool:
        """Whether a successor has the session now, with all that it needs to go on."""
        leave, self._leave = self._leave, None
        assert leave is not None
        assert isinstance(self._transport, trio.SocketStream)
        self._put_last()
        with trio.move_on_after(SETTLES_WITHIN_S):
            await self._stream.settled()
        stream = self._stream.state()
        if stream is not None:
            left = LeftSession(self._org, self._peer, stream, self._batcher.state())
            self._is_left = await leave(self._transport, left)
        if self._is_left:
            self._stream.leave()
        return self._is_left

    def _put_last(self) -> None:
        """What came whole is delivered even after the session ended; the stream's outbox has room for one more."""
        if self._unput is not None:
            self._stream.put_now(self._unput)
            self._unput = None
        draft = self._batcher.last()
        if draft is not None:
            self._count(draft.messages, draft.records)
            self._stream.put_now(draft)

    def _add_up(self) -> None:
        counts, total = self._batcher.counts, self._totals
        total.lost_records += counts.lost_records
        total.undecodable_sets += counts.undecodable_sets
        total.redefined_templates += counts.redefined_templates
        total.stray_withdrawals += counts.stray_withdrawals

    @contextmanager
    def _wait(self, deadline: float = float("inf")) -> Iterator[trio.CancelScope]:
        """For what is waited for no longer when the session is to be left, or stopped."""
        with trio.CancelScope(deadline=deadline) as self._waiting:
            yield self._waiting

    async def _read(self) -> bool:
        """Until the session is over; False when it is to be left to a successor."""
        settings, batcher, counts = self._settings, self._batcher, self._totals
        message_since = flush_since = trio.current_time()
        while True:
            before = trio.current_time()
            with self._wait():
                await self._stream.room()
            if self._leave is not None:
                return False
            now = trio.current_time()
            # While it was not read from, an exporter could not send the rest of its message.
            message_since += now - before
            deadline = now + settings.idle_timeout_s
            if batcher.partial_bytes:
                deadline = min(deadline, message_since + settings.message_timeout_s)
            if batcher.waiting_bytes:
                deadline = min(deadline, flush_since + settings.flush_interval_s)
            stopping = self._stops_at < float("inf")
            if stopping:
                deadline = now + (QUIET_S if now < self._stops_at else EMPTY_S)
            data = b""
            with self._wait(deadline) as scope:
                data = bytes(await self._transport.receive_some(settings.receive_bytes))
            now = trio.current_time()
            if scope.cancelled_caught:
                if self._leave is not None:
                    return False
                if stopping:
                    return True
                if self._stops_at < float("inf"):
                    await _say_no_more(self._transport)
                    continue
                if batcher.waiting_bytes and now >= flush_since + settings.flush_interval_s:
                    draft = batcher.flush()
                elif batcher.partial_bytes:
                    raise trio.TooSlowError
                elif now >= deadline:
                    raise _Silent
                else:
                    continue
            elif not data:
                return True
            else:
                counts.bytes += len(data)
                was_waiting, was_partial = batcher.waiting_bytes, batcher.partial_bytes
                taken = batcher.counts.messages
                draft = batcher.feed(data)
                if batcher.counts.refused_sets:
                    self._note_refused()
                if not was_waiting:
                    flush_since = now
                if not was_partial or batcher.counts.messages != taken:
                    message_since = now
            if draft is not None:
                self._count(draft.messages, draft.records)
                await self._put(draft)
                message_since += trio.current_time() - now
                flush_since = trio.current_time()
            if batcher.fault is not None:
                raise batcher.fault

    async def _put(self, draft: Draft) -> None:
        """A session that is to be left or stopped does not wait for room."""
        self._unput = draft
        with self._wait():
            await self._stream.put(draft)
            self._unput = None
        if self._unput is not None:
            self._unput = None
            self._stream.put_now(draft)

    def _count(self, messages: int, records: int) -> None:
        counts = self._totals
        counts.batches += 1
        counts.messages += messages
        counts.records += records


async def _say_no_more(transport: trio.abc.Stream) -> None:
    """An exporter that looks sees that the session ends, and sends the rest to the next."""
    if isinstance(transport, trio.abc.HalfCloseableStream):
        try:
            await transport.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("exporter has gone already")
