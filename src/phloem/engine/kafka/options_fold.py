"""What exporters told in options data in one partition of the log, as far as a node knows; pure.

    topic/partition/org/stream -> version u8 | length u8 | topic's id | what it has told (sapflow.flows.ipfix.standing)

Those are the *rows*, in a compacted topic. Entries that tell something (their header says so) *wait* until they are
folded into their stream's row; who comes in between reads them for itself.

Rule 1: a row says up to which position it was folded, and depends on nothing but the entries up to there. So to fold an
entry again changes nothing, and of two rows the one that goes further counts, whoever wrote it and when.
Rule 2: rows are written before the checkpoint of the ledger that goes beyond their entries. So whoever takes up a
checkpoint lacks nothing, and finds waiting what came behind it.
Rule 3: it is bounded. In memory of a row is where it stands; there are at most so many, and so many that wait.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable

from attrs import define, field, frozen

from phloem.engine.kafka.names import Place
from phloem.engine.options import MAX_ENTRIES
from sapflow.flows.ipfix.standing import HEAD, last_told

MAX_ROWS = 8192
"""Of a partition; then those of streams that were not heard of for longest go: 3 MiB of memory."""
MAX_WAITING = 16_384
"""Positions; there are more only when nobody has folded for long."""
VERSION = 1
STREAM_BYTES = 16
_HEAD = struct.Struct("!BB")
NONE = -1
"""Instead of a position: it is no row of this log."""

Owner = tuple[bytes, bytes]
"""An org's name, and a stream."""


@frozen(slots=True)
class Row:
    """A stream's, where it stands in the rows' topic."""

    told: int
    """The last position that is in it."""
    position: int
    size: int


def key_of(place: Place, owner: Owner) -> bytes:
    """A row's key."""
    return b"%s/%d/%s/%s" % (place.topic.encode(), place.partition, *owner)


def owner_of(place: Place, key: bytes) -> Owner | None:
    """Whose row it is; None of another partition's."""
    prefix = b"%s/%d/" % (place.topic.encode(), place.partition)
    if not key.startswith(prefix) or len(key) < len(prefix) + 1 + STREAM_BYTES:
        return None
    return key[len(prefix) : -STREAM_BYTES - 1], key[-STREAM_BYTES:]


def row_of(topic_id: str, packed: bytes) -> bytes:
    """A row, of what a stream has told."""
    name = topic_id.encode()
    return _HEAD.pack(VERSION, len(name)) + name + packed


def packed_in(topic_id: str, row: bytes) -> bytes | None:
    """What a stream has told, of a row; None of another topic's, and of what is no row."""
    start = row_of(topic_id, b"")
    return row[len(start) :] if row.startswith(start) and len(row) >= len(start) + HEAD.size else None


