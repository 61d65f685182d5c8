"""The block-structured capture file (draft-ietf-opsawg-pcapng): sections, each with its byte order and interfaces.

Blocks that hold no packet and describe no interface (names, statistics, secrets, custom ones) are passed over.
A block is held whole, so its length is bounded before it is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from attrs import Factory, define, frozen

from sapflow.errors import MalformedMessage
from sapflow.flows.captures.packets import CaptureInput, Packet, check_packet_bytes

MAX_BLOCK_BYTES = 1 << 20
MAX_INTERFACES = 1 << 16
"""Of one section: all that an obsolete packet block can name."""
END_OF_TIME_US = 253_402_300_800_000_000
"""The year 10000: calendars end here, and a time stamp beyond it is a fault of the file."""

_SECTION = bytes.fromhex("0a0d0d0a")
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 1, 2, 3, 6
_BYTE_ORDERS = {bytes.fromhex("1a2b3c4d"): ">", bytes.fromhex("4d3c2b1a"): "<"}
_MAJOR = 1
_LEAST_BLOCK, _LEAST_SECTION = 12, 28
_END_OF_OPTIONS, _RESOLUTION, _TIME_OFFSET = 0, 9, 14


def is_pcapng(head: bytes) -> bool:
    """Whether a file with these first bytes is a pcapng; 4 of them are enough, 12 surer."""
    return head[:4] == _SECTION and (len(head) < 12 or head[8:12] in _BYTE_ORDERS)


def read_pcapng(source: CaptureInput) -> Iterator[Packet]:
    """The packets of a pcapng of which nothing has been taken. Raises MalformedMessage."""
    section = _Section("<")
    while not source.at_end():
        start = source.offset
        if source.peek(4) == _SECTION:
            section = _begin_section(source, section.time_us)
            continue
        kind, body = _take_block(source, section.order)
        if kind == _INTERFACE:
            section.add_interface(body, start)
        elif kind in (_PACKET, _OLD_PACKET):
            yield section.packet(body, start, old=kind == _OLD_PACKET)
        elif kind == _SIMPLE_PACKET:
            yield section.simple_packet(body, start)


@frozen
class _Interface:
    link_type: int
    snapshot_bytes: int
    """0: no limit."""
    units_per_second: int = 1_000_000
    offset_s: int = 0

    def time_us(self, high: int, low: int, block: int) -> int:
        """A time stamp's two halves in microseconds (4.2, if_tsresol and if_tsoffset)."""
        time_us = (high << 32 | low) * 1_000_000 // self.units_per_second + self.offset_s * 1_000_000
        if not 0 <= time_us < END_OF_TIME_US:
            raise MalformedMessage("a time stamp outside of the years 1970 to 9999", offset=block, reason="time")
        return time_us


