"""A meter's spool: batches on disk until they are acknowledged, bounded in bytes (LMDB, synced).

Rule 1: a batch that `write` returned for is on disk, with its number; only then may it be sent.
Rule 2: a stream whose batches may be sent is marked `offered` on disk before; such a stream is never given up.
Rule 3: a batch goes when it is acknowledged, its stream was given up whole before it was ever offered, or its bytes
        cannot be read any more; each is counted in the totals, in the same transaction, and what was not acknowledged
        also in the account of its exporter's next batch.
Rule 4: what to do is decided elsewhere (`keeping`), and may be asked for again after a failure.

Synchronous: a thread calls `write`, which does one transaction's work; `adopt` makes it what this object shows. There
is no recovery pass: kill -9 and a clean stop take the same way back, and opening reads one small record a stream.

    streams  stream 16           -> record with its CRC (see `spooled`)
    batches  lane 16 | seq u64   -> entry with its CRC (see sapflow.entry)
    notes    name                -> text; and the totals
    owed     hash 16             -> org and exporter, and the account of what of theirs was dropped, until their next
                                    batch tells of it

Of `spool_bytes`, which the file never exceeds, two thirds hold batches, and never more than five sixths: the rest is
for pages that are free but not in one piece, and for the copies that LMDB writes before it lets go of what they
replace. A file that is full to its last page could not even be deleted from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import time
from pathlib import Path
from typing import IO

import attrs
import lmdb
import structlog

from meter.spooled import (
    DAMAGED,
    SPOOL_FULL,
    Applied,
    Changes,
    Cut,
    Found,
    Put,
    Read,
    StreamRecord,
    Totals,
    beginning,
    charge,
    entry_charge,
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
from sapflow.errors import ConfigurationError, LinkError, StorageError
from sapflow.held import HeldElsewhere, hold
from sapflow.link import Batch, StreamId
from sapflow.link.account import NOTHING, Account, decode_account

log = structlog.get_logger()

KEY = struct.Struct("!16sQ")
OWNER = struct.Struct("!H")
TOTALS = b"totals"
REMAP_BYTES = 32 << 20
MIN_BYTES = 8 << 20


class SpoolFull(StorageError):
    """There is no room on the disk, or none in one piece in the spool; it comes when something is acknowledged."""


class Spool:
    """All streams of one meter."""

    def __init__(self, path: Path, lock: IO[bytes], spool_bytes: int) -> None:
        self.path = path
        self.owing: set[tuple[str, str]] = set()
        """Orgs and exporters with something of theirs dropped that no batch told of, when the spool was opened."""
        self.limit_bytes = spool_bytes // 3 * 2
        self._most_bytes = spool_bytes // 6 * 5
        self.held_bytes = 0
        self.records: dict[StreamId, StreamRecord] = {}
        self.totals = Totals()
        self._lock = lock
        self._spool_bytes = spool_bytes
        self._touched_bytes = 0
        self._env = self._open_env()
        self._load()

    @classmethod
    def open(cls, path: Path, *, spool_bytes: int) -> Spool:
        """Open or create the spool in the directory `path`; one that is damaged as a whole is moved aside.

        Raises ConfigurationError when another meter has it, StorageError when the directory cannot be used.
        """
        assert spool_bytes >= MIN_BYTES, spool_bytes
        try:
            lock = hold(path)
        except HeldElsewhere as held:
            raise ConfigurationError(
                f"another meter (pid {held.holder}) has the spool in {path} open; stop it, or give this one its own "
                "(meter.spool)"
            ) from None
        except OSError as error:
            raise StorageError(
                f"the spool's directory {path} cannot be used: {error.strerror}; choose another with meter.spool"
            ) from error
        try:
            try:
                return cls(path, lock, spool_bytes)
            except StorageError as error:
                _set_aside(path, str(error))
                return cls(path, lock, spool_bytes)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Let go of the spool."""
        self._env.close()
        self._lock.close()

    def write(self, changes: Changes) -> Applied:
        """Do a transaction's work, synced: what came of it.

        Raises SpoolFull: nothing was done. Raises StorageError: `reopen` comes before anything else.
        """
        if self._touched_bytes > REMAP_BYTES:
            # Pages of the map count as this process's memory once they were touched; a new map has none.
            self._env.close()
            self._env = self._open_env()
            self._touched_bytes = 0
        coming = sum(entry_charge("", put.batch) for put in changes.put)
        if coming and self.held_bytes + coming > self._most_bytes:
            raise SpoolFull(f"the spool in {self.path} is full")
        try:
            with self._env.begin(write=True, buffers=True) as txn:
                work = _Work(self, txn)
                work.do(changes)
        except lmdb.MapFullError as error:
            raise SpoolFull(f"the spool in {self.path} has no room in one piece") from error
        except (lmdb.Error, OSError) as error:
            kind = SpoolFull if os.strerror(errno.ENOSPC) in str(error) else StorageError
            raise kind(
                f"the spool in {self.path} cannot be written: {error}; free space on its disk, or mend it"
            ) from error
        self._touched_bytes += work.touched_bytes
        return Applied(work.records, work.put, work.totals, work.found, work.touched_bytes)

    def adopt(self, applied: Applied) -> None:
        """Show what `write` did."""
        self.totals = applied.totals
        for stream, record in applied.records.items():
            before = self.records.pop(stream, None)
            self.held_bytes -= before.held_bytes if before is not None else 0
            if record is not None:
                self.records[stream] = record
                self.held_bytes += record.held_bytes

    def reopen(self) -> None:
        """After a StorageError: open the file again, and show what is in it. Raises StorageError."""
        self._env.close()
        self._env = self._open_env()
        self._load()

    def note(self, name: str) -> str | None:
        """A text that was kept with `Changes.notes`."""
        with self._env.begin() as txn:
            value = txn.get(name.encode(), db=self.notes)
        return bytes(value).decode("utf-8", "replace") if value is not None else None

    @property
    def oldest_us(self) -> int | None:
        """When the oldest batch was taken in (microseconds UTC); None when nothing is held."""
        return min((record.oldest_us for record in self.records.values() if not record.empty), default=None)

    def _open_env(self) -> lmdb.Environment:
        try:
            env = lmdb.open(
                str(self.path), map_size=self._spool_bytes, max_dbs=4, max_readers=8, readahead=False, lock=True
            )
            if os.path.getsize(self.path / "data.mdb") < env.info()["last_pgno"] * env.stat()["psize"]:
                env.close()
                raise StorageError(f"the spool in {self.path} is cut off")
            names = (b"streams", b"batches", b"notes", b"owed")
            self.streams, self.batches, self.notes, self.owed = (env.open_db(name) for name in names)
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"the spool in {self.path} cannot be opened: {error}") from error
        return env

    def _load(self) -> None:
        damaged = []
        self.records, self.owing = {}, set()
        try:
            with self._env.begin(buffers=True) as txn:
                self.totals = Totals.decode(txn.get(TOTALS, db=self.notes))
                for _, value in txn.cursor(self.owed):
                    (size,) = OWNER.unpack_from(value)
                    org, exporter = json.loads(bytes(value[OWNER.size : OWNER.size + size]))
                    self.owing.add((org, exporter))
                for key, value in txn.cursor(self.streams):
                    try:
                        record = StreamRecord.decode(bytes(key), bytes(value))
                    except CorruptEntry:
                        damaged.append(StreamId(bytes(key)))
                        continue
                    record.oldest_us = _oldest(txn.get(KEY.pack(record.lane, record.first), db=self.batches))
                    self.records[record.id] = record
            if damaged:
                self._give_up(damaged)
        except (lmdb.Error, OSError, ValueError) as error:
            raise StorageError(f"the spool in {self.path} cannot be read: {error}") from error
        self.held_bytes = sum(record.held_bytes for record in self.records.values())

    def _give_up(self, damaged: list[StreamId]) -> None:
        """Without its record a stream cannot go on: nobody knows which of its batches were sent."""
        with self._env.begin(write=True, buffers=True) as txn:
            work = _Work(self, txn)
            work.sweep(damaged)
        self.totals = work.totals
        log.error(
            "streams given up", spool=str(self.path), streams=len(damaged), reason="their records are damaged on disk"
        )


