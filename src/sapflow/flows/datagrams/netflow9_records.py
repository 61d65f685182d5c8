"""Data sets of NetFlow v9 as IPFIX records: all their bytes kept, and behind them the times that their uptimes mean."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.clocks import absolute_ms, one_absolute_ms
from sapflow.flows.datagrams.netflow9_layouts import Layout
from sapflow.flows.ipfix.templates import variable_records
from sapflow.flows.wire import MAX_MESSAGE_BYTES

ROOM = MAX_MESSAGE_BYTES - 20
"""Bytes of records that a message of one set has room for."""


_TIMES = struct.Struct("!QQ")


@frozen
class Head:
    domain: int
    uptime_ms: int
    now_ms: int
    records: int


@define
class Run:
    """Sets of one template, of records of fixed length, that are made together."""

    bodies: list[bytes] = field(factory=list)
    heads: list[Head] = field(factory=list)

    def add(self, body: bytes, head: Head) -> None:
        self.bodies.append(body)
        self.heads.append(head)


def trim(bodies: list[bytes], size: int, excess: int) -> int:
    """Take padding away from sets of one template, set by set: what is left of `excess`."""
    for index, body in enumerate(bodies):
        bodies[index] = kept = without_padding(body, size, excess)
        excess -= (len(body) - len(kept)) // size
    return excess


def without_padding(body: bytes, size: int, excess: int) -> bytes:
    """Records without those at their end that are but zeros, at most `excess` of them.

    Padding may be longer than a record: such records are none where the datagram's header counts fewer.
    """
    if excess <= 0 or not body or body[-1]:
        return body
    return body[: size * max(len(body) // size - excess, -(-len(body.rstrip(b"\0")) // size))]


def timed(layout: Layout, bodies: list[bytes], heads: list[Head]) -> bytes:
    """Records of several sets, with the times that theirs mean behind each."""
    joined = b"".join(bodies)
    if layout.reads is None or layout.writes is None or not joined:
        return joined
    if len(joined) == layout.source.record_bytes:
        return joined + _times_of(layout, joined, heads[0])
    records = np.frombuffer(joined, layout.reads)
    uptime_ms: NDArray[np.int64] | int = heads[0].uptime_ms
    now_ms: NDArray[np.int64] | int = heads[0].now_ms
    if len(heads) > 1:
        counts = [len(body) // layout.source.record_bytes for body in bodies]
        uptime_ms = np.repeat(np.array([head.uptime_ms for head in heads], np.int64), counts)
        now_ms = np.repeat(np.array([head.now_ms for head in heads], np.int64), counts)
    out: NDArray[np.void] = np.empty(len(records), layout.writes)
    out["whole"] = records["whole"]
    out["start"] = absolute_ms(records["start"], uptime_ms, now_ms)
    out["end"] = absolute_ms(records["end"], uptime_ms, now_ms)
    return out.tobytes()


def _times_of(layout: Layout, record: bytes, head: Head) -> bytes:
    """Of one record, for which numpy takes as long as for a thousand: there may be thousands of such sets."""
    uptimes = [int.from_bytes(record[at : at + size], "big") for at, size in layout.times]
    return _TIMES.pack(*(one_absolute_ms(uptime, head.uptime_ms, head.now_ms) for uptime in uptimes))


def varying_pieces(layout: Layout, body: bytes, starts: list[int], head: Head) -> list[tuple[bytes, int]]:
    """Records with elements of variable length, which some put into v9 as IPFIX has them; `starts` is where they begin.

    In pieces that fit a message each, with the count of their records. Raises MalformedMessage.
    """
    if not starts:
        return []
    if not layout.times:
        last = next(variable_records(body, starts[-1], len(body), layout.source))
        return [(body[: last[-1][1]], len(starts))]
    ends = [0]
    uptimes: list[int] = []
    for spans in variable_records(body, 0, len(body), layout.source):
        ends.append(spans[-1][1])
        uptimes += (int.from_bytes(body[slice(*spans[index])][-4:], "big") for index, _ in layout.times)
    times = absolute_ms(np.array(uptimes, np.int64), head.uptime_ms, head.now_ms).astype(">u8").tobytes()
    records = [body[a:b] + times[16 * row : 16 * row + 16] for row, (a, b) in enumerate(pairwise(ends))]
    if max(map(len, records)) > ROOM:
        raise MalformedMessage("a record too long for a message", offset=0, reason="record")
    return list(_fitting(records))


def _fitting(records: list[bytes]) -> Iterator[tuple[bytes, int]]:
    pending: list[bytes] = []
    size = 0
    for record in records:
        if size + len(record) > ROOM:
            yield b"".join(pending), len(pending)
            pending, size = [], 0
        pending.append(record)
        size += len(record)
    yield b"".join(pending), len(pending)
