"""One write transaction of the embedded log that batches are appended in.

The rules of what is stored are here, and nowhere else: number <= mark is a duplicate, mark + 1 is stored, anything
higher is refused; a stream that was never seen may start anywhere. Opening, syncing and reading are `embedded.py`.
"""

from __future__ import annotations

import lmdb
from attrs import evolve

from phloem.engine.engine import Outcome
from phloem.engine.layout import COUNT, COUNT_EVERY, KEY, MARK, ORG, RING, TELLING, Mark, Tables, Tail, number_of
from phloem.engine.ledger import Row, now_us
from phloem.engine.retaining import kept_from, without_oldest
from sapflow.entry import LogEntry, encode_entry

MORE_ENTRIES = 64
"""So many more than twice as many as came may go at a time: those that go may be small, and each costs a look at it."""


class Writer:
    """Appends in one transaction: tails, marks and the ledger's rows are read once, and written once at its end."""

    def __init__(self, tables: Tables, txn: lmdb.Transaction) -> None:
        self._tables = tables
        self._txn = txn
        self._numbers: dict[str, int] = {}
        self._tails: dict[int, Tail] = {}
        self._stored: dict[int, tuple[int, int]] = {}
        """Entries and their bytes, by org."""
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
        stored, stored_bytes = self._stored.get(number, (0, 0))
        self._stored[number] = stored + 1, stored_bytes + len(data)
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

    def retain(self, keep_bytes: int) -> dict[int, int]:
        """Retention by size, as it goes: of each org that stores something here, its oldest entries go while it holds
        more than `keep_bytes`, about twice as many bytes as came.

        Were they left to collect, whoever stores would wait for all of them at once. What was stored here stays.
        Returns how many went, by org's number.
        """
        removed = {}
        for number, tail in self._tails.items():
            if tail.bytes <= keep_bytes:
                continue
            stored, stored_bytes = self._stored[number]
            kept = min(tail.next - stored, kept_from(self._txn, self._tables, number))
            self._tails[number] = without_oldest(
                self._txn,
                self._tables,
                number,
                tail,
                before_us=0,
                keep_bytes=keep_bytes,
                at_most=min(2 * stored + MORE_ENTRIES, kept - tail.first),
                at_most_bytes=2 * stored_bytes,
            )
            if went := self._tails[number].first - tail.first:
                removed[number] = went
        return removed

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
