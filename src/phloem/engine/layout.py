"""What is where in the embedded log: its tables, their keys and values.

orgs     name                     -> org number u32
tails    org u32                  -> first, next position; stored and removed entries, bytes, records
marks    org u32 | stream 16      -> mark u64, CRCs of the last entries
entries  org u32 | position u64   -> entry (see sapflow.entry)
counts   org u32 | position u64   -> records stored before it u64, of each `COUNT_EVERY`th position
ledger   see `ledger.py`
groups   org u32 | name           -> where a consumer group has come to (see groups.py)
options  see `options.py`
telling  org u32 | stream 16 | position u64 -> nothing: an entry whose options data are not in `options` yet
"""

from __future__ import annotations

import struct

import lmdb
from attrs import astuple, define, frozen

ORG = struct.Struct("!I")
KEY = struct.Struct("!IQ")
TAIL = struct.Struct("!QQQQQQQQ")
OLD_TAIL = struct.Struct("!QQQQQQQ")
"""Without the removed bytes, as logs of before have it."""
TELLING = struct.Struct("!I16sQ")
COUNT = struct.Struct("!Q")
COUNT_EVERY = 256
"""So many entries are read at most to know how many records lie behind a position."""
TABLES = (b"orgs", b"tails", b"marks", b"entries", b"counts", b"ledger", b"groups", b"options", b"telling")
RING = 8
MAX_ORG_BYTES = 200
MARK = struct.Struct(f"!Q{RING}I")


@frozen
class Tables:
    """LMDB's handles of the tables; they hold for one opening."""

    orgs: lmdb._Database
    tails: lmdb._Database
    marks: lmdb._Database
    entries: lmdb._Database
    counts: lmdb._Database
    ledger: lmdb._Database
    groups: lmdb._Database
    options: lmdb._Database
    telling: lmdb._Database

    @classmethod
    def of(cls, env: lmdb.Environment) -> Tables:
        """Open them, and make those that are not there."""
        return cls(*(env.open_db(name) for name in TABLES))


@frozen
class Place:
    """A position, and the bytes and records of all entries that were ever stored up to it.

    Two places tell what lies between them, also when retention has removed it.
    """

    position: int = 0
    bytes: int = 0
    records: int = 0


@frozen
class Tail:
    """An org's log in figures; `first` is the oldest position kept, `next` the one that comes.

    `entries` and `records` are all that was ever stored, `bytes` what is kept.
    """

    first: int = 1
    next: int = 1
    entries: int = 0
    bytes: int = 0
    records: int = 0
    removed_entries: int = 0
    removed_records: int = 0
    removed_bytes: int = 0

    @property
    def start(self) -> Place:
        """Before the first entry that is kept."""
        return Place(self.first - 1, self.removed_bytes, self.removed_records)

    @property
    def end(self) -> Place:
        """Behind the last entry."""
        return Place(self.next - 1, self.bytes + self.removed_bytes, self.records)

    @classmethod
    def read(cls, txn: lmdb.Transaction, tables: Tables, number: int) -> Tail:
        """The tail of an org, by its number."""
        value = txn.get(ORG.pack(number), db=tables.tails)
        if value is None:
            return cls()
        return cls(*(TAIL if len(value) == TAIL.size else OLD_TAIL).unpack(value))

    def write(self, txn: lmdb.Transaction, tables: Tables, number: int) -> None:
        """Put it in its place."""
        txn.put(ORG.pack(number), TAIL.pack(*astuple(self)), db=tables.tails)


@define
class Mark:
    """The highest stored number of a stream, and the CRCs of its last entries, newest first."""

    mark: int
    ring: list[int]


def number_of(txn: lmdb.Transaction, tables: Tables, org: str) -> int:
    """An org's number, given to it now if it has none."""
    name = org.encode()
    assert 0 < len(name) <= MAX_ORG_BYTES, org
    value = txn.get(name, db=tables.orgs)
    if value is not None:
        found: int = ORG.unpack(value)[0]
        return found
    number: int = txn.stat(tables.orgs)["entries"] + 1
    txn.put(name, ORG.pack(number), db=tables.orgs)
    return number
