"""TCP byte streams out of captured packets, in order (RFC 9293, 3.4): what each end of a connection was sent.

Retransmissions are dropped, segments out of order wait for what stands before them, bounded in bytes. What the
capture never held is given up when the wait is at its bound or the capture ends, and the next segment says so.
Rule 1: every byte given stands behind the one given before it, or `lost_bytes` says how many are missing between.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter
from collections.abc import Iterator

from attrs import Factory, define, frozen

from sapflow.flows.captures.internet import TCP, IpPacket, Payloads, address_text
from sapflow.flows.captures.links import Skip
from sapflow.flows.captures.packets import Packet

MAX_WAITING_BYTES = 1 << 20
"""Of one direction."""
MAX_WAITING_BYTES_IN_ALL = 64 << 20
MAX_DIRECTIONS = 4096
"""Followed at once; the one without data for longest is forgotten for another."""

_ENTRY_BYTES = 256
"""What a waiting segment costs besides its payload: without it, segments of one byte would get past the bound."""
_FARTHEST = 1 << 30
"""The largest window (RFC 7323, 2.3): a sequence number farther off belongs to another connection."""
_HALF, _MASK = 1 << 31, 0xFFFFFFFF
_HEADER = struct.Struct("!HHI4xBB6x")
_SYN = 0x02

_Key = tuple[bytes, bytes, int, int]


@frozen
class Segment:
    """The next bytes of one direction of a connection."""

    time_us: int
    """When the receiver could read them: the time of the packet that closed the gap before them."""
    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes
    first: bool
    """Whether a stream begins here; one may have been before between the same ports."""
    lost_bytes: int = 0
    """Bytes before these that the capture does not hold; a reader of messages must find their beginning anew."""


@frozen
class _Header:
    source_port: int
    destination_port: int
    sequence: int
    """Of the payload's first byte."""
    syn: bool
    payload: bytes


@define
class _Direction:
    """One direction's stream: positions count its bytes from 0, where sequence numbers wrap."""

    key: _Key
    start: int
    """Sequence number of position 0."""
    next: int = 0
    """Position of the first byte not given yet."""
    first: bool = True
    held: int = 0
    waiting: dict[int, bytes] = Factory(dict)
    order: list[int] = Factory(list)
    """Positions waiting, a heap."""

    def distance(self, sequence: int) -> int:
        """From the first byte not given to this sequence number: below 0 is behind it."""
        ahead = (sequence - self.start - self.next) & _MASK
        return ahead - (_MASK + 1) if ahead >= _HALF else ahead

    def put(self, position: int, payload: bytes) -> None:
        """Keep a segment until it is its turn; of two at one position the longer."""
        old = self.waiting.get(position)
        if old is None:
            heapq.heappush(self.order, position)
            self.held += _ENTRY_BYTES
        elif len(old) >= len(payload):
            return
        self.held += len(payload) - len(old or b"")
        self.waiting[position] = payload

    def take(self) -> Iterator[bytes]:
        """What can be given now, each byte once."""
        while self.order and self.order[0] <= self.next:
            position = heapq.heappop(self.order)
            payload = self.waiting.pop(position)
            self.held -= len(payload) + _ENTRY_BYTES
            fresh = payload[self.next - position :]
            if fresh:
                self.next += len(fresh)
                yield fresh

    def skip_gap(self) -> int:
        """Give up what is missing: how many bytes."""
        lost = self.order[0] - self.next
        self.next = self.order[0]
        return lost


class TcpSegments:
    """Feed it a capture's packets in order, then take what `finish` gives.

    `skipped` counts packets that gave nothing by reason (the values of `Skip`), `gaps` the places where bytes are
    missing and `lost_bytes` how many, `joined_midway` streams whose beginning the capture does not hold: such a
    stream begins anywhere in a message. `forgotten` counts directions dropped for others.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.gaps = 0
        self.lost_bytes = 0
        self.joined_midway = 0
        self.forgotten = 0
        self._payloads = Payloads(TCP, Skip.NOT_TCP, self.skipped)
        self._directions: dict[_Key, _Direction] = {}
        """In the order of their last data."""
        self._held = 0
        self._time_us = 0

    def feed(self, packet: Packet) -> Iterator[Segment]:
        """The segments that are in order with this packet. Never raises for what the packet says."""
        self._time_us = packet.time_us
        ip = self._payloads.take(packet)
        if ip is None:
            return
        header = _parse(ip.payload)
        if isinstance(header, Skip):
            self.skipped[header] += 1
        elif header.payload or header.syn:
            yield from self._advance(_key(ip, header), header)

    def finish(self) -> Iterator[Segment]:
        """No packet comes any more: what waited behind gaps."""
        self._payloads.finish()
        while self._directions:
            yield from self._end(next(iter(self._directions)))

    def _advance(self, key: _Key, header: _Header) -> Iterator[Segment]:
        direction = self._directions.get(key)
        if direction is not None and _is_another(direction, header):
            yield from self._end(key)
            direction = None
        if direction is None:
            if len(self._directions) >= MAX_DIRECTIONS:
                self.forgotten += 1
                yield from self._end(next(iter(self._directions)))
            direction = _Direction(key, header.sequence)
            self.joined_midway += not header.syn
        else:
            del self._directions[key]
        self._directions[key] = direction
        if header.payload:
            yield from self._place(direction, header)

    def _place(self, direction: _Direction, header: _Header) -> Iterator[Segment]:
        distance = direction.distance(header.sequence)
        if distance + len(header.payload) <= 0:
            return
        before = direction.held
        direction.put(direction.next + distance, header.payload)
        self._held += direction.held - before
        yield from self._give(direction)
        while direction.held > MAX_WAITING_BYTES or (direction.held and self._held > MAX_WAITING_BYTES_IN_ALL):
            yield from self._give(direction, self._skip_gap(direction))

    def _give(self, direction: _Direction, lost_bytes: int = 0) -> Iterator[Segment]:
        before = direction.held
        payloads = list(direction.take())
        self._held += direction.held - before
        source, destination, source_port, destination_port = direction.key
        ends = (address_text(source), source_port, address_text(destination), destination_port)
        for payload in payloads:
            yield Segment(self._time_us, *ends, payload, direction.first, lost_bytes)
            direction.first, lost_bytes = False, 0

    def _skip_gap(self, direction: _Direction) -> int:
        lost = direction.skip_gap()
        self.gaps += 1
        self.lost_bytes += lost
        return lost

    def _end(self, key: _Key) -> Iterator[Segment]:
        direction = self._directions.pop(key)
        while direction.order:
            yield from self._give(direction, self._skip_gap(direction))


def _key(ip: IpPacket, header: _Header) -> _Key:
    return ip.source, ip.destination, header.source_port, header.destination_port


def _is_another(direction: _Direction, header: _Header) -> bool:
    """Whether the ports were taken for a new connection: a SYN of another number, or data beyond any window."""
    if header.syn:
        return header.sequence != direction.start
    return abs(direction.distance(header.sequence)) > _FARTHEST


def _parse(data: bytes) -> _Header | Skip:
    """RFC 9293, 3.1. A SYN takes one sequence number, before the payload's."""
    if len(data) < _HEADER.size:
        return Skip.MALFORMED
    source_port, destination_port, sequence, offset, flags = _HEADER.unpack_from(data)
    begin = (offset >> 4) * 4
    if not _HEADER.size <= begin <= len(data):
        return Skip.MALFORMED
    syn = bool(flags & _SYN)
    return _Header(source_port, destination_port, (sequence + syn) & _MASK, syn, data[begin:])
