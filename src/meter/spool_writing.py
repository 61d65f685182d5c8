"""One write transaction of a meter's spool: what is acknowledged, dropped, cut, put and read, in that order.

The tables, and what is in them, are told in `spool`; what to do is decided in `keeping`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping

import attrs
import lmdb
from attrs import frozen

from meter.spooled import (
    DAMAGED,
    SPOOL_FULL,
    Changes,
    Cut,
    Found,
    Put,
    Read,
    StreamRecord,
    Totals,
    beginning,
    charge,
)
from sapflow.entry import (
    FIXED,
    HEAD,
    CorruptEntry,
    LogEntry,
    decode_entry,
    encode_entry,
    entry_account,
    entry_counts,
    received_us,
)
from sapflow.errors import LinkError
from sapflow.link import Batch, StreamId
from sapflow.link.account import NOTHING, Account, decode_account

KEY = struct.Struct("!16sQ")
OWNER = struct.Struct("!H")
TOTALS = b"totals"


@frozen
class Tables:
    """LMDB's handles of the four tables; they hold for one opening."""

    streams: lmdb._Database
    batches: lmdb._Database
    notes: lmdb._Database
    owed: lmdb._Database

    @classmethod
    def of(cls, env: lmdb.Environment) -> Tables:
        """Open them, and make those that are not there."""
        return cls(*(env.open_db(name) for name in (b"streams", b"batches", b"notes", b"owed")))


