"""Retention in the embedded log: the oldest entries of an org go, and its tail says how many they were.

Transactions give buffers: of an entry only the head is read, since what is old is on disk and not in memory.
"""

from __future__ import annotations

import lmdb
from attrs import evolve

from phloem.engine.layout import COUNT_EVERY, KEY, ORG, TELLING, Tables, Tail
from sapflow.entry import HEAD_BYTES, entry_counts, received_us

MOST_TELLING = 256
"""So many entries whose options data wait are looked at for the first of them."""


def without_oldest(
    txn: lmdb.Transaction, tables: Tables, number: int, tail: Tail, *, before_us: int, keep_bytes: int, at_most: int
) -> Tail:
    """Remove an org's entries older than `before_us`, or beyond `keep_bytes`: its tail after that, to be written."""
    left = at_most
    cursor = txn.cursor(tables.entries)
    while left > 0 and tail.first < tail.next:
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
        left -= 1
    return tail


def kept_from(txn: lmdb.Transaction, tables: Tables, number: int) -> int:
    """The position that an org's entries are to be kept from: the first whose options data were not noted yet.

    Where too many wait to say, 0: nothing may go until upkeep has noted them.
    """
    prefix, first, looked = ORG.pack(number), 1 << 64, 0
    cursor = txn.cursor(tables.telling)
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if bytes(key[: ORG.size]) != prefix:
                break
            if looked == MOST_TELLING:
                return 0
            looked += 1
            first = min(first, TELLING.unpack(key)[2])
    return first
