"""Exporters' TCP sessions into streams: plain IPFIX in, numbered batches out.

Backpressure is TCP's own: while a stream may hold no more unacknowledged bytes its exporter is not read from.
A malformed message ends its exporter's session; what came whole before it is kept. A set that cannot be read within a
message that can is left out, counted and told, and the session goes on.

A process that ends may leave its sessions to its successor (`left` says what goes with a socket): at the end of a batch
a session is read from no more, and goes on there. What cannot be left, as TLS, is read until it is quiet, and ended.
"""

from __future__ import annotations

import trio

from meter.batching import Batcher
from meter.exporter_session import ExporterSession, IntakeCounts, IntakeSettings, Leave
from meter.exporter_stream import ExporterStream, StreamSource
from meter.faults import Faults
from meter.left import LeftSession
from sapflow.errors import MalformedMessage

__all__ = ["Intake", "IntakeCounts", "IntakeSettings", "Leave"]


class Intake:
    """Reads exporters' sessions into an uplink's streams."""

    def __init__(self, uplink: StreamSource, settings: IntakeSettings) -> None:
        self.uplink = uplink
        self.settings = settings
        self.counts = IntakeCounts()
        self.faults = Faults()
        """What could not be read: messages, which end their session, and sets."""
        self._sessions: set[ExporterSession] = set()
        self._emptier = trio.lowlevel.ParkingLot()
        self._is_stopping = False
        self._leave: Leave | None = None

    async def stop(self, leave: Leave | None = None) -> None:
        """Leave sessions to a successor, or read what was sent and end them; returns when none is here any more."""
        self._is_stopping, self._leave = True, leave
        for session in list(self._sessions):
            session.stop(leave)
        while self._sessions:
            await self._emptier.park()

    async def session(self, stream: trio.abc.Stream, peer: str, org: str) -> MalformedMessage | None:
        """Carry one exporter's transport session until it ends: what was malformed, when that ended it."""
        self.counts.sessions += 1
        batcher = Batcher(self.settings.limits, batch_bytes=self.settings.batch_bytes)
        return await self._carry(self._session(stream, peer, org, batcher, self.uplink.open_stream(org, peer)))

    async def resume(self, stream: trio.abc.Stream, left: LeftSession) -> MalformedMessage | None:
        """As `session`, for one that another process has left: it goes on as if nothing had been."""
        self.counts.resumed += 1
        batcher = Batcher.resumed(left.batcher, self.settings.limits, batch_bytes=self.settings.batch_bytes)
        goes_to = self.uplink.resume_stream(left.org, left.peer, left.stream)
        return await self._carry(self._session(stream, left.peer, left.org, batcher, goes_to))

    def _session(
        self, transport: trio.abc.Stream, peer: str, org: str, batcher: Batcher, goes_to: ExporterStream
    ) -> ExporterSession:
        return ExporterSession(transport, peer, org, batcher, goes_to, self.settings, self.counts, self.faults)

    async def _carry(self, reader: ExporterSession) -> MalformedMessage | None:
        self._sessions.add(reader)
        if self._is_stopping:
            reader.stop(self._leave)
        self.counts.exporters += 1
        try:
            return await reader.run()
        finally:
            self.counts.exporters -= 1
            self._sessions.discard(reader)
            if not self._sessions:
                self._emptier.unpark_all()
