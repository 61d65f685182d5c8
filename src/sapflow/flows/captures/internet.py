"""IPv4 and IPv6 headers, and the payloads of one transport protocol, put together when they came in fragments.

Checksums are not looked at: a capture on the sending host has them before the network card filled them in.
"""

from __future__ import annotations

import struct
from collections import Counter
from functools import lru_cache
from ipaddress import ip_address

from attrs import evolve, frozen

from sapflow.flows.captures.fragments import Fragment, Reassembly
from sapflow.flows.captures.links import Skip, ip_begins
from sapflow.flows.captures.packets import Packet

UDP, TCP = 17, 6

_IPV4 = struct.Struct("!BxHHHxB2x4s4s")
_IPV6 = struct.Struct("!4xHBx16s16s")
_FRAGMENT_HEADER = struct.Struct("!BxHI")
_FRAGMENT, _AUTHENTICATION = 44, 51
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140, _AUTHENTICATION})
"""Headers that say how long they are (RFC 8200, 4 and the registry of extension headers)."""


@frozen
class IpPacket:
    """One IP packet's addresses (4 or 16 bytes), and what it carries."""

    source: bytes
    destination: bytes
    protocol: int
    payload: bytes
    fragment: Fragment | None = None


class Payloads:
    """Takes packets and gives those of one transport protocol whole; counts the others in `skipped`."""

    def __init__(self, protocol: int, otherwise: Skip, skipped: Counter[str]) -> None:
        self._protocol = protocol
        self._otherwise = otherwise
        self._skipped = skipped
        self._reassembly = Reassembly()

    def take(self, packet: Packet) -> IpPacket | None:
        """The IP packet that is whole with this one, its payload the transport protocol's."""
        found = self._find(packet)
        if isinstance(found, Skip):
            self._skipped[found] += 1
            return None
        return found

    def finish(self) -> None:
        """No packet comes any more: what is still in fragments is dropped."""
        self._reassembly.clear()
        self._count_dropped()

    def _find(self, packet: Packet) -> IpPacket | Skip | None:
        begin = ip_begins(packet)
        found = begin if isinstance(begin, Skip) else parse_ip(packet.data, begin)
        if isinstance(found, Skip):
            return found
        whole: IpPacket | Skip | None = found
        if found.fragment is not None and self._may_be_wanted(found):
            whole = self._reassemble(found, found.fragment, packet.time_us)
        if whole is None or isinstance(whole, Skip):
            return whole
        return whole if whole.protocol == self._protocol else self._otherwise

    def _may_be_wanted(self, ip: IpPacket) -> bool:
        """Before the fragments are joined, an extension header may hide the protocol."""
        return ip.protocol == self._protocol or (len(ip.source) == 16 and ip.protocol in _EXTENSIONS)

    def _reassemble(self, ip: IpPacket, fragment: Fragment, time_us: int) -> IpPacket | Skip | None:
        key = (ip.source, ip.destination, ip.protocol, fragment.identification)
        payload = self._reassembly.add(key, fragment, ip.payload, time_us)
        self._count_dropped()
        if payload is None:
            return None
        if len(ip.source) == 4:
            return evolve(ip, payload=payload, fragment=None)
        whole = _past_extensions(ip.source, ip.destination, ip.protocol, payload)
        # Fragments of a fragment are nobody's; taken as whole, half a datagram would be given.
        return whole if isinstance(whole, Skip) or whole.fragment is None else Skip.MALFORMED

    def _count_dropped(self) -> None:
        if self._reassembly.dropped:
            self._skipped[Skip.FRAGMENT_DROPPED] += self._reassembly.dropped
            self._reassembly.dropped = 0


@lru_cache(maxsize=4096)
def address_text(address: bytes) -> str:
    """An address as people write it (RFC 5952)."""
    return str(ip_address(address))


def parse_ip(data: bytes, at: int) -> IpPacket | Skip:
    """The IP packet, or fragment of one, that begins at `at`; link-layer padding behind it is left out."""
    if at >= len(data):
        return Skip.TRUNCATED
    match data[at] >> 4:
        case 4:
            return _parse_ipv4(data, at)
        case 6:
            return _parse_ipv6(data, at)
        case _:
            return Skip.NOT_IP


def _parse_ipv4(data: bytes, at: int) -> IpPacket | Skip:
    """RFC 791, 3.1. A total length of 0 is a packet that the network card is yet to cut: all there is."""
    if len(data) - at < _IPV4.size:
        return Skip.TRUNCATED
    first, total, identification, place, protocol, source, destination = _IPV4.unpack_from(data, at)
    header = (first & 0x0F) * 4
    end = at + total if total else len(data)
    if end > len(data):
        return Skip.TRUNCATED
    if header < _IPV4.size or at + header > end:
        return Skip.MALFORMED
    more, offset = bool(place & 0x2000), (place & 0x1FFF) * 8
    fragment = Fragment(identification, offset, more) if more or offset else None
    return IpPacket(source, destination, protocol, data[at + header : end], fragment)


def _parse_ipv6(data: bytes, at: int) -> IpPacket | Skip:
    """RFC 8200, 3. A payload length of 0 is a jumbogram's or one yet to be cut: all there is."""
    begin = at + _IPV6.size
    if begin > len(data):
        return Skip.TRUNCATED
    length, following, source, destination = _IPV6.unpack_from(data, at)
    end = begin + length if length else len(data)
    if end > len(data):
        return Skip.TRUNCATED
    return _past_extensions(source, destination, following, data[begin:end])


def _past_extensions(source: bytes, destination: bytes, header: int, data: bytes) -> IpPacket | Skip:
    """Behind the extension headers (RFC 8200, 4), up to a fragment header, behind which the rest may be elsewhere."""
    at = 0
    while header in _EXTENSIONS or header == _FRAGMENT:
        if len(data) - at < 8:
            return Skip.MALFORMED
        if header == _FRAGMENT:
            header, place, identification = _FRAGMENT_HEADER.unpack_from(data, at)
            at += _FRAGMENT_HEADER.size
            if place & 0xFFF9:
                fragment = Fragment(identification, place & 0xFFF8, bool(place & 1))
                return IpPacket(source, destination, header, data[at:], fragment)
            continue
        following, units = data[at], data[at + 1]
        at += (units + 2) * 4 if header == _AUTHENTICATION else (units + 1) * 8
        if at > len(data):
            return Skip.MALFORMED
        header = following
    return IpPacket(source, destination, header, data[at:])
