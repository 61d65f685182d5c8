"""What exporters told in options data, as the embedded log keeps it for readers that begin behind it.

    org u32              -> bytes of all its streams' u64, streams u32
    org u32 | stream 16  -> what the stream has told (see sapflow.flows.ipfix.standing)

An entry that tells something new costs the transaction that stores it one key in `telling`. Now and then, and before
retention removes anything, those entries are read and folded into their streams' rows; a reader who comes in between
folds them for itself. So rows and entries never say different things, whatever dies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import lmdb
from attrs import define, frozen

from phloem.engine.layout import KEY, ORG, TELLING, Tables, Tail
from sapflow.entry import CorruptEntry, LogEntry, decode_entry, encode_entry
from sapflow.errors import MalformedMessage
from sapflow.flows.ipfix.standing import DamagedStanding, Standing, last_told

TOTAL = struct.Struct("!QI")
MAX_ENTRIES = 32
"""Of a stream, read at a time; of more that came since the last time the newest count."""
STEP_BYTES = 256 << 10
STEP_STREAMS = 256
"""What one step folds, in one transaction between commits."""
_Owner = tuple[int, bytes]
"""An org's number, and a stream."""


@frozen
class OptionsBounds:
    """What is kept of options data."""

    bytes_per_stream: int = 512 << 10
    bytes_per_org: int = 16 << 20


@define
class OptionsCounts:
    """What became of options data; never goes down."""

    options_folded: int = 0
    """Entries that told something."""
    options_skipped: int = 0
    """Entries that told something, but so many came at once that only those behind them were looked at."""
    options_unreadable: int = 0
    """Entries and rows that are not what was written."""
    options_forgotten: int = 0
    """Records that a stream's bound had no room for."""
    options_streams_forgotten: int = 0
    """Streams that their org's bound had no room for: those that were not heard of for longest."""


