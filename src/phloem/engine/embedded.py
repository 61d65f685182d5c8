"""The embedded engine: LMDB, one environment for all orgs, group commit, synced before `append` returns.

A stream's batches are stored contiguously: number <= mark is a duplicate, mark + 1 is stored, anything higher is
refused; a stream that was never seen may start anywhere. The mark is in the same transaction as the entry, so
(stream, number) makes every append idempotent. There is no clean-shutdown marker and no recovery pass: kill -9 and a
clean stop take the same way back, however many orgs there are.

    orgs     name                     -> org number u32
    tails    org u32                  -> first, next position; stored and removed entries, bytes, records
    marks    org u32 | stream 16      -> mark u64, CRCs of the last entries
    entries  org u32 | position u64   -> entry (see sapflow.entry)
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import lmdb
from attrs import define, evolve, frozen

from sapflow.entry import CorruptEntry, LogEntry, decode_entry, encode_entry, received_us
from sapflow.errors import EngineLocked, StorageError

ORG = struct.Struct("!I")
KEY = struct.Struct("!IQ")
TAIL = struct.Struct("!QQQQQQQ")
RING = 8
MARK = struct.Struct(f"!Q{RING}I")
MAX_ORG_BYTES = 200


@frozen(slots=True)
class Outcome:
    """What became of one batch; `mark` is the stream's highest stored number after it."""

    kind: Literal["stored", "duplicate", "refused", "conflict"]
    mark: int
    position: int = 0


@frozen
class Tail:
    """An org's log in figures; `first` is the oldest position kept, `next` the one that comes."""

    first: int = 1
    next: int = 1
    entries: int = 0
    bytes: int = 0
    records: int = 0
    removed_entries: int = 0
    removed_records: int = 0


@define
class _Mark:
    mark: int
    ring: list[int]


