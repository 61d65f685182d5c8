"""The ledger of one partition of the log, as its entries say; pure.

Rule 1: what a fold holds depends on nothing but the entries up to its position `through`, in their order: whoever folds
them, and in however many goes, comes to the same. So a checkpoint may be taken up by any node, and an old one too.
Rule 2: an entry counts once. Of a stream, a number that is not above its mark has been counted; readers drop it too.
Rule 3: a gap in a stream's numbers is *missing*, since first appearances are in order; unless what is between may have
stood where retention removed it before it was folded, or in front of what is known of a stream: then it is *unknown*.
Rule 4: it is bounded. Rows of streams that were silent for longest are added to their org's; of those only the mark is
kept, and only of so many.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b

from attrs import define, field

from phloem.engine.kafka.ledger_points import LEAST_BYTES, MAX_POINTS, Point, Points
from phloem.engine.layout import ORG
from phloem.engine.ledger import Row, decode_row, encode_row
from sapflow.entry import LogEntry
from sapflow.ledger import StreamLedger

MAX_STREAMS = 16_384
"""Whose rows are kept of a partition, those heard of last: 5 MiB of memory."""
MAX_FORGOTTEN = 16_384
"""Streams without a row whose mark is kept."""
MAX_REPEATED = 16_384
"""Positions of entries that had been counted before, the newest."""
ROW_HEAD = struct.Struct("!QQQ")
"""A stream's mark, the position of its last entry, and its unknown batches; the row as in the embedded log follows."""
MARK = struct.Struct("!8sQ")


@define(eq=False, slots=True)
class Stream:
    """A stream's row while entries are folded."""

    mark: int
    position: int
    unknown: int
    row: Row
    heard_us: int

    @classmethod
    def unpack(cls, data: bytes) -> Stream:
        """What `pack` gave."""
        mark, position, unknown = ROW_HEAD.unpack_from(data)
        return cls(mark, position, unknown, Row(data[ROW_HEAD.size :]), heard_us(data))

    def pack(self) -> bytes:
        """Its stored form."""
        return ROW_HEAD.pack(self.mark, self.position, self.unknown) + self.row.encode(self.heard_us)


def heard_us(data: bytes) -> int:
    """When a packed stream was last heard of."""
    return int.from_bytes(data[ROW_HEAD.size : ROW_HEAD.size + 8], "big")


@define(eq=False, slots=True)
class OrgSum:
    """An org of a partition, beside the rows of its streams."""

    number: int
    name: bytes
    entries: int = 0
    records: int = 0
    """Both of all its streams, each counted once."""
    folded: bytes = b""
    """The row of streams that have none of their own any more."""
    unknown: int = 0
    """Their unknown batches."""
    noted_bytes: int = 0
    """Where in the partition its last point is."""
    points: Points | None = None


class Forgotten:
    """Marks of streams without a row, oldest first, by a hash of 8 bytes: 16 bytes each."""

    def __init__(self, data: bytes = b"") -> None:
        self._marks = bytearray(data)

    def __bytes__(self) -> bytes:
        return bytes(self._marks)

    def add(self, key: bytes, mark: int) -> bool:
        """Remember a mark: whether the oldest had to go for it."""
        self._marks += MARK.pack(_hashed(key), mark)
        is_full = len(self._marks) > MAX_FORGOTTEN * MARK.size
        if is_full:
            del self._marks[: MARK.size]
        return is_full

    def pop(self, key: bytes) -> int:
        """A stream's mark, which is not kept here any more; 0 when none is known."""
        wanted, at = _hashed(key), -1
        while (at := self._marks.find(wanted, at + 1)) >= 0:
            if at % MARK.size == 0:
                mark: int = MARK.unpack_from(self._marks, at)[1]
                del self._marks[at : at + MARK.size]
                return mark
        return 0


def _hashed(key: bytes) -> bytes:
    return blake2b(key, digest_size=8).digest()


