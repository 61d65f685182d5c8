"""The columns of the view of flows, and which elements of which exporters each comes from (docs/reference/view.md).

Tables only; `sapflow.flows.meaning.view` reads them, `sapflow.flows.meaning.moments` has what concerns times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen

from sapflow.flows.meaning.fields import REVERSE, made_element
from sapflow.flows.registry import InformationElement


@frozen
class Number:
    """A column of integers: the first of these elements whose value is not 0 (`or_zero`: that is there at all)."""

    kind: str
    elements: tuple[str, ...]
    or_zero: bool = False


BYTES = ("octetDeltaCount", "initiatorOctets", "octetTotalCount", "postOctetDeltaCount", "postOctetTotalCount")
PACKETS = ("packetDeltaCount", "initiatorPackets", "packetTotalCount", "postPacketDeltaCount", "postPacketTotalCount")
NUMBERS: Mapping[str, Number] = {
    "src_port": Number("unsigned16", ("sourceTransportPort", "udpSourcePort", "tcpSourcePort")),
    "dst_port": Number("unsigned16", ("destinationTransportPort", "udpDestinationPort", "tcpDestinationPort")),
    "proto": Number("unsigned8", ("protocolIdentifier",)),
    "tos": Number("unsigned8", ("ipClassOfService",)),
    "icmp": Number("unsigned16", ("icmpTypeCodeIPv4", "icmpTypeCodeIPv6")),
    "in_if": Number("unsigned32", ("ingressInterface", "ingressPhysicalInterface")),
    "out_if": Number("unsigned32", ("egressInterface", "egressPhysicalInterface")),
    "in_vrf": Number("unsigned32", ("ingressVRFID",)),
    "out_vrf": Number("unsigned32", ("egressVRFID",)),
    "vlan": Number("unsigned16", ("vlanId", "dot1qVlanId")),
    "out_vlan": Number("unsigned16", ("postVlanId", "postDot1qVlanId")),
    "src_as": Number("unsigned32", ("bgpSourceAsNumber",)),
    "dst_as": Number("unsigned32", ("bgpDestinationAsNumber",)),
    "src_mask": Number("unsigned8", ("sourceIPv4PrefixLength", "sourceIPv6PrefixLength")),
    "dst_mask": Number("unsigned8", ("destinationIPv4PrefixLength", "destinationIPv6PrefixLength")),
    "nat_src_port": Number("unsigned16", ("postNAPTSourceTransportPort", "xlateSrcPort")),
    "nat_dst_port": Number("unsigned16", ("postNAPTDestinationTransportPort", "xlateDstPort")),
    "direction": Number("unsigned8", ("flowDirection",)),
    "end_reason": Number("unsigned8", ("flowEndReason",)),
    "event": Number("unsigned8", ("firewallEvent", "natEvent", "fwEvent")),
    "flow_id": Number("unsigned64", ("flowId",)),
    "bytes": Number("unsigned64", (*BYTES, "layer2OctetDeltaCount", "layer2OctetTotalCount"), or_zero=True),
    "packets": Number("unsigned64", PACKETS, or_zero=True),
}
ADDRESSES: Mapping[str, tuple[str, ...]] = {
    "src_addr": ("sourceIPv4Address", "sourceIPv6Address", "sourceIPv4Prefix", "sourceIPv6Prefix"),
    "dst_addr": ("destinationIPv4Address", "destinationIPv6Address", "destinationIPv4Prefix", "destinationIPv6Prefix"),
    "next_hop": ("ipNextHopIPv4Address", "ipNextHopIPv6Address"),
    "bgp_next_hop": ("bgpNextHopIPv4Address", "bgpNextHopIPv6Address"),
    "nat_src_addr": ("postNATSourceIPv4Address", "postNATSourceIPv6Address", "xlateSrcAddrIPv4"),
    "nat_dst_addr": ("postNATDestinationIPv4Address", "postNATDestinationIPv6Address", "xlateDstAddrIPv4"),
}
MACS = {"src_mac": "sourceMacAddress", "dst_mac": "destinationMacAddress"}
TEXTS: Mapping[str, tuple[str, ...]] = {
    "app": ("applicationName", "App_ID", "L7_PROTO_NAME", "ixiaL7ApplicationName"),
    "user": ("userName", "aaaUsername", "User_ID", "FLOW_USER_NAME"),
}
JOINED = {
    "in_if_name": "ingressInterfaceName",
    "out_if_name": "egressInterfaceName",
    "in_vrf_name": "ingressVRFName",
    "out_vrf_name": "egressVRFName",
}
"""Columns that the stage of names made."""

REVERSED: Mapping[str, Number] = {
    "bytes": Number(
        "unsigned64",
        (f"{REVERSE}octetDeltaCount", "responderOctets", f"{REVERSE}octetTotalCount", "ixiaReverseOctetDeltaCount"),
        or_zero=True,
    ),
    "packets": Number(
        "unsigned64",
        (f"{REVERSE}packetDeltaCount", "responderPackets", f"{REVERSE}packetTotalCount", "ixiaReversePacketDeltaCount"),
        or_zero=True,
    ),
    "tos": Number("unsigned8", (f"{REVERSE}ipClassOfService",)),
    "vlan": Number("unsigned16", (f"{REVERSE}vlanId",)),
}
SWAPPED = tuple(
    (f"{one}{name}", f"{other}{name}")
    for one, other, names in (
        ("src_", "dst_", ("addr", "port", "as", "mask", "mac")),
        ("in_", "out_", ("if", "vrf", "if_name", "vrf_name")),
        ("nat_src_", "nat_dst_", ("addr", "port")),
    )
    for name in names
)
"""What changes places in the row of the other direction."""
ONE_WAY = ("tcp_flags", "tos", "vlan", "out_vlan", "direction", "next_hop", "bgp_next_hop", "start", "end")
"""What an exporter says of one direction: in the row of the other it is what it says of that, or not known."""

ORDER = (
    *("exporter", "domain", "start", "end", "src_addr", "src_port", "dst_addr", "dst_port", "proto", "tcp_flags"),
    *("bytes", "packets", "sampling", "scaled_bytes", "scaled_packets", "reverse", "direction", "tos", "icmp"),
    *("in_if", "out_if", "in_if_name", "out_if_name", "in_vrf", "out_vrf", "in_vrf_name", "out_vrf_name"),
    *("vlan", "out_vlan", "src_mac", "dst_mac", "src_as", "dst_as", "src_mask", "dst_mask", "next_hop"),
    *("bgp_next_hop", "nat_src_addr", "nat_src_port", "nat_dst_addr", "nat_dst_port", "app", "user", "event"),
    *("end_reason", "flow_id"),
)
DTYPES: Mapping[str, type[np.unsignedinteger[Any]]] = {
    "unsigned8": np.uint8,
    "unsigned16": np.uint16,
    "unsigned32": np.uint32,
    "unsigned64": np.uint64,
}
_KINDS = {
    **{name: number.kind for name, number in NUMBERS.items()},
    **dict.fromkeys(ADDRESSES, "ipAddress"),
    **dict.fromkeys(MACS, "macAddress"),
    **dict.fromkeys(("exporter", *TEXTS, *JOINED), "string"),
    "domain": "unsigned32",
    "start": "dateTimeMicroseconds",
    "end": "dateTimeMicroseconds",
    "tcp_flags": "unsigned16",
    "sampling": "float64",
    "reverse": "boolean",
    "scaled_bytes": "unsigned64",
    "scaled_packets": "unsigned64",
}
_UNITS = {"bytes": "octets", "packets": "packets", "scaled_bytes": "octets", "scaled_packets": "packets"}
ELEMENTS: Mapping[str, InformationElement] = {
    name: made_element(name, _KINDS[name], units=_UNITS.get(name, "")) for name in ORDER
}
"""Every column that there can be, in its order."""
