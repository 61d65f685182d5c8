"""Retention in the embedded log: the oldest entries of an org go, and its tail says how many they were.

Transactions give buffers: of an entry only the head is read, since what is old is on disk and not in memory.
"""

from __future__ import annotations

import lmdb
from attrs import evolve, frozen

from phloem.engine.layout import COUNT_EVERY, KEY, ORG, TELLING, Tables, Tail
from sapflow.entry import HEAD_BYTES, entry_counts, received_us

MOST_TELLING = 256
"""So many entries whose options data wait are looked at for the first of them."""
RETAIN_STEP, STEP_BYTES = 128, 4 << 20
"""Entries removed in one transaction, between commits, and about how many bytes of them: what is old is read for it."""


@frozen
class Retention:
    """What is removed: entries older than `seconds`, and the oldest of an org that holds more than `bytes_per_org`."""

    seconds: float = 7 * 86_400.0
    bytes_per_org: int = 10 << 30
    silent_s: float = 86_400.0
    """A stream's row in the ledger is folded into its org's when it was not heard of for so long."""


def remove_oldest(
    txn: lmdb.Transaction, tables: Tables, number: int, *, before_us: int, keep_bytes: int, at_most: int
) -> int:
    """One step of upkeep: how many entries of an org went; about `STEP_BYTES` of them."""
    tail = Tail.read(txn, tables, number)
    bounds = {"before_us": before_us, "keep_bytes": keep_bytes, "at_most": at_most, "at_most_bytes": STEP_BYTES}
    left = without_oldest(txn, tables, number, tail, **bounds)
    if left != tail:
        left.write(txn, tables, number)
    return left.first - tail.first


def without_oldest(
    txn: lmdb.Transaction,
    tables: Tables,
    number: int,
    tail: Tail,
    *,
    before_us: int,
    keep_bytes: int,
    at_most: int,
    at_most_bytes: int,
) -> Tail:
    """Remove some of an org's entries older than `before_us`, or beyond `keep_bytes`: its tail then, to be written.

    No more than `at_most` entries go, nor more than `at_most_bytes` and one entry.
    """
    left, left_bytes = at_most, at_most_bytes
    cursor = txn.cursor(tables.entries)
    while left > 0 and left_bytes > 0 and tail.first < tail.next:
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
        left_bytes -= size
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