@define
class _Section:
    """What holds from one section header to the next: the byte order, and interfaces known by their position."""

    order: str
    time_us: int = 0
    """Of the packet before: a simple packet has no time stamp and takes this one."""
    interfaces: list[_Interface] = Factory(list)

    def add_interface(self, body: bytes, block: int) -> None:
        """An Interface Description Block (4.2)."""
        if len(self.interfaces) >= MAX_INTERFACES:
            what = f"more than {MAX_INTERFACES:,} interfaces in one section"
            raise MalformedMessage(what, offset=block, reason="interface")
        link_type, _, snapshot_bytes = self._unpack("HHI", body, block)
        units, offset_s = 1_000_000, 0
        for code, value in self._options(body, 8, block):
            if code == _RESOLUTION:
                (resolution,) = self._unpack("B", value, block)
                units = 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution
            elif code == _TIME_OFFSET:
                (offset_s,) = self._unpack("q", value, block)
        self.interfaces.append(_Interface(link_type, snapshot_bytes, units, offset_s))

    def packet(self, body: bytes, block: int, *, old: bool) -> Packet:
        """An Enhanced Packet Block (4.3), or the Packet Block it made obsolete (A)."""
        form = "HHIIII" if old else "IIIII"
        number, *_, high, low, size, _ = self._unpack(form, body, block)
        interface = self._interface(number, block)
        data = _packet_bytes(body, 20, size, block)
        self.time_us = interface.time_us(high, low, block)
        return Packet(self.time_us, interface.link_type, data, block)

    def simple_packet(self, body: bytes, block: int) -> Packet:
        """A Simple Packet Block (4.4): of the first interface, as long as its snapshot length lets it be."""
        (size,) = self._unpack("I", body, block)
        interface = self._interface(0, block)
        size = min(size, interface.snapshot_bytes or size)
        return Packet(self.time_us, interface.link_type, _packet_bytes(body, 4, size, block), block)

    def _interface(self, number: int, block: int) -> _Interface:
        if number >= len(self.interfaces):
            what = f"a packet of interface {number:,}, but {len(self.interfaces):,} were described"
            raise MalformedMessage(what, offset=block, reason="interface")
        return self.interfaces[number]

    def _options(self, body: bytes, at: int, block: int) -> Iterator[tuple[int, bytes]]:
        """Options from `at` on (3.5): each is padded to four bytes; the end may be marked, or be the block's."""
        while at < len(body):
            code, length = self._unpack("HH", body[at : at + 4], block)
            at += 4
            if code == _END_OF_OPTIONS:
                return
            if length > len(body) - at:
                what = f"option {code} says {length:,} bytes, but {len(body) - at:,} are left of its block"
                raise MalformedMessage(what, offset=block, reason="option")
            yield code, body[at : at + length]
            at += length + -length % 4

    def _unpack(self, form: str, body: bytes, block: int) -> tuple[int, ...]:
        fields = struct.Struct(self.order + form)
        if len(body) < fields.size:
            what = f"a block or option has {len(body):,} bytes where its fields need {fields.size}"
            raise MalformedMessage(what, offset=block, reason="block")
        return fields.unpack_from(body)


def _begin_section(source: CaptureInput, time_us: int) -> _Section:
    """A Section Header Block (4.1): the only one whose byte order is found within it."""
    start = source.offset
    magic = source.peek(12)[8:]
    if magic not in _BYTE_ORDERS:
        what = "the file ends within a section's header" if len(magic) < 4 else "a section without a byte-order magic"
        reason = "truncated" if len(magic) < 4 else "magic"
        raise MalformedMessage(what, offset=start, reason=reason)
    order = _BYTE_ORDERS[magic]
    _, body = _take_block(source, order, least=_LEAST_SECTION)
    major, minor = struct.unpack_from(order + "HH", body, 4)
    if major != _MAJOR:
        raise MalformedMessage(f"pcapng version {major}.{minor}, not 1.x", offset=start, reason="version")
    return _Section(order, time_us)


def _take_block(source: CaptureInput, order: str, *, least: int = _LEAST_BLOCK) -> tuple[int, bytes]:
    """A block's type and body (3.1); its length stands before and behind it and must be the same."""
    start = source.offset
    head = source.take(8, "a block's header")
    kind, length = struct.unpack(order + "II", head)
    if length < least or length % 4 or length > MAX_BLOCK_BYTES:
        what = f"a block of {length:,} bytes; its like has a multiple of 4 from {least} to {MAX_BLOCK_BYTES:,}"
        raise MalformedMessage(what, offset=start, reason="length")
    rest = source.take(length - 8, "a block")
    (again,) = struct.unpack_from(order + "I", rest, length - 12)
    if again != length:
        what = f"a block says {length:,} bytes at its beginning and {again:,} at its end"
        raise MalformedMessage(what, offset=start, reason="length")
    return kind, rest[:-4]


def _packet_bytes(body: bytes, at: int, size: int, block: int) -> bytes:
    check_packet_bytes(size, block)
    if size > len(body) - at:
        what = f"a packet says {size:,} bytes, but {len(body) - at:,} are left of its block"
        raise MalformedMessage(what, offset=block, reason="length")
    return body[at : at + size]