@define(eq=False)
class OptionsFold:
    """A partition's rows, and what is not in them yet."""

    place: Place
    topic_id: str
    into: Place | None = None
    """Where its rows are, once they were heard of."""
    heard_through: int = 0
    """Up to where."""
    rows: dict[Owner, Row] = field(factory=dict)
    waiting: dict[Owner, list[int]] = field(factory=dict)
    """Positions of entries, in order."""
    stale: set[Owner] = field(factory=set)
    """Whose row somebody wrote again who knew less: the topic would keep that one."""
    beyond: set[Owner] = field(factory=set)
    """Whose row is ahead of the log's end, since that was cut: to be removed."""
    stands: dict[str, int] = field(factory=dict)
    """Where in each topic it was read last: the next place is mostly near."""
    _bytes: Counter[bytes] = field(factory=Counter)
    """Of each org's rows."""
    _waits: int = 0
    _furthest: int = 0

    # --- what comes in ------------------------------------------------------------------------------------------

    def note(self, org: bytes, stream: bytes, position: int) -> int:
        """An entry may tell something: how many have to go unread for it, since they are too many."""
        waiting = self.waiting.setdefault((org, stream), [])
        waiting.append(position)
        self._waits += 1
        dropped = 0
        if len(waiting) > MAX_ENTRIES:
            del waiting[0]
            dropped = 1
        elif self._waits > MAX_WAITING:
            dropped = len(self.waiting.pop(next(iter(self.waiting))))
        self._waits -= dropped
        return dropped

    def hear(self, key: bytes, row: bytes | None, position: int) -> None:
        """The next record of the rows' topic."""
        owner = owner_of(self.place, key)
        if owner is None:
            return
        self.beyond.discard(owner)
        if row is None:
            self.drop(owner)
            return
        packed, known = packed_in(self.topic_id, row), self.rows.get(owner)
        told = NONE if packed is None else last_told(packed)
        if known is not None and told < known.told:
            self.stale.add(owner)
        elif told != NONE:
            self.drop(owner)
            self.rows[owner] = Row(told, position, len(row))
            self._bytes[owner[0]] += len(row)
            self._furthest = max(self._furthest, told)

    def hear_anew(self) -> None:
        """Of what is in the rows' topic nothing is known."""
        self.heard_through = self._furthest = 0
        self.rows.clear()
        self._bytes.clear()
        self.stale.clear()
        self.beyond.clear()

    def end_at(self, end: int) -> None:
        """All is heard, and the log ends there: rows that are ahead of it are of a log that was cut.

        What is in the others does not wait any more.
        """
        if self._furthest > end:
            for owner in [owner for owner, row in self.rows.items() if row.told > end]:
                self.drop(owner)
                self.beyond.add(owner)
            self._furthest = end
        for owner in [owner for owner in self.waiting if owner in self.rows]:
            self.settle(owner, [at for at in self.waiting[owner] if at <= self.rows[owner].told])

    def drop(self, owner: Owner) -> None:
        """It has no row any more."""
        self.stale.discard(owner)
        known = self.rows.pop(owner, None)
        if known is not None:
            self._bytes[owner[0]] -= known.size

    def settle(self, owner: Owner, positions: Iterable[int]) -> None:
        """Entries that waited are in their row, or never will be."""
        waiting, done = self.waiting.pop(owner, []), set(positions)
        left = [at for at in waiting if at not in done]
        self._waits -= len(waiting) - len(left)
        if left:
            self.waiting[owner] = left

    # --- what is to be done -------------------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether a row is to be written."""
        return bool(self.waiting or self.stale or self.beyond)

    @property
    def waits(self) -> int:
        """Entries that are in no row yet."""
        return self._waits

    def due(self) -> list[Owner]:
        """Whose rows are to be written: in the order in which those stand that there are."""
        owners = [*self.waiting, *(owner for owner in self.stale if owner not in self.waiting)]
        return sorted(owners, key=lambda owner: self.rows[owner].position if owner in self.rows else 0)

    def excess(self, bytes_per_org: int, heard: Callable[[Owner], int]) -> set[Owner]:
        """Whose rows have to go so that there is room for some time: those that were not `heard` of for longest."""
        found: set[Owner] = set()
        if len(self.rows) > MAX_ROWS:
            found.update(sorted(self.rows, key=heard)[: len(self.rows) - MAX_ROWS * 7 // 8])
        for org in [org for org, size in self._bytes.items() if size > bytes_per_org]:
            left = self._bytes[org]
            for owner in sorted((owner for owner in self.rows if owner[0] == org), key=heard):
                if left <= bytes_per_org * 7 // 8:
                    break
                left -= self.rows[owner].size
                found.add(owner)
        return found

    # --- looking ------------------------------------------------------------------------------------------------

    def streams(self, org: bytes) -> list[bytes]:
        """An org's streams that have told anything, those that told last at the end."""
        told = {stream: row.told for (name, stream), row in self.rows.items() if name == org}
        for (name, stream), positions in self.waiting.items():
            if name == org:
                told[stream] = max(positions[-1], told.get(stream, 0))
        return sorted(told, key=lambda stream: told[stream])
