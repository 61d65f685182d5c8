"""The ledger's rows in the embedded log: one for each stream, and one for each org of those that were folded.

A row changes in the transaction that stores the batch whose account it counts. So a repeat counts once, and whatever
dies, entries, marks and ledger say the same. Rows of streams that were not heard of for long are folded into their
org's, so that there are never more than there were streams in that time; one that is heard of again begins another row.

    org u32                -> streams folded into it, and their sum
    org u32 | stream 16    -> the stream's
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator

import lmdb

from phloem.engine.layout import COUNT, COUNT_EVERY, KEY, ORG, Tables, Tail
from sapflow.entry import HEAD_BYTES, LogEntry, entry_counts
from sapflow.errors import LinkError
from sapflow.ledger import Backlog, OrgLedger, StreamLedger
from sapflow.link.account import FIGURES, NOTHING, Account, decode_account

ROW = struct.Struct(f"!QQQQ{len(FIGURES)}q")
"""When it was last heard of, batches, stored records, missing batches, the account's figures; then, as JSON, the
exporter, the account's reasons, and how many streams a folded row is of."""
MOST = (1 << 62) - 1
"""A figure that would be more stays at this: nobody's lies break a row."""
MAX_EXPORTER = 255
"""Characters of an exporter's name that a row keeps."""
_BATCHES, _STORED, _MISSING, _ACCOUNT = 1, 2, 3, 4
UNREADABLE_ACCOUNT = "account"
"""Among the faults: an account that is none."""
DAMAGED_ROW = "ledger_row"
"""Among the faults: a row whose reasons are damaged on disk; what they were is not known any more."""


class Row:
    """A stream's row while batches are stored: most only add to its figures, and what is text in it stays as it is."""

    __slots__ = ("_figures", "_text")

    def __init__(self, value: bytes | None) -> None:
        self._figures = list(ROW.unpack_from(value)) if value is not None else [0] * (4 + len(FIGURES))
        self._text = value[ROW.size :] if value is not None else b""

    def count(self, entry: LogEntry) -> bool:
        """A batch of the stream is stored: whether it says that the stream begins with it."""
        figures, records = self._figures, entry.records
        if not self._text:
            self._text = _text(entry.exporter[:MAX_EXPORTER], NOTHING)
        figures[_BATCHES] += 1
        figures[_STORED] += records
        if entry.account:
            return self._add(_account(entry))
        figures[_ACCOUNT] += records
        figures[_ACCOUNT + 1] += records
        return False

    def miss(self, batches: int) -> None:
        """So many came before the batch that was counted, and are not in this log."""
        self._figures[_MISSING] += batches

    def _add(self, account: Account) -> bool:
        for index, value in enumerate(account.figures, _ACCOUNT):
            self._figures[index] += value
        if account.refused or account.faults:
            exporter, refused, faults, _ = _read_text(self._text)
            self._text = _text(exporter, Account(refused=refused, faults=faults) + account)
        return account.begins

    def encode(self, now_us: int) -> bytes:
        """The row's stored form, heard of now."""
        self._figures[0] = now_us
        return _packed(self._figures) + self._text


def _account(entry: LogEntry) -> Account:
    try:
        return decode_account(entry.account, entry.records)
    except LinkError:
        # Collectors check accounts; one that is wrong all the same stops no commit.
        return Account(faults={UNREADABLE_ACCOUNT: 1})


def _text(exporter: str, account: Account, streams: int = 0) -> bytes:
    return json.dumps([exporter, dict(account.refused), dict(account.faults), streams]).encode()


def _read_text(text: bytes) -> tuple[str, dict[str, int], dict[str, int], int]:
    """A row's text; one that is damaged on disk costs itself, and stops no commit."""
    try:
        exporter, refused, faults, streams = json.loads(text)
    except ValueError:
        return "", {}, {DAMAGED_ROW: 1}, 0
    return exporter, refused, faults, streams


def _packed(figures: list[int]) -> bytes:
    try:
        return ROW.pack(*figures)
    except struct.error:
        return ROW.pack(*(max(-MOST, min(MOST, value)) for value in figures))


