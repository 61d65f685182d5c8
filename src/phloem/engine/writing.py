"""One write transaction of the embedded log: batches appended, or the oldest entries removed.

The rules of what is stored are here, and nowhere else: number <= mark is a duplicate, mark + 1 is stored, anything
higher is refused; a stream that was never seen may start anywhere. Opening, syncing and reading are `embedded.py`.
"""

from __future__ import annotations

import lmdb
from attrs import evolve

from phloem.engine.engine import Outcome
from phloem.engine.layout import COUNT, COUNT_EVERY, KEY, MARK, ORG, RING, TELLING, Mark, Tables, Tail, number_of
from phloem.engine.ledger import Row, now_us
from sapflow.entry import HEAD_BYTES, LogEntry, encode_entry, entry_counts, received_us


class Writer:
    """Appends in one transaction: tails, marks and the ledger's rows are read once, and written once at its end."""

    def __init__(self, tables: Tables, txn: lmdb.Transaction) -> None:
        self._tables = tables
        self._txn = txn
        self._numbers: dict[str, int] = {}
        self._tails: dict[int, Tail] = {}
        self._marks: dict[bytes, Mark] = {}
        self._rows: dict[bytes, Row] = {}

    def append(self, org: str, entry: LogEntry) -> Outcome:
        """Store one entry if its stream's mark is just below it."""
        number = self._number(org)
        key = ORG.pack(number) + entry.stream
        mark = self._mark(key)
        data, crc = encode_entry(evolve(entry, account=b"") if entry.account else entry)
        if mark is not None and entry.seq <= mark.mark:
            behind = mark.mark - entry.seq
            same = behind >= RING or mark.ring[behind] in (0, crc)
            return Outcome("duplicate" if same else "conflict", mark.mark)
        if mark is not None and entry.seq > mark.mark + 1:
            return Outcome("refused", mark.mark)
        position = self._put(number, entry, data)
        if entry.tells:
            self._txn.put(TELLING.pack(number, entry.stream, position), b"", db=self._tables.telling)
        ring = mark.ring if mark is not None else [0] * RING
        self._marks[key] = Mark(entry.seq, [crc, *ring[: RING - 1]])
        row = self._row(key)
        if not row.count(entry) and mark is None:
            row.miss(entry.seq - 1)
        return Outcome("stored", entry.seq, position)

    def _put(self, number: int, entry: LogEntry, data: bytes) -> int:
        """Put an entry behind the others: its position."""
        tail = self._tails.get(number)
        if tail is None:
            tail = Tail.read(self._txn, self._tables, number)
        position = tail.next
        self._txn.put(KEY.pack(number, position), data, db=self._tables.entries, dupdata=False)
        if position % COUNT_EVERY == 0:
            self._txn.put(KEY.pack(number, position), COUNT.pack(tail.records), db=self._tables.counts)
        self._tails[number] = Tail(
            tail.first,
            position + 1,
            tail.entries + 1,
            tail.bytes + len(data),
            tail.records + entry.records,
            tail.removed_entries,
            tail.removed_records,
            tail.removed_bytes,
        )
        return position

    def finish(self) -> None:
        """Write the marks, tails and rows that changed."""
        now = now_us()
        for key, row in self._rows.items():
            self._txn.put(key, row.encode(now), db=self._tables.ledger)
        for key, mark in self._marks.items():
            self._txn.put(key, MARK.pack(mark.mark, *mark.ring), db=self._tables.marks)
        for number, tail in self._tails.items():
            tail.write(self._txn, self._tables, number)

    def _number(self, org: str) -> int:
        number = self._numbers.get(org)
        if number is None:
            number = self._numbers[org] = number_of(self._txn, self._tables, org)
        return number

    def _row(self, key: bytes) -> Row:
        row = self._rows.get(key)
        if row is None:
            value = self._txn.get(key, db=self._tables.ledger)
            row = self._rows[key] = Row(None if value is None else bytes(value))
        return row

    def _mark(self, key: bytes) -> Mark | None:
        mark = self._marks.get(key)
        if mark is None:
            value = self._txn.get(key, db=self._tables.marks)
            if value is None:
                return None
            highest, *ring = MARK.unpack(value)
            mark = Mark(highest, ring)
        return mark


def remove_oldest(
    txn: lmdb.Transaction, tables: Tables, number: int, *, before_us: int, keep_bytes: int, at_most: int
) -> int:
    """Remove an org's entries older than `before_us`, or beyond `keep_bytes`: how many went.

    `txn` gives buffers: of an entry only the head is read, since what is old is on disk and not in memory.
    """
    removed = 0
    tail = Tail.read(txn, tables, number)
    cursor = txn.cursor(tables.entries)
    while removed < at_most and tail.first < tail.next:
        key = KEY.pack(number, tail.first)
        value = cursor.value() if cursor.set_key(key) else b""
        size, head = len(value), bytes(value[:HEAD_BYTES])
        if size and received_us(head) >= before_us and tail.bytes <= keep_bytes:
            break
        _, records = entry_counts(head)
        if size:
            cursor.delete()
        if tail.first % COUNT_EVERY == 0:
            txn.delete(key, db=tables.counts)
        tail = evolve(
            tail,
            first=tail.first + 1,
            bytes=tail.bytes - size,
            removed_entries=tail.removed_entries + 1,
            removed_records=tail.removed_records + records,
            removed_bytes=tail.removed_bytes + size,
        )
        removed += 1
    if removed:
        tail.write(txn, tables, number)
    return removed
