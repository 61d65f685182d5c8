"""A log entry: one stored batch as it stands in the log and as consumers are given it, with a CRC of its own.

    version u8 | 0 u24 | crc32c u32 | stream 16 | seq u64 | received_us u64 | messages u32 | records u32 |
    account length u16 | exporter length u8 | exporter | account | payload

The account is a meter's spool's affair: the log counts it in its ledger, and keeps none of it in its entries. The CRC
covers everything behind itself, so a flipped bit anywhere is found by whoever reads the entry last.
"""

from __future__ import annotations

import struct

from attrs import field, frozen
from crc32c import crc32c

from sapflow.errors import StorageError

HEAD = struct.Struct("!B3xI")
FIXED = struct.Struct("!16sQQIIHB")
HEAD_BYTES = HEAD.size + FIXED.size
"""Where an entry says when it was taken in, and how much it holds."""
VERSION = 2


class CorruptEntry(StorageError):
    """An entry is not what was written. Only this entry is affected."""


@frozen(slots=True)
class LogEntry:
    """A batch of one stream, with where and when it was taken in."""

    stream: bytes
    seq: int
    exporter: str
    received_us: int
    messages: int
    records: int
    payload: bytes = field(repr=False)
    account: bytes = b""
    tells: bool = False
    """It may hold options data; whoever stores it is told so, and it is in no entry."""


def encode_entry(entry: LogEntry) -> tuple[bytes, int]:
    """The entry's bytes, and its CRC."""
    exporter, account = entry.exporter.encode()[:255], entry.account
    counts = (entry.received_us, entry.messages, entry.records)
    fixed = FIXED.pack(entry.stream, entry.seq, *counts, len(account), len(exporter)) + exporter + account
    crc = crc32c(entry.payload, crc32c(fixed))
    return b"".join((HEAD.pack(VERSION, crc), fixed, entry.payload)), crc


def decode_entry(data: bytes) -> LogEntry:
    """The entry. Raises CorruptEntry."""
    if len(data) < HEAD_BYTES:
        raise CorruptEntry(f"an entry of {len(data)} bytes is too short")
    version, crc = HEAD.unpack_from(data)
    if version != VERSION:
        raise CorruptEntry(f"an entry of version {version}, which is not known here")
    if crc32c(data[HEAD.size :]) != crc:
        raise CorruptEntry("an entry's checksum does not match its bytes")
    stream, seq, received, messages, records, told, length = FIXED.unpack_from(data, HEAD.size)
    at = HEAD_BYTES
    exporter = data[at : at + length].decode("utf-8", "replace")
    at += length
    return LogEntry(stream, seq, exporter, received, messages, records, data[at + told :], data[at : at + told])


def entry_head(data: bytes) -> LogEntry | None:
    """An encoded entry without its payload; None of one that is not what was written."""
    if len(data) < HEAD_BYTES:
        return None
    version, crc = HEAD.unpack_from(data)
    if version != VERSION or crc32c(memoryview(data)[HEAD.size :]) != crc:
        return None
    stream, seq, received, messages, records, told, length = FIXED.unpack_from(data, HEAD.size)
    end = HEAD_BYTES + length
    exporter = data[HEAD_BYTES:end].decode("utf-8", "replace")
    return LogEntry(stream, seq, exporter, received, messages, records, b"", data[end : end + told])


def received_us(data: bytes) -> int:
    """When an encoded entry was taken in, without checking the rest; 0 of one that is cut off."""
    if len(data) < HEAD_BYTES:
        return 0
    found: int = FIXED.unpack_from(data, HEAD.size)[2]
    return found


def entry_account(data: bytes) -> bytes:
    """The account of an encoded entry, without checking the rest; b"" of one that is cut off."""
    if len(data) < HEAD_BYTES:
        return b""
    *_, told, length = FIXED.unpack_from(data, HEAD.size)
    at = HEAD_BYTES + length
    return data[at : at + told]


def entry_counts(data: bytes) -> tuple[int, int]:
    """Messages and records of an encoded entry, without checking the rest; 0 of one that is cut off."""
    if len(data) < HEAD_BYTES:
        return 0, 0
    fixed = FIXED.unpack_from(data, HEAD.size)
    return fixed[3], fixed[4]


def entry_number(data: bytes) -> tuple[bytes, int, int] | None:
    """Stream, number and CRC of an encoded entry; None of one that is not what was written."""
    if len(data) < HEAD.size + FIXED.size:
        return None
    version, crc = HEAD.unpack_from(data)
    if version != VERSION or crc32c(memoryview(data)[HEAD.size :]) != crc:
        return None
    stream, seq = FIXED.unpack_from(data, HEAD.size)[:2]
    return stream, seq, crc