def encode_row(row: StreamLedger, streams: int = 0) -> bytes:
    """A row's stored form."""
    figures = [row.updated_us, row.batches, row.stored, row.missing_batches, *row.account.figures]
    return _packed(figures) + _text(row.exporter, row.account, streams)


def decode_row(key: bytes, value: bytes) -> tuple[StreamLedger, int]:
    """A row, and how many streams were folded into it."""
    updated_us, batches, stored, missing, *figures = ROW.unpack_from(value)
    exporter, refused, faults, streams = _read_text(value[ROW.size :])
    account = Account.of(figures, refused, faults)
    stream = bytes(key[ORG.size :]).hex()
    return StreamLedger(account, batches, stored, missing, updated_us, stream, exporter), streams


def rows_of(txn: lmdb.Transaction, tables: Tables, number: int) -> Iterator[tuple[bytes, bytes]]:
    """An org's rows as they are stored, that of its folded streams first if there is one."""
    prefix = ORG.pack(number)
    cursor = txn.cursor(tables.ledger)
    if cursor.set_range(prefix):
        for key, value in cursor:
            if key[: ORG.size] != prefix:
                break
            yield bytes(key), bytes(value)


def org_ledger(txn: lmdb.Transaction, tables: Tables, org: str, number: int, *, most_rows: int) -> OrgLedger:
    """An org's ledger, with at most so many of its streams' rows: those heard of last."""
    total, streams, rows = StreamLedger(), 0, []
    for key, value in rows_of(txn, tables, number):
        row, folded = decode_row(key, value)
        total.add(row)
        if len(key) == ORG.size:
            streams += folded
            continue
        streams += 1
        if most_rows:
            rows.append(row)
            if len(rows) >= 2 * most_rows:
                rows = _latest(rows, most_rows)
    tail = Tail.read(txn, tables, number)
    kept = tail.records - tail.removed_records
    return OrgLedger(org, total, streams, kept, tail.removed_records, rows=_latest(rows, most_rows))


def fold(txn: lmdb.Transaction, tables: Tables, number: int, *, before_us: int, at_most: int) -> int:
    """Fold rows of streams that were not heard of since then into their org's: how many."""
    old: list[bytes] = []
    total, folded = StreamLedger(), 0
    for key, value in rows_of(txn, tables, number):
        if len(key) == ORG.size:
            total, folded = decode_row(key, value)
        elif int.from_bytes(value[:8], "big") < before_us:
            total.add(decode_row(key, value)[0])
            old.append(key)
            if len(old) >= at_most:
                break
    for key in old:
        txn.delete(key, db=tables.ledger)
    if old:
        total.exporter = total.stream = ""
        txn.put(ORG.pack(number), encode_row(total, folded + len(old)), db=tables.ledger)
    return len(old)


def backlog(txn: lmdb.Transaction, tables: Tables, number: int, position: int) -> Backlog:
    """What of an org is kept behind a position; one beyond the log's end is taken for its end."""
    tail = Tail.read(txn, tables, number)
    last = tail.next - 1
    position = max(min(position, last), tail.first - 1)
    start = max(position - position % COUNT_EVERY, tail.first)
    counted = txn.get(KEY.pack(number, start), db=tables.counts)
    if counted is None:
        start = tail.first
    before = tail.removed_records if counted is None else COUNT.unpack(counted)[0]
    cursor = txn.cursor(tables.entries)
    if cursor.set_range(KEY.pack(number, start)):
        for key, value in cursor:
            owner, at = KEY.unpack(key)
            if owner != number or at > position:
                break
            before += entry_counts(bytes(value[:HEAD_BYTES]))[1]
    return Backlog(position, last - position, tail.records - before)


def now_us() -> int:
    """The time of day of this host."""
    return time.time_ns() // 1000


def _latest(rows: list[StreamLedger], most: int) -> list[StreamLedger]:
    return sorted(rows, key=lambda row: row.updated_us, reverse=True)[:most]
