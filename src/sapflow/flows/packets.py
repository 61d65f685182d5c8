"""The first bytes of a packet as IPFIX fields: Ethernet with its tags, IPv4, IPv6, and where the transport begins.

A sampled packet may end anywhere. Each header that is there gives its fields; one that is cut off, or contradicts
itself, gives none, nor does what lies behind it: nothing here raises. IP is looked for behind tags and MPLS labels, not
inside of PPPoE, 802.3 LLC or a tunnel. Fields are by element name, in wire form, and a name has the same width always.
"""

from __future__ import annotations

import struct

Fields = dict[str, bytes]

TCP = 6
PORT_PROTOCOLS = frozenset({TCP, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite: their headers begin with two ports."""

_IPV4, _IPV6 = 0x0800, 0x86DD
_MPLS = frozenset({0x8847, 0x8848})
_VLAN_ETHERTYPES = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})
"""802.1Q, 802.1ad, and the two that switches used for stacks before it."""
_TAGS = (("dot1qVlanId", "dot1qPriority"), ("dot1qCustomerVlanId", "dot1qCustomerPriority"))
_LEAST_ETHERTYPE = 0x0600
"""Less than this is a length (IEEE 802.3, 3.2.6)."""

_ICMP, _ICMP6 = 1, 58
_FRAGMENT, _AUTHENTICATION = 44, 51
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140, _AUTHENTICATION})
"""Headers that say how long they are (RFC 8200, 4 and the registry of extension headers)."""
_IPV4_HEADER = struct.Struct("!BcHHHccxx4s4s")
_IPV6_HEADER = struct.Struct("!IHBc16s16s")
_FRAGMENT_HEADER = struct.Struct("!BxHI")
_U16 = struct.Struct("!H")


def ethernet_fields(frame: bytes) -> Fields:
    """Addresses, tags and type of a frame (IEEE 802.3, 3; 802.1Q, 9), and the fields of the IP packet in it.

    vlanId is that of the outer tag; further tags than two are passed over.
    """
    if len(frame) < 12:
        return {}
    fields = {"destinationMacAddress": frame[:6], "sourceMacAddress": frame[6:12]}
    at = _after_tags(frame, fields)
    if at + 2 > len(frame):
        return fields
    (ethertype,) = _U16.unpack_from(frame, at)
    if ethertype >= _LEAST_ETHERTYPE and ethertype not in _VLAN_ETHERTYPES:
        fields["ethernetType"] = frame[at : at + 2]
    if ethertype == _IPV4:
        fields |= ipv4_fields(frame[at + 2 :])
    elif ethertype == _IPV6:
        fields |= ipv6_fields(frame[at + 2 :])
    elif ethertype in _MPLS:
        fields |= _mpls_fields(frame, at + 2)
    return fields


def ipv4_fields(packet: bytes) -> Fields:
    """What an IPv4 header says (RFC 791, 3.1), and the transport header of a packet or of its first fragment."""
    if len(packet) < _IPV4_HEADER.size:
        return {}
    first, tos, total, identification, place, ttl, protocol, source, destination = _IPV4_HEADER.unpack_from(packet)
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < _IPV4_HEADER.size:
        return {}
    fields = {
        "ipVersion": b"\4",
        "sourceIPv4Address": source,
        "destinationIPv4Address": destination,
        "protocolIdentifier": protocol,
        "ipClassOfService": tos,
        "ipTTL": ttl,
        "ipTotalLength": total.to_bytes(4, "big"),
        **_fragment(identification, place & 0x1FFF, (place >> 8) & 0xE0),
    }
    # Behind the total length stands only the frame's padding; 0 is a packet that the network card is yet to cut.
    if not place & 0x1FFF:
        fields |= _transport_fields(protocol[0], packet[header : total or len(packet)], _ICMP)
    return fields


def ipv6_fields(packet: bytes) -> Fields:
    """What an IPv6 header says (RFC 8200, 3), its fragment header (4.5), and the transport header behind them.

    protocolIdentifier is the last header known of: an extension header's number where the sample ends within it.
    """
    if len(packet) < _IPV6_HEADER.size:
        return {}
    first, length, following, hops, source, destination = _IPV6_HEADER.unpack_from(packet)
    if first >> 28 != 6:
        return {}
    fields = {
        "ipVersion": b"\6",
        "sourceIPv6Address": source,
        "destinationIPv6Address": destination,
        "ipClassOfService": bytes([(first >> 20) & 0xFF]),
        "flowLabelIPv6": (first & 0xFFFFF).to_bytes(4, "big"),
        "ipTTL": hops,
        "ipTotalLength": (_IPV6_HEADER.size + length).to_bytes(4, "big"),
    }
    # A payload length of 0 is a jumbogram's, or yet to be cut.
    end = _IPV6_HEADER.size + length if length else len(packet)
    protocol, payload = _past_extensions(following, packet[_IPV6_HEADER.size : end], fields)
    fields["protocolIdentifier"] = bytes([protocol])
    return fields | _transport_fields(protocol, payload, _ICMP6)


def _mpls_fields(frame: bytes, at: int) -> Fields:
    """The top label (RFC 3032, 2.1: label, class, bottom of stack), and the IP packet behind the last, if it is one."""
    fields = {"mplsTopLabelStackSection": frame[at : at + 3]} if at + 4 <= len(frame) else {}
    while at + 4 <= len(frame):
        at += 4
        if frame[at - 2] & 1:
            # Nothing says what the packet is; the first four bits of one of IP do, others begin with 0 (RFC 4928).
            return fields | ipv4_fields(frame[at:]) | ipv6_fields(frame[at:])
    return fields


def _after_tags(frame: bytes, fields: Fields) -> int:
    """The offset of the ethertype behind all tags; what the outer two say goes into `fields`."""
    at = 12
    tags = []
    while at + 4 <= len(frame) and _U16.unpack_from(frame, at)[0] in _VLAN_ETHERTYPES:
        tags.append(_U16.unpack_from(frame, at + 2)[0])
        at += 4
    for control, (vlan, priority) in zip(tags, _TAGS, strict=False):
        fields[vlan], fields[priority] = (control & 0x0FFF).to_bytes(2, "big"), bytes([control >> 13])
    if tags:
        fields["vlanId"] = fields["dot1qVlanId"]
    return at


def _fragment(identification: int, offset: int, flags: int) -> Fields:
    """`offset` in units of 8 octets; `flags` as in IPv4's header: 0x40 don't fragment, 0x20 more follow."""
    return {
        "fragmentIdentification": identification.to_bytes(4, "big"),
        "fragmentOffset": offset.to_bytes(2, "big"),
        "fragmentFlags": bytes([flags]),
    }


def _past_extensions(header: int, data: bytes, fields: Fields) -> tuple[int, bytes]:
    """The upper-layer protocol, and its bytes as far as they are there; a fragment that is not the first has none."""
    at = 0
    while (header in _EXTENSIONS or header == _FRAGMENT) and at + 8 <= len(data):
        if header == _FRAGMENT:
            header, place, identification = _FRAGMENT_HEADER.unpack_from(data, at)
            fields |= _fragment(identification, place >> 3, (place & 1) << 5)
            at += _FRAGMENT_HEADER.size
            if place >> 3:
                return header, b""
        else:
            units = data[at + 1]
            size = (units + 2) * 4 if header == _AUTHENTICATION else (units + 1) * 8
            header = data[at]
            at += size
    return header, data[at:]


def _transport_fields(protocol: int, segment: bytes, icmp: int) -> Fields:
    """Ports, flags, or ICMP's type and code; `icmp` is the protocol number that ICMP has in this version of IP."""
    if protocol in PORT_PROTOCOLS and len(segment) >= 4:
        fields = {"sourceTransportPort": segment[:2], "destinationTransportPort": segment[2:4]}
        if protocol == TCP and len(segment) >= 14:
            fields["tcpControlBits"] = bytes([segment[12] & 0x0F, segment[13]])
        return fields
    if protocol == icmp and len(segment) >= 2:
        version = "IPv4" if icmp == _ICMP else "IPv6"
        return {f"icmpType{version}": segment[:1], f"icmpCode{version}": segment[1:2]}
    return {}