class OptionsTable:
    """The rows, in one transaction."""

    def __init__(
        self, tables: Tables, txn: lmdb.Transaction, bounds: OptionsBounds, counts: OptionsCounts | None = None
    ) -> None:
        self._tables = tables
        self._txn = txn
        self._bounds = bounds
        self._counts = counts or OptionsCounts()

    # --- reading ----------------------------------------------------------------------------------------------

    def streams(self, number: int) -> list[bytes]:
        """An org's streams that have told anything, those that told last at the end."""
        told: dict[bytes, int] = {}
        for key, value in self._rows(number):
            told[key[ORG.size :]] = last_told(value)
        for stream, position in self._telling(ORG.pack(number)):
            told[stream] = max(position, told.get(stream, 0))
        return sorted(told, key=lambda stream: told[stream])

    def in_force(self, number: int, stream: bytes, position: int) -> bytes | None:
        """What a stream had told by a position, as an entry of number 0; None when that is nothing."""
        standing = self._row(number, stream)
        waiting = [at for _, at in self._telling(ORG.pack(number) + stream) if at <= position]
        self._fold(standing, number, waiting)
        self._trim(standing, number)
        payload, messages, records = standing.in_force(position)
        if not records:
            return None
        return encode_entry(LogEntry(stream, 0, standing.exporter, 0, messages, records, payload))[0]

    # --- writing ----------------------------------------------------------------------------------------------

    def fold_some(self) -> bool:
        """Fold what waits into its streams' rows, a bounded step: whether any is left."""
        size = streams = 0
        cursor = self._txn.cursor(self._tables.telling)
        while size < STEP_BYTES and streams < STEP_STREAMS:
            if not cursor.first():
                return False
            number, stream, _ = TELLING.unpack(cursor.key())
            size += self._fold_stream(number, stream)
            streams += 1
        return True

    def _fold_stream(self, number: int, stream: bytes) -> int:
        """Returns how many bytes were read."""
        standing = self._row(number, stream)
        waiting = [position for _, position in self._telling(ORG.pack(number) + stream)]
        read = self._fold(standing, number, waiting)
        for position in waiting:
            self._txn.delete(TELLING.pack(number, stream, position), db=self._tables.telling)
        self._trim(standing, number)
        self._counts.options_forgotten += standing.forgotten
        self._put(number, stream, standing.pack() if len(standing) else b"")
        return read

    def _fold(self, standing: Standing, number: int, waiting: list[int]) -> int:
        read = 0
        self._counts.options_skipped += max(len(waiting) - MAX_ENTRIES, 0)
        for position in waiting[-MAX_ENTRIES:]:
            data = self._txn.get(KEY.pack(number, position), db=self._tables.entries)
            if data is None:
                continue  # removed meanwhile
            read += len(data)
            try:
                entry = decode_entry(bytes(data))
                standing.exporter = entry.exporter
                standing.take(bytes(entry.payload), position)
                self._counts.options_folded += 1
            except (CorruptEntry, MalformedMessage):
                self._counts.options_unreadable += 1
        return read

    def _trim(self, standing: Standing, number: int) -> None:
        standing.trim(self._bounds.bytes_per_stream, Tail.read(self._txn, self._tables, number).first)

    def _put(self, number: int, stream: bytes, data: bytes) -> None:
        key = ORG.pack(number) + stream
        before = self._txn.get(key, db=self._tables.options)
        size, streams = self._total(number)
        size += len(data) - len(before or b"")
        streams += (before is None) * bool(data) - (before is not None) * (not data)
        if data:
            self._txn.put(key, data, db=self._tables.options)
        elif before is not None:
            self._txn.delete(key, db=self._tables.options)
        if size > self._bounds.bytes_per_org:
            size, streams = self._forget(number, size, streams, self._bounds.bytes_per_org * 7 // 8)
        self._txn.put(ORG.pack(number), TOTAL.pack(size, streams), db=self._tables.options)

    def _forget(self, number: int, size: int, streams: int, most_bytes: int) -> tuple[int, int]:
        """Forget streams that were not heard of for longest, until there is room for some time."""
        heard = []
        for key, value in self._rows(number):
            row = self._txn.get(key, db=self._tables.ledger)
            heard.append((int.from_bytes(row[:8], "big") if row is not None else 0, key, len(value)))
        for _, key, length in sorted(heard):
            if size <= most_bytes:
                break
            self._txn.delete(key, db=self._tables.options)
            self._counts.options_streams_forgotten += 1
            size, streams = size - length, streams - 1
        return size, streams

    # --- rows -------------------------------------------------------------------------------------------------

    def _total(self, number: int) -> tuple[int, int]:
        value = self._txn.get(ORG.pack(number), db=self._tables.options)
        return TOTAL.unpack(value) if value is not None else (0, 0)

    def _row(self, number: int, stream: bytes) -> Standing:
        value = self._txn.get(ORG.pack(number) + stream, db=self._tables.options)
        if value is None:
            return Standing()
        try:
            return Standing.unpack(bytes(value))
        except DamagedStanding:
            self._counts.options_unreadable += 1
            return Standing()

    def _rows(self, number: int) -> Iterator[tuple[bytes, bytes | memoryview]]:
        prefix = ORG.pack(number)
        cursor = self._txn.cursor(self._tables.options)
        if cursor.set_range(prefix):
            for key, value in cursor:
                if key[: ORG.size] != prefix:
                    return
                if len(key) > ORG.size:
                    yield bytes(key), value

    def _telling(self, prefix: bytes) -> list[tuple[bytes, int]]:
        """Streams and positions that wait, of an org or of one of its streams, in order."""
        found = []
        cursor = self._txn.cursor(self._tables.telling)
        if cursor.set_range(prefix):
            for key in cursor.iternext(values=False):
                if bytes(key[: len(prefix)]) != prefix:
                    break
                found.append(TELLING.unpack(key)[1:])
        return found