class EmbeddedLog:
    """All orgs' logs. Synchronous; one thread writes, any may read."""

    def __init__(self, path: Path, lock: IO[bytes], map_bytes: int) -> None:
        self.path = path
        self._lock = lock
        self._map_bytes = map_bytes
        self._readers = 0
        self._gate = threading.Condition()
        self._env = self._open_env()

    @classmethod
    def open(cls, path: Path, *, map_bytes: int = 64 << 30) -> EmbeddedLog:
        """Open or create the log in the directory `path`.

        Raises EngineLocked when another process has it, StorageError when the directory cannot be used.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("ab")
        except OSError as error:
            raise StorageError(
                f"the log's directory {path} cannot be used: {error.strerror}; choose another with --data, "
                "or let this user write there"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise EngineLocked(
                f"another process has the log in {path} open; an embedded log has exactly one Phloem node. "
                "Stop the other one, or give this one a directory of its own with --data"
            ) from None
        try:
            return cls(path, lock, map_bytes)
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Let go of the log."""
        self._env.close()
        self._lock.close()

    def reopen(self) -> None:
        """After a StorageError: start again from what is durable. Raises StorageError.

        Waits for reads that are under way, and holds back others: LMDB's pages vanish when it is closed.
        """
        with self._gate:
            self._gate.wait_for(lambda: self._readers == 0)
            self._env.close()
            self._env = self._open_env()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._gate:
            self._readers += 1
        try:
            with self._env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise StorageError(f"the log in {self.path} cannot be read: {error}") from error
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    def _open_env(self) -> lmdb.Environment:
        try:
            env = lmdb.open(
                str(self.path), map_size=self._map_bytes, max_dbs=4, max_readers=126, readahead=False, lock=True
            )
            self._names, self._tails, self._marks, self._entries = (
                env.open_db(name) for name in (b"orgs", b"tails", b"marks", b"entries")
            )
        except lmdb.Error as error:
            raise StorageError(f"the log in {self.path} cannot be opened: {error}") from error
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return env

    # --- writing ----------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        """Store batches in one transaction, synced: what became of each.

        Raises StorageError: then nothing of this call is to be acknowledged, and `reopen` comes before the next.
        """
        try:
            txn = self._env.begin(write=True)
            try:
                writer = _Writer(self, txn)
                outcomes = [writer.append(org, entry) for org, entry in batches]
                writer.finish()
                txn.commit()
            except BaseException:
                txn.abort()
                raise
        except (lmdb.Error, OSError) as error:
            advice = "free space on its disk, or raise phloem.map_bytes if it is the log that is full"
            raise StorageError(f"the log in {self.path} cannot be written: {error}; {advice}") from error
        return outcomes

    def remove_oldest(self, org: str, *, before_us: int, keep_bytes: int, at_most: int = 1000) -> int:
        """Retention, one bounded step: remove entries older than `before_us`, or beyond `keep_bytes`.

        Returns how many entries went; fewer than `at_most` means that nothing more is due. Raises StorageError.
        """
        number = self._org_number(org)
        if number is None:
            return 0
        try:
            with self._env.begin(write=True) as txn:
                return self._remove_oldest(txn, number, before_us, keep_bytes, at_most)
        except lmdb.Error as error:
            raise StorageError(f"nothing can be removed from the log in {self.path}: {error}") from error

    def _remove_oldest(self, txn: lmdb.Transaction, number: int, before_us: int, keep_bytes: int, at_most: int) -> int:
        removed = 0
        tail = self._tail(txn, number)
        cursor = txn.cursor(self._entries)
        while removed < at_most and tail.first < tail.next:
            key = KEY.pack(number, tail.first)
            value = bytes(cursor.value()) if cursor.set_key(key) else None
            size = len(value) if value is not None else 0
            if value is not None and received_us(value) >= before_us and tail.bytes <= keep_bytes:
                break
            records = decode_records(value)
            if value is not None:
                cursor.delete()
            tail = evolve(
                tail,
                first=tail.first + 1,
                bytes=tail.bytes - size,
                removed_entries=tail.removed_entries + 1,
                removed_records=tail.removed_records + records,
            )
            removed += 1
        if removed:
            txn.put(ORG.pack(number), _pack_tail(tail), db=self._tails)
        return removed

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, org: str, after: int, *, max_bytes: int, max_entries: int) -> list[tuple[int, bytes]]:
        """Entries behind position `after`, in order, at least one if there is one; the reader checks their CRC."""
        number = self._org_number(org)
        if number is None:
            return []
        found: list[tuple[int, bytes]] = []
        size = 0
        with self._reading() as txn:
            cursor = txn.cursor(self._entries)
            if not cursor.set_range(KEY.pack(number, after + 1)):
                return []
            for key, value in cursor:
                owner, position = KEY.unpack(key)
                if owner != number or len(found) >= max_entries or (found and size + len(value) > max_bytes):
                    break
                found.append((position, bytes(value)))
                size += len(value)
        return found

    def verify(self, org: str) -> Iterator[tuple[int, CorruptEntry]]:
        """Every entry of an org that is not what was written, by position."""
        after = 0
        while found := self.read(org, after, max_bytes=4 << 20, max_entries=1024):
            for position, data in found:
                try:
                    decode_entry(data)
                except CorruptEntry as error:
                    yield position, error
            after = found[-1][0]

    def tail(self, org: str) -> Tail:
        """An org's log in figures."""
        number = self._org_number(org)
        if number is None:
            return Tail()
        with self._reading() as txn:
            return self._tail(txn, number)

    def first_position(self, org: str) -> int:
        """The oldest position that is kept."""
        return self.tail(org).first

    def last_position(self, org: str) -> int:
        """The newest position; one less than the first when nothing is kept."""
        return self.tail(org).next - 1

    def position_at(self, org: str, time_us: int) -> int:
        """The first position taken in at or after a time (to the entry; intakes' clocks may differ)."""
        low, high = self.first_position(org), self.last_position(org) + 1
        while low < high:
            middle = (low + high) // 2
            found = self.read(org, middle - 1, max_bytes=1, max_entries=1)
            if found and received_us(found[0][1]) < time_us:
                low = found[0][0] + 1
            else:
                high = middle
        return low

    def holds(self, org: str) -> bool:
        """Whether this log has ever stored anything of an org."""
        return self._org_number(org) is not None

    def orgs(self) -> list[str]:
        """Every org that has a log."""
        with self._reading() as txn:
            return [bytes(key).decode() for key in txn.cursor(self._names).iternext(values=False)]

    def marks(self, org: str) -> dict[bytes, int]:
        """The highest stored number of each of an org's streams."""
        number = self._org_number(org)
        if number is None:
            return {}
        prefix = ORG.pack(number)
        marks = {}
        with self._reading() as txn:
            cursor = txn.cursor(self._marks)
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if key[:4] != prefix:
                        break
                    marks[bytes(key[4:])] = MARK.unpack(value)[0]
        return marks

    def _org_number(self, org: str) -> int | None:
        with self._reading() as txn:
            value = txn.get(org.encode(), db=self._names)
        return ORG.unpack(value)[0] if value is not None else None

    def _tail(self, txn: lmdb.Transaction, number: int) -> Tail:
        value = txn.get(ORG.pack(number), db=self._tails)
        return Tail(*TAIL.unpack(value)) if value is not None else Tail()


