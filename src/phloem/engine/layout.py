"""What is where in the embedded log: its tables, their keys and values.

orgs     name                     -> org number u32
tails    org u32                  -> first, next position; stored and removed entries, bytes, records
marks    org u32 | stream 16      -> mark u64, CRCs of the last entries
entries  org u32 | position u64   -> entry (see sapflow.entry)
counts   org u32 | position u64   -> records stored before it u64, of each `COUNT_EVERY`th position
ledger   see `ledger.py`
"""

from __future__ import annotations

import struct

import lmdb
from attrs import astuple, define, frozen

ORG = struct.Struct("!I")
KEY = struct.Struct("!IQ")
TAIL = struct.Struct("!QQQQQQQ")
COUNT = struct.Struct("!Q")
COUNT_EVERY = 256
"""So many entries are read at most to know how many records lie behind a position."""
RING = 8
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

    @classmethod
    def of(cls, env: lmdb.Environment) -> Tables:
        """Open them, and make those that are not there."""
        names = (b"orgs", b"tails", b"marks", b"entries", b"counts", b"ledger")
        return cls(*(env.open_db(name) for name in names))


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

    @classmethod
    def read(cls, txn: lmdb.Transaction, tables: Tables, number: int) -> Tail:
        """The tail of an org, by its number."""
        value = txn.get(ORG.pack(number), db=tables.tails)
        return cls(*TAIL.unpack(value)) if value is not None else cls()

    def write(self, txn: lmdb.Transaction, tables: Tables, number: int) -> None:
        """Put it in its place."""
        txn.put(ORG.pack(number), TAIL.pack(*astuple(self)), db=tables.tails)


@define
class Mark:
    """The highest stored number of a stream, and the CRCs of its last entries, newest first."""

    mark: int
    ring: list[int]
