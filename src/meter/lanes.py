"""Exporters' lanes through a meter's spool, and the streams in them: values only. `keeping` decides about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from attrs import define, field

from meter.left import LeftStream
from meter.spooled import StreamRecord
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


def reopened(records: Iterable[StreamRecord], lanes: dict[tuple[str, str, str], Lane]) -> Iterator[KeptStream]:
    """Streams that an earlier life left, in their order; `lanes` are those that are found again, by their key."""
    for record in sorted(records, key=lambda record: (record.order, record.first)):
        key = (record.org, record.exporter, record.source)
        lane = lanes.get(key) if record.droppable or record.source else None
        if lane is None:
            lane = Lane(record.org, record.exporter, record.droppable, record.source, not record.source, 0)
            if record.droppable or record.source:
                lanes[key] = lane
        before = record.first - 1
        numbers = (record.order, record.last, record.last, before, before)
        stream = KeptStream(record.id, lane, *numbers, record.offered, True, offset=record.offset)
        lane.streams.append(stream)
        yield stream


def resumed(left: LeftStream, lane: Lane, order: int) -> KeptStream:
    """A stream that another process left, of which nothing is here: it goes on behind what is durable."""
    before = left.last - len(left.batches)
    stream = KeptStream(left.id, lane, order, before, before, before, before, offered=True)
    lane.streams.append(stream)
    return stream