class Work:
    """Records are copied when they change, and written once at its end."""

    def __init__(
        self, txn: lmdb.Transaction, tables: Tables, known: Mapping[StreamId, StreamRecord], totals: Totals
    ) -> None:
        self.records: dict[StreamId, StreamRecord | None] = {}
        self.totals = attrs.evolve(totals)
        self.put: list[Batch] = []
        self.found: dict[StreamId, Found] = {}
        self.touched_bytes = 0
        self._tables = tables
        self._known = known
        self._txn = txn
        self._anyone_owes = bool(txn.stat(self._tables.owed)["entries"])

    def do(self, changes: Changes) -> None:
        """All of it, in the order that `Changes` says."""
        for stream, through in changes.acknowledged.items():
            self._acknowledge(stream, through)
        for stream in changes.dropped:
            self._drop(stream)
        for cut in changes.cuts:
            self._cut(cut)
        for stream, record in changes.opened.items():
            if self._record(stream) is None:
                self.records[stream] = attrs.evolve(record)
        for put in changes.put:
            self.put.append(self._put(put))
        for read in changes.read:
            self._read(read)
        for stream in changes.ended:
            ended = self._changing(stream)
            if ended is not None:
                assert ended.empty, ended
                self.records[stream] = None
        for name, text in changes.notes.items():
            self._txn.put(name.encode(), text.encode(), db=self._tables.notes)
        self._finish()

    def _finish(self) -> None:
        txn = self._txn
        for stream, record in self.records.items():
            if record is None:
                txn.delete(stream, db=self._tables.streams)
            else:
                txn.put(stream, record.encode(), db=self._tables.streams)
        txn.put(TOTALS, self.totals.encode(), db=self._tables.notes)

    def _record(self, stream: StreamId) -> StreamRecord | None:
        return self.records[stream] if stream in self.records else self._known.get(stream)

    def _changing(self, stream: StreamId) -> StreamRecord | None:
        record = self._record(stream)
        if record is not None and stream not in self.records:
            record = self.records[stream] = attrs.evolve(record)
        return record

    def _acknowledge(self, stream: StreamId, through: int) -> None:
        record = self._changing(stream)
        if record is None:
            return
        totals = self.totals
        while record.first <= min(through, record.last):
            totals.acknowledged_records += self._remove(record)
            totals.acknowledged_batches += 1
        self._age(record)

    def _drop(self, stream: StreamId) -> None:
        record = self._changing(stream)
        if record is None:
            return
        assert record.droppable, record
        assert not record.offered, record
        owed = NOTHING
        while not record.empty:
            account = self._account(record)
            records = self._remove(record)
            owed += account.refusing(SPOOL_FULL, records)
            self.totals.dropped_records += records
            self.totals.dropped_batches += 1
        self._owe(record, owed)
        self.records[stream] = None

    def _account(self, record: StreamRecord) -> Account:
        """That of a stream's lowest batch, as far as it can be read."""
        value = self._txn.get(KEY.pack(record.lane, record.first), db=self._tables.batches)
        records = _records(value)
        try:
            return decode_account(entry_account(bytes(value or b"")), records)
        except LinkError:
            return Account.usual(records)

    def _owe(self, record: StreamRecord, account: Account) -> None:
        owner = _owner(record)
        total = self._owed(record) + account
        self._anyone_owes = True
        value = OWNER.pack(len(owner)) + owner + total.encode(0)
        self._txn.put(_owed_key(owner), value, db=self._tables.owed)

    def _owed(self, record: StreamRecord) -> Account:
        owner = _owner(record)
        value = self._txn.get(_owed_key(owner), db=self._tables.owed)
        return decode_account(bytes(value)[OWNER.size + len(owner) :], 0) if value is not None else NOTHING

    def _remove(self, record: StreamRecord) -> int:
        """Delete a stream's lowest batch: how many records were in it."""
        key = KEY.pack(record.lane, record.first)
        value = self._txn.get(key, db=self._tables.batches)
        record.first += 1
        record.held_bytes = record.held_bytes - _charge(value) if not record.empty else 0
        records = _records(value)
        self._txn.delete(key, db=self._tables.batches)
        # The kernel maps some pages around each that is read.
        self.touched_bytes += 64 << 10
        return records

    def _cut(self, cut: Cut) -> None:
        old = self._changing(cut.old)
        if old is None or self._record(cut.new) is not None:
            return
        assert old.first <= cut.at <= old.last, (old, cut)
        rest = attrs.evolve(old, id=cut.new, offered=False, first=cut.at)
        before = sum(self._size(old.lane, number) for number in range(old.first, cut.at))
        old.last, old.held_bytes, rest.held_bytes = cut.at - 1, before, old.held_bytes - before
        records = self._remove(rest)
        self._owe(rest, Account.usual(records).refusing(DAMAGED, records))
        self.totals.corrupt_records += records
        self.totals.corrupt_batches += 1
        self._age(rest)
        self.records[cut.new] = rest

    def _size(self, lane: bytes, number: int) -> int:
        return _charge(self._txn.get(KEY.pack(lane, number), db=self._tables.batches))

    def _put(self, put: Put) -> Batch:
        record = self._changing(put.stream)
        assert record is not None, put.stream
        record.offered |= put.offered
        batch = put.batch
        if batch.seq <= record.last:
            return self._told(record, batch)
        assert batch.seq == record.last + 1, (record, batch.seq)
        if self._anyone_owes and (owed := self._owed(record)):
            account = decode_account(batch.account, batch.records) + owed
            batch = attrs.evolve(batch, account=account.encode(batch.records))
            self._txn.delete(_owed_key(_owner(record)), db=self._tables.owed)
        if record.lane != record.id:
            batch = beginning(batch)
        counts = (batch.received_us, batch.messages, batch.records)
        entry = LogEntry(put.stream, batch.seq, record.exporter, *counts, batch.payload, batch.account)
        data, _ = encode_entry(entry)
        self._txn.put(KEY.pack(record.lane, batch.seq), data, db=self._tables.batches)
        if record.empty:
            record.oldest_us = batch.received_us
        record.last = batch.seq
        record.offset = max(record.offset, put.offset)
        record.held_bytes += charge(len(data))
        self.totals.taken_batches += 1
        self.totals.taken_records += batch.records
        return batch

    def _told(self, record: StreamRecord, batch: Batch) -> Batch:
        """A batch that is in the spool already, with the account that it has there."""
        value = self._txn.get(KEY.pack(record.lane, batch.seq), db=self._tables.batches)
        return attrs.evolve(batch, account=entry_account(bytes(value))) if value is not None else batch

    def _read(self, read: Read) -> None:
        record = self._changing(read.stream)
        assert record is not None, read.stream
        record.offered = True
        batches: list[Batch] = []
        damaged = None
        size = 0
        for number in range(max(read.after + 1, record.first), record.last + 1):
            value = self._txn.get(KEY.pack(record.lane, number), db=self._tables.batches)
            data = bytes(value or b"")
            if batches and size + len(data) > read.most_bytes:
                break
            size += len(data)
            try:
                entry = decode_entry(data)
            except CorruptEntry:
                damaged = number
                break
            counts = (entry.messages, entry.records, entry.received_us)
            batch = Batch(number, *counts, entry.payload, entry.account)
            batches.append(batch if record.lane == record.id else beginning(batch))
        self.touched_bytes += size
        self.found[read.stream] = Found(batches, damaged)

    def _age(self, record: StreamRecord) -> None:
        if not record.empty:
            record.oldest_us = oldest(self._txn.get(KEY.pack(record.lane, record.first), db=self._tables.batches))

    def sweep(self, damaged: list[StreamId]) -> None:
        """Delete streams whose records cannot be read, and every batch that is of no stream known."""
        for stream in damaged:
            self.records[stream] = None
        known = [(record.lane, record.first, record.last) for record in self._known.values()]
        lanes: dict[bytes, list[tuple[int, int]]] = {}
        for lane, first, last in known:
            lanes.setdefault(lane, []).append((first, last))
        cursor = self._txn.cursor(self._tables.batches)
        cursor.first()
        while key := bytes(cursor.key()):
            lane, number = KEY.unpack(key)
            if any(first <= number <= last for first, last in lanes.get(lane, [])):
                cursor.next()
                continue
            self.totals.corrupt_records += _records(cursor.value())
            self.totals.corrupt_batches += 1
            cursor.delete()
        self._finish()


def oldest(value: bytes | memoryview | None) -> int:
    """When an entry was taken in; 0 for one that cannot be read."""
    return received_us(value) if value is not None and len(value) >= HEAD.size + FIXED.size else 0  # type: ignore[arg-type]


def _owner(record: StreamRecord) -> bytes:
    return json.dumps([record.org, record.exporter]).encode()


def _owed_key(owner: bytes) -> bytes:
    # The keys of LMDB are short; an exporter's name may not be.
    return hashlib.blake2b(owner, digest_size=16).digest()


def _records(value: bytes | memoryview | None) -> int:
    """How many records an entry says it holds; 0 for one that cannot be read."""
    return entry_counts(value)[1] if value is not None and len(value) >= HEAD.size + FIXED.size else 0  # type: ignore[arg-type]


def _charge(value: bytes | memoryview | None) -> int:
    return charge(len(value)) if value is not None else 0
