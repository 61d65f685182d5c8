"""The embedded engine: LMDB, one environment for all orgs, group commit, synced before `append` returns.

A stream's batches are stored contiguously: number <= mark is a duplicate, mark + 1 is stored, anything higher is
refused; a stream that was never seen may start anywhere. The mark is in the same transaction as the entry, so
(stream, number) makes every append idempotent. There is no clean-shutdown marker and no recovery pass: kill -9 and a
clean stop take the same way back, however many orgs there are. A file that something else cut short is refused.
`layout.py` says what is where, `writing.py` what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import IO

from attrs import asdict

from phloem.engine.engine import Outcome, Stretch
from phloem.engine.environment import Environment
from phloem.engine.groups import Declined, Group, GroupTable, SharedChange
from phloem.engine.layout import KEY, MARK, ORG, Place, Tail
from phloem.engine.ledger import backlog, fold, org_ledger
from phloem.engine.options import OptionsBounds, OptionsCounts, OptionsTable
from phloem.engine.retaining import RETAIN_STEP, Retention, remove_oldest
from phloem.engine.writing import Writer
from sapflow.entry import HEAD_BYTES, CorruptEntry, LogEntry, decode_entry, entry_counts, received_us
from sapflow.errors import EngineLocked, StorageError
from sapflow.held import HeldElsewhere, hold
from sapflow.ledger import Backlog, OrgLedger, StreamLedger

FOLD_STEP = 50
"""Rows of the ledger that are folded in one."""


class EmbeddedLog:
    """All orgs' logs. Synchronous; one thread writes, any may read."""

    is_open = True
    """Once it is made; after a StorageError it still needs its `reopen`."""
    is_shared = False
    """One process has it, so nobody else brings news, or stores twice."""
    measures = True
    shared_groups = None
    shared_ledger = None

    def __init__(self, path: Path, lock: IO[bytes], map_bytes: int) -> None:
        self.retention = Retention()
        self.options = OptionsBounds()
        self._options_counts = OptionsCounts()
        self.environment = Environment(path, map_bytes)
        self._lock = lock
        self._removed: dict[int, int] = {}
        """Entries that the last append removed, by org's number."""
        self._untold = 0
        """Entries that appends removed since upkeep last said so."""

    @classmethod
    def open(cls, path: Path, *, map_bytes: int = 64 << 30) -> EmbeddedLog:
        """Open or create the log in the directory `path`.

        Raises EngineLocked when another process has it, StorageError when the directory cannot be used.
        """
        try:
            lock = hold(path)
        except HeldElsewhere as held:
            raise EngineLocked(
                f"another process (pid {held.holder}) has the log in {path} open; an embedded log has exactly one "
                "Phloem node. Stop that one, or give this one a directory of its own with --data"
            ) from None
        except OSError as error:
            raise StorageError(_unusable(path, error)) from error
        try:
            return cls(path, lock, map_bytes)
        except OSError as error:
            lock.close()
            raise StorageError(_unusable(path, error)) from error
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        """Let go of the log."""
        self.environment.close()
        self._lock.close()

    def reopen(self) -> None:
        """After a StorageError: start again from what is durable. Raises StorageError."""
        self.environment.reopen()

    # --- writing ----------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[tuple[str, LogEntry]]) -> list[Outcome]:
        """Store batches in one transaction, synced: what became of each.

        Raises StorageError: then nothing of this call is to be acknowledged, and `reopen` comes before the next.
        """
        with self.environment.writing(buffers=True) as txn:
            writer = Writer(self.environment.tables, txn)
            outcomes = [writer.append(org, entry) for org, entry in batches]
            removed = writer.retain(self.retention.bytes_per_org)
            writer.finish()
        self._removed = removed
        self._untold += sum(removed.values())
        return outcomes

    @property
    def removes(self) -> bool:
        """Whether the last append removed anything."""
        return bool(self._removed)

    def look_ahead(self) -> None:
        """Read the heads of the oldest entries, some more than the last append removed. Raises StorageError."""
        removed = self._removed
        with self.environment.reading(buffers=True) as txn:
            tables = self.environment.tables
            for number, count in removed.items():
                first = Tail.read(txn, tables, number).first
                for position in range(first, first + 4 * count):
                    head = txn.get(KEY.pack(number, position), b"", db=tables.entries)[:1]
                    bytes(head)

    def counts(self) -> dict[str, int]:
        """What became of options data; what it stores else is counted by who has it stored."""
        return asdict(self._options_counts)

    def forget(self, org: str) -> None:
        """Nothing: what is stored of an org is in the log."""

    def interrupt(self) -> None:
        """Nothing: it waits for its disk only."""

    def upkeep(self, orgs: Set[str]) -> Iterator[int]:
        """Retention, of all that have a log: entries removed in each step. Raises StorageError.

        By age; by size only what `append` left. The first step says what appends removed since the last upkeep.
        The ledger's rows of silent streams are folded as well, and what exporters told, before its entries may go.
        """
        untold, self._untold = self._untold, 0
        yield untold
        while self.fold_options():
            yield 0
        for org in self.orgs():
            before_us = int((time.time() - self.retention.seconds) * 1e6)
            keep_bytes = self.retention.bytes_per_org
            while removed := self.remove_oldest(org, before_us=before_us, keep_bytes=keep_bytes, at_most=RETAIN_STEP):
                yield removed
            silent_us = int((time.time() - self.retention.silent_s) * 1e6)
            while self.fold_ledger(org, before_us=silent_us, at_most=FOLD_STEP) == FOLD_STEP:
                yield 0

    def remove_oldest(self, org: str, *, before_us: int, keep_bytes: int, at_most: int = 1000) -> int:
        """Retention, one bounded step: remove entries older than `before_us`, or beyond `keep_bytes`.

        Returns how many entries went; 0 means that nothing more is due. Raises StorageError.
        """
        number = self._org_number(org)
        if number is None:
            return 0
        with self.environment.writing(buffers=True) as txn:
            return remove_oldest(
                txn, self.environment.tables, number, before_us=before_us, keep_bytes=keep_bytes, at_most=at_most
            )

    def fold_ledger(self, org: str, *, before_us: int, at_most: int = 1000) -> int:
        """Fold the ledger's rows of streams that were not heard of since `before_us`: how many. Raises StorageError."""
        number = self._org_number(org)
        if number is None:
            return 0
        with self.environment.writing() as txn:
            return fold(txn, self.environment.tables, number, before_us=before_us, at_most=at_most)

    def fold_options(self) -> bool:
        """Note what exporters told in options data, one bounded step: whether more waits. Raises StorageError."""
        with self.environment.reading() as txn:
            if not txn.stat(self.environment.tables.telling)["entries"]:
                return False
        with self.environment.writing() as txn:
            table = OptionsTable(self.environment.tables, txn, self.options, self._options_counts)
            return table.fold_some()

    def change_groups(self, changes: Sequence[SharedChange], now_us: int) -> list[Group | Declined | None]:
        """Make changes of consumer groups in one transaction, synced, in order: what each group is after its own.

        Raises StorageError: then nothing of this call was made, and `reopen` comes before the next.
        """
        with self.environment.writing() as txn:
            table = GroupTable(self.environment.tables, txn)
            return [table.apply(change, now_us) for change in changes]

    # --- reading ----------------------------------------------------------------------------------------------

    def read(self, org: str, after: int, *, max_bytes: int, max_entries: int) -> list[tuple[int, bytes]]:
        """Entries behind position `after`, in order, at least one if there is one; the reader checks their CRC."""
        number = self._org_number(org)
        if number is None:
            return []
        found: list[tuple[int, bytes]] = []
        size = 0
        with self.environment.reading() as txn:
            cursor = txn.cursor(self.environment.tables.entries)
            if not cursor.set_range(KEY.pack(number, after + 1)):
                return []
            for key, value in cursor:
                owner, position = KEY.unpack(key)
                if owner != number or len(found) >= max_entries or (found and size + len(value) > max_bytes):
                    break
                found.append((position, bytes(value)))
                size += len(value)
        return found

    def stretch(self, org: str, after: int, *, max_bytes: int, max_entries: int) -> Stretch:
        """See `Engine`: positions are contiguous, so a missing one was removed."""
        found = self.read(org, after, max_bytes=max_bytes, max_entries=max_entries)
        if not found:
            return Stretch(found, after)
        first = found[0][0]
        return Stretch(found, found[-1][0], first if after and first > after + 1 else None)

    def news(self, orgs: Set[str]) -> Set[str]:
        """Nothing: who appends says so."""
        return frozenset()

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
        with self.environment.reading() as txn:
            return Tail.read(txn, self.environment.tables, number)

    def ledger(self, org: str, *, most_rows: int = 0) -> OrgLedger:
        """What became of an org's records; with the rows of its streams, those heard of last, when they are wanted."""
        number = self._org_number(org)
        if number is None:
            return OrgLedger(org, StreamLedger())
        with self.environment.reading() as txn:
            return org_ledger(txn, self.environment.tables, org, number, most_rows=most_rows)

    def backlog(self, org: str, position: int) -> Backlog:
        """What is left to read for who has read up to a position; of an org of any size, few entries are looked at."""
        number = self._org_number(org)
        if number is None:
            return Backlog(0, 0, 0)
        with self.environment.reading() as txn:
            return backlog(txn, self.environment.tables, number, position)

    def walk(self, org: str, place: Place, through: int, *, at_most: int) -> Place:
        """From a place towards position `through`, at most so many entries on, and not beyond the log's end.

        What retention has removed is stepped over; behind the log's start its bytes and records are exact again.
        """
        number = self._org_number(org)
        if number is None:
            return place
        with self.environment.reading(buffers=True) as txn:
            tail = Tail.read(txn, self.environment.tables, number)
            if place.position < tail.start.position:
                if through < tail.start.position:
                    return Place(through, place.bytes, place.records)
                place = tail.start
            position, size, records = place.position, place.bytes, place.records
            cursor = txn.cursor(self.environment.tables.entries)
            if cursor.set_range(KEY.pack(number, position + 1)):
                for key, value in cursor:
                    owner, found = KEY.unpack(key)
                    if owner != number or found > through or at_most <= 0:
                        break
                    position, size, at_most = found, size + len(value), at_most - 1
                    records += entry_counts(value[:HEAD_BYTES])[1]
        return Place(position, size, records)

    def told_streams(self, org: str) -> list[bytes]:
        """An org's streams that have told anything in options data, those that told last at the end."""
        number = self._org_number(org)
        if number is None:
            return []
        with self.environment.reading(buffers=True) as txn:
            return OptionsTable(self.environment.tables, txn, self.options).streams(number)

    def told(self, org: str, stream: bytes, position: int) -> bytes | None:
        """See `Engine`."""
        number = self._org_number(org)
        if number is None:
            return None
        with self.environment.reading() as txn:
            return OptionsTable(self.environment.tables, txn, self.options).in_force(number, stream, position)

    def groups(self, org: str) -> dict[str, Group]:
        """An org's consumer groups, by name."""
        number = self._org_number(org)
        if number is None:
            return {}
        with self.environment.reading(buffers=True) as txn:
            return dict(GroupTable(self.environment.tables, txn).of(number))

    def group(self, org: str, name: str) -> Group | None:
        """One of an org's consumer groups."""
        number = self._org_number(org)
        if number is None:
            return None
        with self.environment.reading() as txn:
            return GroupTable(self.environment.tables, txn).get(number, name)

    def orgs_with_groups(self) -> list[str]:
        """The orgs that have consumer groups."""
        with self.environment.reading() as txn:
            numbers = set(GroupTable(self.environment.tables, txn).numbers())
            if not numbers:
                return []
            names = txn.cursor(self.environment.tables.orgs)
            return [bytes(name).decode() for name, value in names if ORG.unpack(value)[0] in numbers]

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
        with self.environment.reading() as txn:
            return [bytes(key).decode() for key in txn.cursor(self.environment.tables.orgs).iternext(values=False)]

    def marks(self, org: str) -> dict[bytes, int]:
        """The highest stored number of each of an org's streams."""
        number = self._org_number(org)
        if number is None:
            return {}
        prefix = ORG.pack(number)
        marks = {}
        with self.environment.reading() as txn:
            cursor = txn.cursor(self.environment.tables.marks)
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if key[:4] != prefix:
                        break
                    marks[bytes(key[4:])] = MARK.unpack(value)[0]
        return marks

    def _org_number(self, org: str) -> int | None:
        with self.environment.reading() as txn:
            value = txn.get(org.encode(), db=self.environment.tables.orgs)
        return ORG.unpack(value)[0] if value is not None else None


def _unusable(path: Path, error: OSError) -> str:
    return (
        f"the log's directory {path} cannot be used: {error.strerror}; choose another with --data, "
        "or let this user write there"
    )
