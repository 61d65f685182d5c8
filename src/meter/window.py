"""What of a spool is in memory on its way to the fleet, and which streams are to be read on: decisions only.

Rule 1: what is in the window never exceeds its bound, but for one batch: always something goes, if nothing is in it.
Rule 2: no org has more of it than its share (see `room`); orgs take turns, and inside an org its streams do.
Rule 3: those that are behind have half of the window while there are any of their org.
"""

from __future__ import annotations

from collections import Counter, deque

from attrs import define, field

from meter.keeping_settings import KeepingSettings
from meter.lanes import KeptStream
from meter.share import Share
from meter.spooled import Read


@define
class Window:
    """Counts what is on its way, and keeps the streams of which more waits on disk."""

    settings: KeepingSettings
    used_bytes: int = 0
    _used_by: Counter[str] = field(factory=Counter)
    _behind: dict[str, deque[KeptStream]] = field(factory=dict)
    _share: Share = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._share = Share(self.settings.org_share)

    def used_of(self, org: str) -> int:
        """An org's part of `used_bytes`."""
        return self._used_by[org]

    def fits_new(self, stream: KeptStream, size: int) -> bool:
        """Whether so much that was never on disk may go at once."""
        most, org = self.settings.window_bytes, stream.lane.org
        if not self._fits_stream(stream, size):
            return False
        most = most // 2 if self._behind.get(org) else most
        return not self.used_bytes or self._share.fits(size, self._used_by[org], self.used_bytes, most)

    def add(self, stream: KeptStream, size: int) -> None:
        """So much more of a stream is on its way; less, when it is acknowledged."""
        stream.window_bytes += size
        self._used_by[stream.lane.org] += size
        self.used_bytes += size

    def wait(self, stream: KeptStream) -> None:
        """More of a stream waits on disk."""
        stream.queued = True
        self._behind.setdefault(stream.lane.org, deque()).append(stream)

    def forget(self, stream: KeptStream) -> None:
        """Nothing more of a stream is to be read."""
        if stream.queued:
            self._behind[stream.lane.org].remove(stream)

    @property
    def may_read(self) -> bool:
        """Whether there is room for some of what waits."""
        for org, behind in self._behind.items():
            size = self._read_size(org)
            if size and any(self._fits_stream(stream, size) for stream in behind):
                return True
        return False

    def reads(self) -> list[Read]:
        """What is to be read back now; it is in the window already."""
        reads: list[Read] = []
        for org in list(self._behind):
            behind = self._behind.pop(org)
            self._read_some(org, behind, reads)
            if behind:
                self._behind[org] = behind  # as the last, after those that had their turn before
        return reads

    def _read_some(self, org: str, behind: deque[KeptStream], reads: list[Read]) -> None:
        for _ in range(len(behind)):
            size = self._read_size(org)
            if not size:
                return
            stream = behind.popleft()
            if not self._fits_stream(stream, size):
                behind.append(stream)
                continue
            stream.offered = True
            self.add(stream, size)
            reads.append(Read(stream.id, stream.loaded, size))

    def _read_size(self, org: str) -> int:
        """How much of an org may be read at once, 0 for nothing: less than usual only where it has nothing yet."""
        usual, mine = self.settings.read_bytes, self._used_by[org]
        room = int(self._share.room(mine, self.used_bytes, self.settings.window_bytes))
        if room >= usual or not self.used_bytes:
            return usual
        return room if room > 0 and not mine else 0

    def _fits_stream(self, stream: KeptStream, size: int) -> bool:
        return not stream.window_bytes or stream.window_bytes + size <= self.settings.stream_window_bytes
