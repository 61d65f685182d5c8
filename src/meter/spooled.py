"""What a meter's spool holds, and what is asked of it: values only. `spool` keeps them on disk, `keeping` decides.

A *lane* is the key that a stream's batches are stored under: its own id, but for a stream that goes on behind a batch
that could not be read back, which is found under the lane of the one before it.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import attrs
from attrs import define, field, frozen
from crc32c import crc32c

from sapflow.entry import FIXED, HEAD, CorruptEntry
from sapflow.link import Batch, StreamId
from sapflow.link.account import decode_account

_FIXED = struct.Struct("!16sQQQQQB")
_CRC = struct.Struct("!I")
_PAGE = 4096
_IN_LEAF = 1900
_DROPPABLE, _OFFERED = 1, 2
SPOOL_FULL = "spool_full"
"""Records that were given up, or not taken, for want of room in the spool."""
DAMAGED = "damaged"
"""Records of a batch that could not be read back from the spool, as far as its head tells how many."""


def beginning(batch: Batch) -> Batch:
    """A batch that its stream may begin with, though its number is not 1: those before it were another's."""
    account = decode_account(batch.account, batch.records)
    return attrs.evolve(batch, account=attrs.evolve(account, begins=True).encode(batch.records))


def charge(size: int) -> int:
    """Bytes that a value of `size` takes on disk: whole pages, or twice itself in a leaf that may be half full."""
    return -(-(size + 16) // _PAGE) * _PAGE + 64 if size > _IN_LEAF else 2 * (size + 48)


def entry_charge(exporter: str, batch: Batch) -> int:
    """As `charge`, of a batch that is not stored yet."""
    return charge(HEAD.size + FIXED.size + len(exporter.encode()[:255]) + len(batch.account) + len(batch.payload))


@define
class StreamRecord:
    """One stream: its numbers, and whose it is."""

    id: StreamId
    lane: bytes
    org: str
    exporter: str
    order: int
    """Streams of one spool are told apart by age with it: a later one has a higher."""
    source: str = ""
    """What it is read from, where that can be read again after a restart: a file."""
    droppable: bool = False
    """Its exporter cannot be made to wait."""
    offered: bool = False
    """Whether any of it may ever have been sent. What was is never given up: the fleet may hold a part of it."""
    first: int = 1
    """The lowest number held; `last + 1` when none is."""
    last: int = 0
    """The highest number ever put, which is never used again."""
    held_bytes: int = 0
    offset: int = 0
    """How many bytes of `source` are in batches up to `last`."""
    oldest_us: int = field(default=0, eq=False)
    """When its lowest batch was taken in; not stored."""

    @property
    def empty(self) -> bool:
        """Whether it holds no batch."""
        return self.first > self.last

    def encode(self) -> bytes:
        """Its stored form, behind a CRC."""
        flags = _DROPPABLE * self.droppable | _OFFERED * self.offered
        fixed = _FIXED.pack(self.lane, self.order, self.first, self.last, self.held_bytes, self.offset, flags)
        body = fixed + json.dumps([self.org, self.exporter, self.source]).encode()
        return _CRC.pack(crc32c(body)) + body

    @classmethod
    def decode(cls, stream: bytes, data: bytes) -> StreamRecord:
        """From its stored form. Raises CorruptEntry."""
        if len(data) < _CRC.size + _FIXED.size or _CRC.unpack_from(data)[0] != crc32c(data[_CRC.size :]):
            raise CorruptEntry("a stream's record in the spool does not match its checksum")
        lane, order, first, last, held, offset, flags = _FIXED.unpack_from(data, _CRC.size)
        org, exporter, source = json.loads(data[_CRC.size + _FIXED.size :])
        droppable, offered = bool(flags & _DROPPABLE), bool(flags & _OFFERED)
        return cls(StreamId(stream), lane, org, exporter, order, source, droppable, offered, first, last, held, offset)


@define
class Totals:
    """What has become of all that this spool ever took: taken = acknowledged + dropped + corrupt + held."""

    taken_batches: int = 0
    taken_records: int = 0
    acknowledged_batches: int = 0
    acknowledged_records: int = 0
    dropped_batches: int = 0
    dropped_records: int = 0
    corrupt_batches: int = 0
    corrupt_records: int = 0
    """As far as their heads could be read."""

    def encode(self) -> bytes:
        """Its stored form."""
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def decode(cls, data: Any) -> Totals:
        """From its stored form, or None."""
        return cls(**json.loads(bytes(data))) if data is not None else cls()

    @property
    def held_batches(self) -> int:
        """Batches in the spool now."""
        return self.taken_batches - self.acknowledged_batches - self.dropped_batches - self.corrupt_batches

    @property
    def held_records(self) -> int:
        """Records in the spool now."""
        return self.taken_records - self.acknowledged_records - self.dropped_records - self.corrupt_records


@frozen
class Put:
    """A batch to be kept; `offset` as in StreamRecord. `offered`: it goes to the link as soon as it is durable."""

    stream: StreamId
    batch: Batch
    offered: bool
    offset: int = 0


@frozen
class Cut:
    """Batch `at` of `old` cannot be read: `old` ends before it, and what is behind it is of stream `new`."""

    old: StreamId
    at: int
    new: StreamId


@frozen
class Read:
    """Batches wanted back: those of `stream` behind number `after`, about `most_bytes` of them, at least one."""

    stream: StreamId
    after: int
    most_bytes: int


@frozen
class Found:
    """What a Read gave: batches in order, and the number behind them if that one is damaged."""

    batches: list[Batch]
    damaged: int | None = None


@define
class Changes:
    """One transaction's work, done in this order. All of it may be asked for again: what is done is left as it is."""

    acknowledged: dict[StreamId, int] = field(factory=dict)
    dropped: set[StreamId] = field(factory=set)
    cuts: list[Cut] = field(factory=list)
    opened: dict[StreamId, StreamRecord] = field(factory=dict)
    put: list[Put] = field(factory=list)
    read: list[Read] = field(factory=list)
    """What is read may be sent, so its streams are marked as offered in the same transaction."""
    ended: set[StreamId] = field(factory=set)
    """Streams that hold nothing and get nothing more."""
    notes: dict[str, str] = field(factory=dict)

    def __bool__(self) -> bool:
        return any(getattr(self, name.name) for name in attrs.fields(Changes))


@frozen
class Applied:
    """What a transaction did; durable."""

    records: dict[StreamId, StreamRecord | None]
    """Every stream that changed; None for one that is no more."""
    put: list[Batch]
    """Those of `Changes.put`, whose accounts tell of what was dropped before them."""
    totals: Totals
    found: dict[StreamId, Found]
    touched_bytes: int