@define(eq=False)
class Fold:
    """A partition's ledger up to the position `through`."""

    topic_id: str = ""
    """Of the topic that it was folded from, as Kafka names it; empty where it does not."""
    begun: int = 0
    """Before the first entry that was folded."""
    unknown_through: int = 0
    """What stands up to here and was not folded was removed before that; 0 when nothing was."""
    why: str = ""
    """Why it did not begin with the log, or missed some of it."""
    through: int = 0
    read_bytes: int = 0
    """Of all entries folded, others' too."""
    newest_us: int = 0
    repeats: int = 0
    damaged: int = 0
    """Entries that are not what was written, or were never ours."""
    has_dropped_marks: bool = False
    point_bytes: int = field(factory=lambda: LEAST_BYTES)
    orgs: dict[bytes, OrgSum] = field(factory=dict)
    rows: OrderedDict[bytes, bytes] = field(factory=OrderedDict)
    """By org's number and stream, those heard of last at the end."""
    forgotten: Forgotten = field(factory=Forgotten)
    repeated: array[int] = field(factory=lambda: array("Q"))
    silent_us: int = 86_400_000_000
    max_streams: int = MAX_STREAMS
    _open: OrderedDict[bytes, Stream] = field(factory=OrderedDict, init=False)
    """Rows that were changed since `settle`; all of them were heard of later than those in `rows`."""
    _points: int = field(default=0, init=False)
    _by_number: list[OrgSum] = field(factory=list, init=False)

    # --- folding ----------------------------------------------------------------------------------------------

    def take(self, org: bytes, position: int, entry: LogEntry, size: int, stored_us: int) -> bool:
        """The next entry, of so many bytes, stored at a time (microseconds UTC, by the brokers' clock).

        Returns whether it counts; else it stood there before.
        """
        self._passed(position, size)
        self.newest_us = max(self.newest_us, stored_us)
        known = self.orgs.get(org)
        if known is None:
            known = self.orgs[org] = OrgSum(len(self.orgs), org)
        self._note(known)
        key = ORG.pack(known.number) + entry.stream
        stream = self._stream(key)
        if entry.seq <= stream.mark:
            self._repeats(key, stream)
            return False
        before = entry.seq - stream.mark - 1
        begins = stream.row.count(entry)
        if before and not begins:
            if stream.position < self.unknown_through or (not stream.mark and self.has_dropped_marks):
                stream.unknown += before
            else:
                stream.row.miss(before)
        stream.mark, stream.position, stream.heard_us = entry.seq, position, self.newest_us
        known.entries += 1
        known.records += entry.records
        return True

    def _repeats(self, key: bytes, stream: Stream) -> None:
        self.repeats += 1
        self.repeated.append(self.through)
        if len(self.repeated) > MAX_REPEATED:
            del self.repeated[0]
        if not stream.position:
            # Of a stream that has no row, and needs none for this.
            del self._open[key]
            self.has_dropped_marks |= self.forgotten.add(key, stream.mark)

    def pass_over(self, position: int, size: int) -> None:
        """The next entry is none of ours, or damaged."""
        self._passed(position, size)
        self.damaged += 1

    def skip(self, through: int, why: str) -> None:
        """What stands up to a position was removed before it was folded."""
        assert through > self.through, (through, self.through)
        self.through = self.unknown_through = through
        self.why = why

    def reach(self, through: int) -> None:
        """There is nothing more up to a position."""
        self.through = max(self.through, through)

    def settle(self) -> None:
        """All rows are packed: what it takes in memory is what its bounds say."""
        for key, stream in self._open.items():
            self.rows[key] = stream.pack()
        self._open.clear()

    def _passed(self, position: int, size: int) -> None:
        assert position > self.through, (position, self.through)
        self.through = position
        self.read_bytes += size

    def _stream(self, key: bytes) -> Stream:
        stream = self._open.get(key)
        if stream is not None:
            self._open.move_to_end(key)
            return stream
        packed = self.rows.pop(key, None)
        stream = Stream(self.forgotten.pop(key), 0, 0, Row(None), 0) if packed is None else Stream.unpack(packed)
        self._open[key] = stream
        self._forget_some()
        return stream

    def _forget_some(self) -> None:
        """Add the rows of streams that are too many, or silent for too long, to their orgs'."""
        while self._is_one_too_many():
            if self.rows:
                key, packed = self.rows.popitem(last=False)
            else:
                key, stream = self._open.popitem(last=False)
                packed = stream.pack()
            self._add_up(key, packed)

    def _is_one_too_many(self) -> bool:
        if len(self.rows) + len(self._open) > self.max_streams:
            return True
        before_us = self.newest_us - self.silent_us
        if self.rows:
            return heard_us(next(iter(self.rows.values()))) < before_us
        # The last one is about to be heard of.
        return len(self._open) > 1 and next(iter(self._open.values())).heard_us < before_us

    def _add_up(self, key: bytes, packed: bytes) -> None:
        mark, _, unknown = ROW_HEAD.unpack_from(packed)
        known = self._numbered(ORG.unpack(key[: ORG.size])[0])
        total, streams = decode_row(b"", known.folded) if known.folded else (StreamLedger(), 0)
        total.add(decode_row(key, packed[ROW_HEAD.size :])[0])
        total.exporter = total.stream = ""
        known.folded = encode_row(total, streams + 1)
        known.unknown += unknown
        self.has_dropped_marks |= self.forgotten.add(key, mark)

    def _numbered(self, number: int) -> OrgSum:
        # Orgs are never taken out, so they stand in the order of their numbers.
        if len(self._by_number) < len(self.orgs):
            self._by_number = list(self.orgs.values())
        return self._by_number[number]

    @property
    def weight(self) -> int:
        """What takes memory."""
        return len(self.rows) + len(self._open) + len(self.orgs)

    # --- points -----------------------------------------------------------------------------------------------

    def _note(self, org: OrgSum) -> None:
        """Before an entry of an org: a point, if it is time for one."""
        if self.read_bytes - org.noted_bytes < self.point_bytes:
            return
        org.noted_bytes = self.read_bytes
        if org.points is None:
            org.points = Points()
        org.points.add(Point(self.through - 1, org.entries, org.records))
        self._points += 1
        if self._points > MAX_POINTS:
            self.point_bytes *= 2
            for other in self.orgs.values():
                if other.points is not None:
                    other.points.thin()
            self.count_points()

    def forget_points(self, before: int) -> None:
        """Retention has removed what stands up to a position."""
        for org in self.orgs.values():
            if org.points is not None:
                org.points.forget(before)
        del self.repeated[: bisect_left(self.repeated, before)]
        self.count_points()
        if self._points < MAX_POINTS // 4 and self.point_bytes > LEAST_BYTES:
            self.point_bytes //= 2

    def count_points(self) -> None:
        """After they were put here from elsewhere."""
        self._points = sum(len(org.points) for org in self.orgs.values() if org.points is not None)

    def around(self, org: bytes, position: int) -> tuple[Point, Point]:
        """An org's points at or before a position, and at or behind it: where it began and where it ends, at most."""
        known = self.orgs.get(org)
        if known is None:
            return Point(self.begun, 0, 0), Point(self.through, 0, 0)
        below = known.points.below(position) if known.points is not None else None
        above = known.points.above(position) if known.points is not None else None
        begin, end = Point(self.begun, 0, 0), Point(self.through, known.entries, known.records)
        return below or begin, above or end

    def was_repeated(self, position: int) -> bool:
        """Whether an entry had been counted before, of those that are remembered."""
        at = bisect_left(self.repeated, position)
        return at < len(self.repeated) and self.repeated[at] == position

    # --- looking ----------------------------------------------------------------------------------------------

    def streams(self, org: bytes) -> Iterator[StreamLedger]:
        """An org's rows, those heard of longest ago first."""
        known = self.orgs.get(org)
        if known is None:
            return
        self.settle()
        prefix = ORG.pack(known.number)
        for key, packed in self.rows.items():
            if key[: ORG.size] == prefix:
                row, _ = decode_row(key, packed[ROW_HEAD.size :])
                row.unknown_batches = ROW_HEAD.unpack_from(packed)[2]
                yield row

    def last_heard(self, org: bytes, stream: bytes) -> int:
        """When an org's stream was last heard of; 0 of one without a row."""
        known = self.orgs.get(org)
        packed = None if known is None else self.rows.get(ORG.pack(known.number) + stream)
        return heard_us(packed) if packed is not None else 0

    def folded(self, org: bytes) -> tuple[StreamLedger, int]:
        """The sum of an org's streams that have no row of their own, and how many those were."""
        known = self.orgs.get(org)
        if known is None or not known.folded:
            return StreamLedger(), 0
        total, streams = decode_row(b"", known.folded)
        total.unknown_batches = known.unknown
        return total, streams
