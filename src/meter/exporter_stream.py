"""What an intake asks of whoever takes its batches: an uplink, or the spool in front of one."""

from __future__ import annotations

from typing import Protocol

from meter.batching import Draft
from meter.left import LeftStream


class ExporterStream(Protocol):
    """Where an intake puts what one exporter sends."""

    def is_full(self, most_bytes: int) -> bool:
        """Whether what an exporter sends that cannot be made to wait is to be dropped: `most_bytes` are in memory."""

    async def room(self) -> None:
        """Wait until an exporter that can wait may be read from."""

    async def put(self, draft: Draft) -> object:
        """Take a batch, waiting for room."""

    def put_now(self, draft: Draft) -> object:
        """As `put`, whatever is held: for the last batch of a session that has ended."""

    def end(self) -> None:
        """Nothing more will be put."""

    async def settled(self) -> None:
        """Wait until nothing of it is in this process's memory alone."""

    def state(self) -> LeftStream | None:
        """What a successor needs to go on with it; None while some of it would be lost with this process."""

    def leave(self) -> None:
        """A successor goes on with it, and this process does nothing more about it."""


class StreamSource(Protocol):
    """Gives an intake its streams: an uplink, or the spool in front of one."""

    def open_stream(self, org: str, exporter: str) -> ExporterStream:
        """A stream for an exporter's session."""

    def resume_stream(self, org: str, exporter: str, left: LeftStream) -> ExporterStream:
        """A stream that another process left, for the rest of its exporter's session."""
