"""The classic capture file (draft-ietf-opsawg-pcap): one header, then records; in either byte order.

The magic number says the byte order and whether time stamps count microseconds or nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sapflow.errors import MalformedMessage
from sapflow.flows.captures.packets import CaptureInput, Packet, check_packet_bytes

_MAGICS = {
    bytes.fromhex("a1b2c3d4"): (">", 1),
    bytes.fromhex("d4c3b2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1000),
    bytes.fromhex("4d3cb2a1"): ("<", 1000),
}
"""Byte order, and how many units of the fraction of a second make a microsecond."""
_MAJOR = 2
_LINK_TYPE_MASK = 0xFFFF
"""The bits above say how long the frame check sequence is; lengths in IP headers already leave it out."""


def is_pcap(head: bytes) -> bool:
    """Whether a file with these first bytes is a pcap; 4 of them are enough."""
    return head[:4] in _MAGICS


def read_pcap(source: CaptureInput) -> Iterator[Packet]:
    """The packets of a pcap of which nothing has been taken. Raises MalformedMessage."""
    order, units_per_us = _MAGICS[source.peek(4)]
    header = source.take(24, "a file header")
    major, minor, _, _, _, network = struct.unpack_from(order + "HHiIII", header, 4)
    if major != _MAJOR:
        raise MalformedMessage(f"pcap version {major}.{minor}, not 2.x", offset=4, reason="version")
    record = struct.Struct(order + "IIII")
    while not source.at_end():
        start = source.offset
        seconds, fraction, size, _ = record.unpack(source.take(record.size, "a packet's header"))
        check_packet_bytes(size, start)
        data = source.take(size, "a packet")
        yield Packet(seconds * 1_000_000 + fraction // units_per_us, network & _LINK_TYPE_MASK, data, start)