class _Writer:
    """One write transaction: tails and marks are read once, and written once at its end."""

    def __init__(self, log: EmbeddedLog, txn: lmdb.Transaction) -> None:
        self._log = log
        self._txn = txn
        self._numbers: dict[str, int] = {}
        self._tails: dict[int, Tail] = {}
        self._marks: dict[bytes, _Mark] = {}

    def append(self, org: str, entry: LogEntry) -> Outcome:
        """Store one entry if its stream's mark is just below it."""
        number = self._number(org)
        key = ORG.pack(number) + entry.stream
        mark = self._mark(key)
        data, crc = encode_entry(entry)
        if mark is not None and entry.seq <= mark.mark:
            behind = mark.mark - entry.seq
            same = behind >= RING or mark.ring[behind] in (0, crc)
            return Outcome("duplicate" if same else "conflict", mark.mark)
        if mark is not None and entry.seq > mark.mark + 1:
            return Outcome("refused", mark.mark)
        tail = self._tails.get(number)
        if tail is None:
            tail = self._log._tail(self._txn, number)
        position = tail.next
        self._txn.put(KEY.pack(number, position), data, db=self._log._entries, dupdata=False)
        self._tails[number] = Tail(
            tail.first,
            position + 1,
            tail.entries + 1,
            tail.bytes + len(data),
            tail.records + entry.records,
            tail.removed_entries,
            tail.removed_records,
        )
        ring = mark.ring if mark is not None else [0] * RING
        self._marks[key] = _Mark(entry.seq, [crc, *ring[: RING - 1]])
        return Outcome("stored", entry.seq, position)

    def finish(self) -> None:
        """Write the marks and tails that changed."""
        for key, mark in self._marks.items():
            self._txn.put(key, MARK.pack(mark.mark, *mark.ring), db=self._log._marks)
        for number, tail in self._tails.items():
            self._txn.put(ORG.pack(number), _pack_tail(tail), db=self._log._tails)

    def _number(self, org: str) -> int:
        number = self._numbers.get(org)
        if number is None:
            name = org.encode()
            assert 0 < len(name) <= MAX_ORG_BYTES, org
            value = self._txn.get(name, db=self._log._names)
            if value is None:
                number = self._txn.stat(self._log._names)["entries"] + 1
                self._txn.put(name, ORG.pack(number), db=self._log._names)
            else:
                number = ORG.unpack(value)[0]
            self._numbers[org] = number
        return number

    def _mark(self, key: bytes) -> _Mark | None:
        mark = self._marks.get(key)
        if mark is None:
            value = self._txn.get(key, db=self._log._marks)
            if value is None:
                return None
            highest, *ring = MARK.unpack(value)
            mark = _Mark(highest, ring)
        return mark


def decode_records(value: bytes | None) -> int:
    """How many records an entry holds; 0 when it cannot be read."""
    try:
        return decode_entry(value).records if value is not None else 0
    except CorruptEntry:
        return 0


def _pack_tail(tail: Tail) -> bytes:
    return TAIL.pack(
        tail.first,
        tail.next,
        tail.entries,
        tail.bytes,
        tail.records,
        tail.removed_entries,
        tail.removed_records,
    )
