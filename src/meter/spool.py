"""A spool: batches on disk until they are acknowledged, bounded in bytes (LMDB, synced).

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
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import IO

import lmdb
import structlog

from meter.spool_writing import KEY, OWNER, TOTALS, Tables, Work, oldest
from meter.spooled import (
    Applied,
    Changes,
    StreamRecord,
    Totals,
    entry_charge,
)
from sapflow.entry import (
    CorruptEntry,
)
from sapflow.errors import ConfigurationError, StorageError
from sapflow.held import HeldElsewhere, hold
from sapflow.link import StreamId

log = structlog.get_logger()

DATA_FILE = "data.mdb"
REMAP_BYTES = 32 << 20
MIN_BYTES = 8 << 20


class SpoolFull(StorageError):
    """There is no room on the disk, or none in one piece in the spool; it comes when something is acknowledged."""


class Spool:
    """All streams of one meter, or of one balancer's exporter door."""

    def __init__(self, path: Path, lock: IO[bytes], spool_bytes: int) -> None:
        self.path = path
        self.owing: set[tuple[str, str]] = set()
        """Orgs and exporters with something of theirs dropped that no batch told of, when the spool was opened."""
        self.limit_bytes = spool_bytes // 3 * 2
        self.most_bytes = spool_bytes // 6 * 5
        self.held_bytes = 0
        self.held_by: Counter[str] = Counter()
        """`held_bytes` by org."""
        self.records: dict[StreamId, StreamRecord] = {}
        self.totals = Totals()
        self._lock = lock
        self._spool_bytes = spool_bytes
        self._touched_bytes = 0
        self._env = self._open_env()
        self._load()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        spool_bytes: int,
        holder: str = "another meter",
        elsewhere: str = "its own (meter.spool)",
    ) -> Spool:
        """Open or create the spool in the directory `path`; one that is damaged as a whole is moved aside.

        Raises ConfigurationError when another process has it, which is told with `holder` and `elsewhere`; StorageError
        when the directory cannot be used.
        """
        assert spool_bytes >= MIN_BYTES, spool_bytes
        try:
            lock = hold(path)
        except HeldElsewhere as held:
            raise ConfigurationError(
                f"{holder} (pid {held.holder}) has the spool in {path} open; stop it, or give this one {elsewhere}"
            ) from None
        except OSError as error:
            raise StorageError(
                f"the spool's directory {path} cannot be used: {error.strerror}; mend it, or give this one {elsewhere}"
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
        if coming and self.held_bytes + coming > self.most_bytes:
            raise SpoolFull(f"the spool in {self.path} is full")
        try:
            with self._env.begin(write=True, buffers=True) as txn:
                work = Work(txn, self.tables, self.records, self.totals)
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
            if before is not None:
                self._count(before.org, -before.held_bytes)
            if record is not None:
                self.records[stream] = record
                self._count(record.org, record.held_bytes)

    def reopen(self) -> None:
        """After a StorageError: open the file again, and show what is in it. Raises StorageError."""
        self._env.close()
        self._env = self._open_env()
        self._load()

    def note(self, name: str) -> str | None:
        """A text that was kept with `Changes.notes`."""
        with self._env.begin() as txn:
            value = txn.get(name.encode(), db=self.tables.notes)
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
            if os.path.getsize(self.path / DATA_FILE) < env.info()["last_pgno"] * env.stat()["psize"]:
                env.close()
                raise StorageError(f"the spool in {self.path} is cut off")
            self.tables = Tables.of(env)
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"the spool in {self.path} cannot be opened: {error}") from error
        return env

    def _load(self) -> None:
        damaged = []
        self.records, self.owing = {}, set()
        try:
            with self._env.begin(buffers=True) as txn:
                self.totals = Totals.decode(txn.get(TOTALS, db=self.tables.notes))
                for _, value in txn.cursor(self.tables.owed):
                    (size,) = OWNER.unpack_from(value)
                    org, exporter = json.loads(bytes(value[OWNER.size : OWNER.size + size]))
                    self.owing.add((org, exporter))
                for key, value in txn.cursor(self.tables.streams):
                    try:
                        record = StreamRecord.decode(bytes(key), bytes(value))
                    except CorruptEntry:
                        damaged.append(StreamId(bytes(key)))
                        continue
                    record.oldest_us = oldest(txn.get(KEY.pack(record.lane, record.first), db=self.tables.batches))
                    self.records[record.id] = record
            if damaged:
                self._give_up(damaged)
        except (lmdb.Error, OSError, ValueError) as error:
            raise StorageError(f"the spool in {self.path} cannot be read: {error}") from error
        self.held_bytes, self.held_by = 0, Counter()
        for record in self.records.values():
            self._count(record.org, record.held_bytes)

    def _count(self, org: str, size: int) -> None:
        self.held_bytes += size
        self.held_by[org] += size

    def _give_up(self, damaged: list[StreamId]) -> None:
        """Without its record a stream cannot go on: nobody knows which of its batches were sent."""
        with self._env.begin(write=True, buffers=True) as txn:
            work = Work(txn, self.tables, self.records, self.totals)
            work.sweep(damaged)
        self.totals = work.totals
        log.error(
            "streams given up", spool=str(self.path), streams=len(damaged), reason="their records are damaged on disk"
        )


def _set_aside(path: Path, reason: str) -> None:
    """A spool that LMDB cannot read is kept for whoever wants to look, and a new one begun."""
    data = path / DATA_FILE
    if not data.exists():
        raise StorageError(reason)
    aside = path / f"damaged-{int(time.time())}.mdb"
    data.rename(aside)
    (path / "lock.mdb").unlink(missing_ok=True)
    log.error("spool set aside", reason=reason, file=str(aside), data="what it held was not sent, or not acknowledged")