class _Work:
    """One write transaction: records are copied when they change, and written once at its end."""

    def __init__(self, spool: Spool, txn: lmdb.Transaction) -> None:
        self.records: dict[StreamId, StreamRecord | None] = {}
        self.totals = attrs.evolve(spool.totals)
        self.put: list[Batch] = []
        self.found: dict[StreamId, Found] = {}
        self.touched_bytes = 0
        self._spool = spool
        self._txn = txn
        self._anyone_owes = bool(txn.stat(spool.owed)["entries"])

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
            self._txn.put(name.encode(), text.encode(), db=self._spool.notes)
        self._finish()

    def _finish(self) -> None:
        spool, txn = self._spool, self._txn
        for stream, record in self.records.items():
            if record is None:
                txn.delete(stream, db=spool.streams)
            else:
                txn.put(stream, record.encode(), db=spool.streams)
        txn.put(TOTALS, self.totals.encode(), db=spool.notes)

    def _record(self, stream: StreamId) -> StreamRecord | None:
        return self.records[stream] if stream in self.records else self._spool.records.get(stream)

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
        value = self._txn.get(KEY.pack(record.lane, record.first), db=self._spool.batches)
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
        self._txn.put(_owed_key(owner), value, db=self._spool.owed)

    def _owed(self, record: StreamRecord) -> Account:
        owner = _owner(record)
        value = self._txn.get(_owed_key(owner), db=self._spool.owed)
        return decode_account(bytes(value)[OWNER.size + len(owner) :], 0) if value is not None else NOTHING

    def _remove(self, record: StreamRecord) -> int:
        """Delete a stream's lowest batch: how many records were in it."""
        key = KEY.pack(record.lane, record.first)
        value = self._txn.get(key, db=self._spool.batches)
        record.first += 1
        record.held_bytes = record.held_bytes - _charge(value) if not record.empty else 0
        records = _records(value)
        self._txn.delete(key, db=self._spool.batches)
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
        return _charge(self._txn.get(KEY.pack(lane, number), db=self._spool.batches))

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
            self._txn.delete(_owed_key(_owner(record)), db=self._spool.owed)
        if record.lane != record.id:
            batch = beginning(batch)
        counts = (batch.received_us, batch.messages, batch.records)
        entry = LogEntry(put.stream, batch.seq, record.exporter, *counts, batch.payload, batch.account)
        data, _ = encode_entry(entry)
        self._txn.put(KEY.pack(record.lane, batch.seq), data, db=self._spool.batches)
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
        value = self._txn.get(KEY.pack(record.lane, batch.seq), db=self._spool.batches)
        return attrs.evolve(batch, account=entry_account(bytes(value))) if value is not None else batch

    def _read(self, read: Read) -> None:
        record = self._changing(read.stream)
        assert record is not None, read.stream
        record.offered = True
        batches: list[Batch] = []
        damaged = None
        size = 0
        for number in range(max(read.after + 1, record.first), record.last + 1):
            value = self._txn.get(KEY.pack(record.lane, number), db=self._spool.batches)
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
            record.oldest_us = _oldest(self._txn.get(KEY.pack(record.lane, record.first), db=self._spool.batches))

    def sweep(self, damaged: list[StreamId]) -> None:
        """Delete streams whose records cannot be read, and every batch that is of no stream known."""
        spool = self._spool
        for stream in damaged:
            self.records[stream] = None
        known = [(record.lane, record.first, record.last) for record in spool.records.values()]
        lanes: dict[bytes, list[tuple[int, int]]] = {}
        for lane, first, last in known:
            lanes.setdefault(lane, []).append((first, last))
        cursor = self._txn.cursor(spool.batches)
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


def _oldest(value: bytes | memoryview | None) -> int:
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


def _set_aside(path: Path, reason: str) -> None:
    """A spool that LMDB cannot read is kept for whoever wants to look, and a new one begun."""
    data = path / "data.mdb"
    if not data.exists():
        raise StorageError(reason)
    aside = path / f"damaged-{int(time.time())}.mdb"
    data.rename(aside)
    (path / "lock.mdb").unlink(missing_ok=True)
    log.error("spool set aside", reason=reason, file=str(aside), data="what it held was not sent, or not acknowledged")
