"""Link-layer headers: where in a captured packet the IP packet begins, or why there is none.

Link types by their registered numbers (tcpdump.org/linktypes.html). IP inside of PPPoE, MPLS or a tunnel is not
looked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import StrEnum

from sapflow.flows.captures.packets import Packet

_IP_ETHERTYPES = frozenset({0x0800, 0x86DD})
_VLAN_ETHERTYPES = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})
"""802.1Q, 802.1ad, and the two that switches used for stacks before it."""
_IP_FAMILIES = frozenset({2, 10, 24, 28, 30})
"""AF_INET everywhere; AF_INET6 of Linux, NetBSD, FreeBSD and macOS."""
_U16 = struct.Struct("!H")


class Skip(StrEnum):
    """Why a packet gave nothing."""

    UNKNOWN_LINK = "unknown_link"
    NOT_IP = "not_ip"
    NOT_UDP = "not_udp"
    NOT_TCP = "not_tcp"
    TRUNCATED = "truncated_by_snaplen"
    """It holds fewer bytes than its headers say."""
    MALFORMED = "malformed"
    """Its headers contradict themselves."""
    FRAGMENT_DROPPED = "fragment_dropped"
    """A datagram that never came whole: once for each datagram, not for each fragment."""


def ip_begins(packet: Packet) -> int | Skip:
    """The offset of the IP header in the packet's data."""
    link = _LINKS.get(packet.link_type)
    return Skip.UNKNOWN_LINK if link is None else link(packet.data)


def _after_tags(data: bytes, at: int) -> int | Skip:
    """Behind the ethertype at `at` and any stack of VLAN tags, each of which ends in the next ethertype."""
    while at + 2 <= len(data):
        (ethertype,) = _U16.unpack_from(data, at)
        if ethertype in _IP_ETHERTYPES:
            return at + 2
        if ethertype not in _VLAN_ETHERTYPES:
            return Skip.NOT_IP
        at += 4
    return Skip.TRUNCATED


def _ethernet(data: bytes) -> int | Skip:
    return _after_tags(data, 12)


def _linux_cooked(data: bytes) -> int | Skip:
    """LINKTYPE_LINUX_SLL: the ethertype ends the header."""
    return _after_tags(data, 14)


def _linux_cooked_2(data: bytes) -> int | Skip:
    """LINKTYPE_LINUX_SLL2: the ethertype begins a header of 20 bytes, tags stand behind it."""
    if len(data) < 20:
        return Skip.TRUNCATED
    (ethertype,) = _U16.unpack_from(data)
    if ethertype in _VLAN_ETHERTYPES:
        return _after_tags(data, 22)
    return 20 if ethertype in _IP_ETHERTYPES else Skip.NOT_IP


def _loopback(data: bytes) -> int | Skip:
    """An address family, in the byte order of the machine that captured (NULL) or of the network (LOOP)."""
    if len(data) < 4:
        return Skip.TRUNCATED
    families = {int.from_bytes(data[:4], "big"), int.from_bytes(data[:4], "little")}
    return Skip.NOT_IP if families.isdisjoint(_IP_FAMILIES) else 4


def _bare(data: bytes) -> int | Skip:
    return 0


_LINKS: dict[int, Callable[[bytes], int | Skip]] = {
    0: _loopback,
    1: _ethernet,
    12: _bare,
    14: _bare,
    101: _bare,
    108: _loopback,
    113: _linux_cooked,
    228: _bare,
    229: _bare,
    276: _linux_cooked_2,
}
