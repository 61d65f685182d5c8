"""Streams of exporters that cannot wait, by org and age: which of them may be given up for want of room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field

from meter.lanes import KeptStream

LATE_STREAMS = 64
"""So many that cannot be given up any more may be kept beside as many again as can."""


@define
class Droppable:
    """Those that were never offered; others leave it when they are come across."""

    is_held: Callable[[KeptStream], bool]
    """Whether a stream is there still."""
    _queues: dict[str, deque[KeptStream]] = field(factory=dict)
    _kept: dict[str, int] = field(factory=dict)
    """How many of an org's were left when they were last looked through."""

    def add(self, stream: KeptStream) -> None:
        """The youngest of its org."""
        org = stream.lane.org
        queue = self._queues.setdefault(org, deque())
        queue.append(stream)
        if len(queue) > 2 * self._kept.get(org, 0) + LATE_STREAMS:
            left = self._queues[org] = deque(filter(self._may_go, queue))
            self._kept[org] = len(left)

    def oldest(self, org: str) -> KeptStream | None:
        """An org's oldest that is whole on disk, and was never offered."""
        queue = self._queues.get(org, deque())
        while queue and not self._may_go(queue[0]):
            queue.popleft()
        return next((stream for stream in queue if stream.durable == stream.last and self._may_go(stream)), None)

    def _may_go(self, stream: KeptStream) -> bool:
        return not stream.offered and self.is_held(stream)
