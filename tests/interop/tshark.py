"""What tshark reads in flow exports, and how its fields are called and written beside ours.

Every field that tshark shows must be one of ours, with its value, and none of ours may be left over. tshark 4.0 has its
own ways:

- v9's times since boot are shown as times since 1970 where they are 0, see `_as_ours`;
- it has no basicList and no subTemplateMultiList (RFC 6313): their octets are shown under an enterprise of none;
- a dataRecordsReliability of 2 is "True": it takes booleans as C has them, not as RFC 7011, 6.1.5 has;
- the second half of a reverse icmpTypeCodeIPv6 alone says that it is reverse;
- forwardingStatus has a label there, but neither a name nor a value as a whole;
- a value of no length is not shown;
- a v9 datagram ends for it after as many records as its header counts, and softflowd counts too few.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from attrs import evolve, frozen

from sapflow.flows.registry import registry
from tests.interop.exporters import program

PORT = 2055
Value = str | int


def _moment(show: str) -> str:
    """As RFC 3339, with nine digits."""
    head, fraction = show.removesuffix(" UTC").split(".")
    return datetime.strptime(head, "%b %d, %Y %H:%M:%S").strftime("%Y-%m-%dT%H:%M:%S.") + fraction + "Z"


def _number(show: str) -> int:
    return int(show, 0)


def _text(show: str) -> str:
    return show


_TIMES = ("Seconds", "Milliseconds", "Microseconds", "Nanoseconds", "SysUpTime")
_STARTS = tuple(f"flowStart{unit}" for unit in _TIMES)
_ENDS = tuple(f"flowEnd{unit}" for unit in _TIMES)

FIELDS: dict[str, tuple[tuple[str, ...], Callable[[str], Value]]] = {
    "cflow.srcaddr": (("sourceIPv4Address",), _text),
    "cflow.dstaddr": (("destinationIPv4Address",), _text),
    "cflow.srcaddrv6": (("sourceIPv6Address",), _text),
    "cflow.dstaddrv6": (("destinationIPv6Address",), _text),
    "cflow.nexthop": (("ipNextHopIPv4Address",), _text),
    "cflow.bgpnexthop": (("bgpNextHopIPv4Address",), _text),
    "cflow.inputint": (("ingressInterface",), _number),
    "cflow.outputint": (("egressInterface",), _number),
    "cflow.scope_interface": (("ingressInterface",), _number),
    "cflow.scope_system": (("exportingProcessId",), lambda show: int(show.replace(":", ""), 16)),
    "cflow.od_id": (("observationDomainId",), _number),
    "cflow.selector_id": (("selectorId",), _number),
    "cflow.packets": (("packetDeltaCount",), _number),
    "cflow.octets": (("octetDeltaCount",), _number),
    "cflow.abstimestart": (_STARTS, _moment),
    "cflow.abstimeend": (_ENDS, _moment),
    "cflow.timestart": (("flowStartSysUpTime",), lambda show: round(float(show) * 1000)),
    "cflow.timeend": (("flowEndSysUpTime",), lambda show: round(float(show) * 1000)),
    "cflow.srcport": (("sourceTransportPort",), _number),
    "cflow.dstport": (("destinationTransportPort",), _number),
    "cflow.tcpflags": (("tcpControlBits",), _number),
    "cflow.tcpflags16": (("tcpControlBits",), _number),
    "cflow.protocol": (("protocolIdentifier",), _number),
    "cflow.tos": (("ipClassOfService",), _number),
    "cflow.post_tos": (("postIpClassOfService",), _number),
    "cflow.srcas": (("bgpSourceAsNumber",), _number),
    "cflow.dstas": (("bgpDestinationAsNumber",), _number),
    "cflow.srcmask": (("sourceIPv4PrefixLength",), _number),
    "cflow.dstmask": (("destinationIPv4PrefixLength",), _number),
    "cflow.srcmaskv6": (("sourceIPv6PrefixLength",), _number),
    "cflow.dstmaskv6": (("destinationIPv6PrefixLength",), _number),
    "cflow.direction": (("flowDirection",), _number),
    "cflow.flow_end_reason": (("flowEndReason",), _number),
    "cflow.ip_version": (("ipVersion",), _number),
    "cflow.icmp_type_code_ipv4": (("icmpTypeCodeIPv4",), _number),
    "cflow.icmp_ipv6_type": (("icmpTypeCodeIPv6",), _number),
    "cflow.vlanid": (("vlanId",), _number),
    "cflow.post_vlanid": (("postVlanId",), _number),
    "cflow.srcmac": (("sourceMacAddress",), _text),
    "cflow.dstmac": (("destinationMacAddress",), _text),
    "cflow.post_dstmac": (("postDestinationMacAddress",), _text),
    "cflow.mp_id": (("meteringProcessId",), _number),
    "cflow.sys_init_time": (("systemInitTimeMilliseconds",), _moment),
    "cflow.sampling_interval": (("samplingInterval",), _number),
    "cflow.sampling_algorithm": (("samplingAlgorithm",), _number),
    "cflow.sampling_packet_interval": (("samplingPacketInterval",), _number),
    "cflow.sampling_packet_space": (("samplingPacketSpace",), _number),
    "cflow.selector_algorithm": (("selectorAlgorithm",), _number),
    "cflow.sampler_id": (("samplerId",), _number),
    "cflow.sampler_name": (("samplerName",), _text),
    "cflow.sampler_mode": (("samplerMode",), _number),
    "cflow.sampler_random_interval": (("samplerRandomInterval",), _number),
    "cflow.if_name": (("interfaceName",), _text),
    "cflow.if_descr": (("interfaceDescription",), _text),
    "cflow.flow_id": (("flowId",), _number),
    "cflow.subtemplate_list": (("subTemplateList",), _text),
    "Forwarding Status": (("forwardingStatus",), _text),
    "cflow.data_records_reliability": (("dataRecordsReliability",), _text),
    "cflow.engine_type": (("engineType",), _number),
    "cflow.engine_id": (("engineId",), _number),
    "cflow.samplingmode": (("samplingAlgorithm",), _number),
    "cflow.samplerate": (("samplingInterval",), _number),
    "cflow.observation_time_nanoseconds": (("observationTimeNanoseconds",), _moment),
    "cflow.private_enterprise_number": (("privateEnterpriseNumber",), _number),
    "cflow.information_element_id": (("informationElementId",), _number),
    "cflow.information_element_data_type": (("informationElementDataType",), _number),
    "cflow.information_element_semantics": (("informationElementSemantics",), _number),
    "cflow.information_element_units": (("informationElementUnits",), _number),
    "cflow.information_element_range_begin": (("informationElementRangeBegin",), _number),
    "cflow.information_element_range_end": (("informationElementRangeEnd",), _number),
    "cflow.information_element_name": (("informationElementName",), _text),
    "cflow.information_element_description": (("informationElementDescription",), _text),
    "cflow.template_id": (("templateId",), _number),
}
_UNKNOWN = "cflow.enterprise_private_entry"
_V5_HEADER = ("cflow.engine_type", "cflow.engine_id", "cflow.samplerate", "cflow.samplingmode")
_DERIVED = ("flowStartMilliseconds", "flowEndMilliseconds")
"""Of times since boot; they are not on the wire."""


@frozen
class Seen:
    """One field as tshark shows it."""

    name: str
    show: str
    octets: str
    at: int
    is_reverse: bool = False
    number: int = 0
    """Of an element that tshark does not know."""


def records(capture: Path, *, port: int = PORT) -> list[list[Seen]]:
    """Each record's fields, in the order of the wire."""
    command = [program("tshark"), "-r", str(capture), "-d", f"udp.port=={port},cflow", "-T", "pdml"]
    environment = {**os.environ, "TZ": "UTC"}
    out = subprocess.run(command, check=True, timeout=60, capture_output=True, env=environment).stdout
    found = []
    for packet in ElementTree.fromstring(out):
        for layer in packet.iterfind("proto[@name='cflow']"):
            header = [seen for seen in _fields(layer) if seen.name in _V5_HEADER]
            header.sort(key=lambda seen: _V5_HEADER.index(seen.name))
            found += [_of(flow) + header for flow in _flows(layer)]
    return found


