"""sFlow v5 flow samples as IPFIX fields: the sample's own, then what its records say of the packet.

Records are read in the order of `_RECORDS`, whatever order they came in, and the first to say something counts. A
record that cannot be read costs itself; a sample whose records cannot be told apart costs itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sapflow.errors import MalformedMessage
from sapflow.flows.datagrams.packets import PORT_PROTOCOLS, TCP, Fields, ethernet_fields, ipv4_fields, ipv6_fields
from sapflow.flows.datagrams.xdr import Cursor

_RANDOM = b"\2"
_ONE = b"\0\0\0\1"
_SINGLE, _DISCARDED, _MULTIPLE = 0, 1, 2
"""What an interface's value is: its index, the reason of a discard, how many interfaces there are."""
_INTERNAL = 0x3FFFFFFF
"""In place of an index: the agent itself sent, or took, the packet."""
_DROPPED, _DENIED, _UNROUTABLE, _MUST_NOT_FRAGMENT = 128, 129, 131, 133
_FORWARDING_STATUS = {
    **dict.fromkeys((0, 1, 6, 7, 11, 12), _UNROUTABLE),
    4: _MUST_NOT_FRAGMENT,
    **dict.fromkeys((9, 10, 13), _DENIED),
    257: 137,
    258: 130,
    260: 139,
    261: 138,
    262: _MUST_NOT_FRAGMENT,
}
"""Reasons of a discard, below 256 the codes of ICMP's unreachable, as values of forwardingStatus (RFC 7270, 4.12)."""
_AS_SEQUENCE = 2
_ETHERNET = 1
_IP_HEADERS = {11: ipv4_fields, 12: ipv6_fields}
"""Of the protocols that a raw header may be of, those that are read."""


def flow_sample(cursor: Cursor, agent: bytes, skipped: Counter[str], *, expanded: bool) -> Fields:
    """The fields of a flow sample, plain or expanded; what of it gives none is counted in `skipped`.

    Raises MalformedMessage, with the offset in the datagram.
    """
    if expanded:
        _, kind, index, rate, pool, _, *interfaces = cursor.words(10)
    else:
        _, source, rate, pool, _, ingress, egress = cursor.words(7)
        kind, index = source >> 24, source & 0xFFFFFF
        interfaces = [ingress >> 30, ingress & _INTERNAL, egress >> 30, egress & _INTERNAL]
    fields = {
        f"exporterIPv{_version(agent)}Address": agent,
        "selectorId": kind.to_bytes(4, "big") + index.to_bytes(4, "big"),
        "selectorIdTotalPktsObserved": pool.to_bytes(4, "big"),
        "samplingInterval": rate.to_bytes(4, "big"),
        "samplingAlgorithm": _RANDOM,
        "packetDeltaCount": _ONE,
    }
    _put_interfaces(fields, *interfaces)
    _put_records(fields, cursor, skipped)
    return fields


def _put_interfaces(fields: Fields, in_kind: int, ingress: int, out_kind: int, egress: int) -> None:
    known = in_kind == _SINGLE and ingress != _INTERNAL
    fields["ingressInterface"] = (ingress if known else 0).to_bytes(4, "big")
    known = out_kind == _SINGLE and egress != _INTERNAL
    fields["egressInterface"] = (egress if known else 0).to_bytes(4, "big")
    if out_kind == _DISCARDED:
        fields["forwardingStatus"] = bytes([_FORWARDING_STATUS.get(egress, _DROPPED)])
    elif out_kind == _MULTIPLE:
        fields["multicastReplicationFactor"] = egress.to_bytes(4, "big")


def _put_records(fields: Fields, cursor: Cursor, skipped: Counter[str]) -> None:
    found: dict[int, Cursor] = {}
    for _ in range(cursor.count(8)):
        number, record = cursor.part()
        if number in found:
            skipped["repeated_record"] += 1
        elif number in _RECORDS:
            found[number] = record
        else:
            skipped["unknown_record"] += 1
    for number, put in _RECORDS.items():
        if number in found:
            try:
                put(fields, found[number])
            except MalformedMessage:
                skipped["malformed_record"] += 1
    if found.keys().isdisjoint(_PACKETS):
        skipped["no_packet"] += 1


def _put_raw_header(fields: Fields, record: Cursor) -> None:
    protocol, length, _, size = record.words(4)
    header = record.take(size)
    if protocol in _IP_HEADERS:
        fields |= _IP_HEADERS[protocol](header)
        _put(fields, "octetDeltaCount", length, 4)
        return
    _put(fields, "layer2OctetDeltaCount", length, 4)
    if protocol == _ETHERNET:
        fields |= ethernet_fields(header)
        # 0 is of a packet that the network card is yet to cut.
        if "ipTotalLength" in fields and any(fields["ipTotalLength"]):
            fields["octetDeltaCount"] = fields["ipTotalLength"]


