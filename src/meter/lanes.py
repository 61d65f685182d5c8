"""Exporters' lanes through a meter's spool, and the streams in them: values only. `keeping` decides about them."""

from __future__ import annotations

from collections import deque

from attrs import define, field

from sapflow.link import StreamId
from sapflow.link.account import NOTHING, Account


@define(eq=False)
class Lane:
    """One exporter's session, or, over UDP, its sessions one after the other."""

    org: str
    exporter: str
    droppable: bool = False
    source: str = ""
    closed: bool = False
    users: int = 1
    """Two protocols of one address and port are one exporter's."""
    streams: deque[KeptStream] = field(factory=deque)
    owed: Account = NOTHING
    """Of what was dropped before it was taken, since the last batch."""
    owes: bool = False
    """Whether something of what was taken was dropped since the last batch: the spool has its account."""

    @property
    def offset(self) -> int:
        """How many bytes of `source` were taken before a restart."""
        return max((stream.offset for stream in self.streams), default=0)


@define(eq=False)
class KeptStream:
    """One stream on its way through the spool; of the numbers each is at most the one before it."""

    id: StreamId
    lane: Lane
    order: int
    last: int = 0
    durable: int = 0
    loaded: int = 0
    """Up to here it was given to the link, or will be as soon as it is durable."""
    acknowledged: int = 0
    offered: bool = False
    stored: bool = False
    window_bytes: int = 0
    queued: bool = False
    """Whether it waits to be read, or is being read."""
    offset: int = 0

    @property
    def sealed(self) -> bool:
        """Whether nothing more is put."""
        return self.lane.closed or self.lane.streams[-1] is not self