def _flows(layer: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for node in layer:
        if re.match(r"(Flow|pdu) \d+", node.get("show", "")):
            yield node
        else:
            yield from _flows(node)


def _of(flow: ElementTree.Element) -> list[Seen]:
    fields = sorted(_fields(flow), key=lambda seen: seen.at)
    joined: list[Seen] = []
    for seen in fields:
        if seen.name == "cflow.icmp_ipv6_code":
            whole = int(joined[-1].show) << 8 | int(seen.show)
            joined[-1] = evolve(joined[-1], show=str(whole), is_reverse=seen.is_reverse)
        else:
            joined.append(seen)
    return joined


def _fields(node: ElementTree.Element) -> Iterator[Seen]:
    for field in node.iterfind("field"):
        name = field.get("name", "")
        if name == "cflow.timedelta":
            yield from _fields(field)
        elif name not in ("cflow.padding", "cflow.template_frame"):
            is_reverse = "(Reverse Type" in field.get("showname", "")
            number = re.search(r"Type (\d+)", field.get("showname", "")) if name == _UNKNOWN else None
            yield Seen(
                name or field.get("show", ""),
                field.get("show", ""),
                field.get("value", ""),
                int(field.get("pos", "0")),
                is_reverse,
                int(number[1]) if number else 0,
            )


def difference(row: dict[str, Any], seen: list[Seen]) -> str:
    """Where a record of ours is not what tshark shows; empty when it is."""
    derived = _DERIVED if "flowStartSysUpTime" in row else ()
    ours = [(name, value) for name, value in row.items() if name[0] != "_" and name not in derived]
    for item in seen:
        found = next((pair for pair in ours if _is_same(re.sub(r"_\d+$", "", pair[0]), item)), None)
        if found is None:
            return f"tshark has {item}, and we have not: {row}"
        ours.remove(found)
        theirs = _value(found[1], item)
        if found[1] != theirs:
            return f"{found[0]} is {found[1]}, not {theirs}"
    missing = [(name, value) for name, value in ours if value != ""]
    return f"tshark does not have {missing}" if missing else ""


def _is_same(name: str, seen: Seen) -> bool:
    """Whether an element of ours is what tshark's field is."""
    if seen.name == _UNKNOWN:
        raw = re.fullmatch(r"e\d+id(\d+)", name)
        return (int(raw[1]) if raw else registry().by_name(name).id) == seen.number
    names, _ = FIELDS[seen.name]
    return name in ([f"reverse{known[0].upper()}{known[1:]}" for known in names] if seen.is_reverse else names)


def _value(ours: Any, seen: Seen) -> Any:
    """What tshark shows, as we would write it."""
    if isinstance(ours, list):
        return ours  # ipfixDump reads lists
    if seen.name == _UNKNOWN:
        return bytes.fromhex(seen.octets).decode() if isinstance(ours, str) and ours != seen.octets else seen.octets
    if seen.name == "cflow.data_records_reliability":
        return seen.octets == "01"
    if seen.name == "Forwarding Status":
        return int(seen.octets, 16)
    return _as_ours(ours, FIELDS[seen.name][1](seen.show))


def _as_ours(ours: Any, theirs: Value) -> Value:
    """A time in our precision, or since boot where tshark shows it as since 1970."""
    if not isinstance(theirs, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", theirs):
        return theirs
    if isinstance(ours, int):
        return round(datetime.fromisoformat(theirs[:23] + "+00:00").timestamp() * 1000)
    return theirs[: len(ours) - 1].removesuffix(".") + "Z"