def _put_ethernet(fields: Fields, record: Cursor) -> None:
    length, source, destination, kind = record.word(), record.take(6), record.take(6), record.word()
    _put(fields, "layer2OctetDeltaCount", length, 4)
    fields.setdefault("sourceMacAddress", source)
    fields.setdefault("destinationMacAddress", destination)
    _put(fields, "ethernetType", kind, 2)


def _put_ipv4(fields: Fields, record: Cursor) -> None:
    _put_ip(fields, record, 4)


def _put_ipv6(fields: Fields, record: Cursor) -> None:
    _put_ip(fields, record, 16)


def _put_ip(fields: Fields, record: Cursor, width: int) -> None:
    length, protocol = record.words(2)
    source, destination = record.take(width), record.take(width)
    source_port, destination_port, flags, tos = record.words(4)
    _put(fields, "octetDeltaCount", length, 4)
    if "ipVersion" in fields:
        return  # the packet's own header says all this
    version = _version(source)
    fields |= {"ipVersion": version.to_bytes(1, "big")}
    fields |= {f"sourceIPv{version}Address": source, f"destinationIPv{version}Address": destination}
    _put(fields, "protocolIdentifier", protocol, 1)
    _put(fields, "ipClassOfService", tos, 1)
    if protocol in PORT_PROTOCOLS:
        _put(fields, "sourceTransportPort", source_port, 2)
        _put(fields, "destinationTransportPort", destination_port, 2)
    if protocol == TCP:
        _put(fields, "tcpControlBits", flags, 2)


def _put_switch(fields: Fields, record: Cursor) -> None:
    vlan, priority, post_vlan, _ = record.words(4)
    if 0 < vlan < 4096:
        fields["vlanId"] = vlan.to_bytes(2, "big")  # known even where the frame had its tag taken off
    if post_vlan < 4096:
        _put(fields, "postVlanId", post_vlan, 2)
    if priority < 8:
        _put(fields, "dot1qPriority", priority, 1)


def _put_router(fields: Fields, record: Cursor) -> None:
    next_hop = record.address()
    masks = record.words(2)
    if next_hop:
        fields[f"ipNextHopIPv{_version(next_hop)}Address"] = next_hop
    version = fields["ipVersion"][0] if "ipVersion" in fields else _version(next_hop)
    for side, bits in zip(("source", "destination"), masks, strict=True):
        if bits <= (32 if version == 4 else 128):
            _put(fields, f"{side}IPv{version}PrefixLength", bits, 1)


def _put_gateway(fields: Fields, record: Cursor) -> None:
    next_hop = record.address()
    _, source, peer = record.words(3)
    path = [(record.word(), record.words(record.count(4))) for _ in range(record.count(8))]
    record.words(record.count(4) + 1)  # communities, local preference
    if next_hop:
        fields[f"bgpNextHopIPv{_version(next_hop)}Address"] = next_hop
    _put(fields, "bgpSourceAsNumber", source, 4)
    _put(fields, "bgpPrevAdjacentAsNumber", peer, 4)
    neighbour, destination = _ends_of_path(path)
    _put(fields, "bgpNextAdjacentAsNumber", neighbour, 4)
    _put(fields, "bgpDestinationAsNumber", destination, 4)


def _ends_of_path(path: list[tuple[int, tuple[int, ...]]]) -> tuple[int, int]:
    """The first and the last AS; 0 where there is none, or only a set, which has no order (RFC 5102, 5.6)."""
    ordered = [numbers if kind == _AS_SEQUENCE else (0,) for kind, numbers in path if numbers]
    return (ordered[0][0], ordered[-1][-1]) if ordered else (0, 0)


def _put(fields: Fields, name: str, value: int, width: int) -> None:
    """What the element has no room for is left out: agents say 0xFFFFFFFF for what they do not know."""
    if value < 1 << 8 * width:
        fields.setdefault(name, value.to_bytes(width, "big"))


def _version(address: bytes) -> int:
    return 4 if len(address) == 4 else 6


_RECORDS: dict[int, Callable[[Fields, Cursor], None]] = {
    1: _put_raw_header,
    2: _put_ethernet,
    3: _put_ipv4,
    4: _put_ipv6,
    1001: _put_switch,
    1002: _put_router,
    1003: _put_gateway,
}
"""By number (of enterprise 0), what puts a record's fields in; those that know more of the packet come first."""
_PACKETS = {1, 2, 3, 4}
"""Records that say something of the packet itself."""
