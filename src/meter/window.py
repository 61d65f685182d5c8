"""What of a spool is in memory on its way to the fleet, and which streams are to be read on: decisions only.

Rule 1: what is in the window never exceeds its bound, but for one read: always something goes, if nothing is in it.
Rule 2: streams that are behind take turns, and have half of the window while there are any.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from meter.keeping_settings import KeepingSettings
from meter.lanes import KeptStream
from meter.spooled import Read


@define
class Window:
    """Counts what is on its way, and keeps the streams of which more waits on disk."""

    settings: KeepingSettings
    used_bytes: int = 0
    _behind: deque[KeptStream] = field(factory=deque)

    def fits_new(self, stream: KeptStream, size: int) -> bool:
        """Whether so much that was never on disk may go at once."""
        most = self.settings.window_bytes
        return self._fits(stream, size, most // 2 if self._behind else most)

    def add(self, stream: KeptStream, size: int) -> None:
        """So much more of a stream is on its way; less, when it is acknowledged."""
        stream.window_bytes += size
        self.used_bytes += size

    def wait(self, stream: KeptStream) -> None:
        """More of a stream waits on disk."""
        stream.queued = True
        self._behind.append(stream)

    def forget(self, stream: KeptStream) -> None:
        """Nothing more of a stream is to be read."""
        if stream.queued:
            self._behind.remove(stream)

    @property
    def may_read(self) -> bool:
        """Whether there is room for some of what waits."""
        return any(self._fits(stream, self.settings.read_bytes, self.settings.window_bytes) for stream in self._behind)

    def reads(self) -> list[Read]:
        """What is to be read back now; it is in the window already."""
        reads = []
        size = self.settings.read_bytes
        for _ in range(len(self._behind)):
            stream = self._behind.popleft()
            if not self._fits(stream, size, self.settings.window_bytes):
                self._behind.append(stream)
                continue
            stream.offered = True
            self.add(stream, size)
            reads.append(Read(stream.id, stream.loaded, size))
        return reads

    def _fits(self, stream: KeptStream, size: int, most_bytes: int) -> bool:
        if self.used_bytes and self.used_bytes + size > most_bytes:
            return False
        return not stream.window_bytes or stream.window_bytes + size <= self.settings.stream_window_bytes
