"""What nfdump reads in flow exports, and how its fields are called and written beside ours.

nfdump gives every flow a fixed set of fields, zero where the exporter has none, and leaves options records out. What
nfdump 1.7.1 does differently, beside what the table says:

- times are in milliseconds, whatever the exporter's precision;
- it has no times in microseconds or nanoseconds, and none for a v9 flow of the moment in which the exporter booted:
  those are at 1970;
- IPFIX times since boot are made absolute by the exporter's options record (systemInitTimeMilliseconds), but the end is
  taken for the start; we leave both as they are, and tshark agrees with us on which is which;
- in v9 there is no ICMP type but in element 32, while v5 and IPFIX may have it where UDP has its destination port;
- of v5 the masks are left out, and the counters are multiplied by the header's sampling interval;
- of a biflow (RFC 5103) the reverse class of service and TCP flags replace the forward ones.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.interop.exporters import program

Row = dict[str, Any]

IGNORED = {
    "type",
    "sampled",
    "export_sysid",
    "received",
    "label",
    "ip4_router",  # who sent the datagrams
    "src_net",  # address and mask once more
    "dst_net",
    "aggr_flows",  # 1 of every flow
}


def flows(stored: Path) -> list[Row]:
    """Every flow in a file of nfcapd, in the order they came."""
    command = [program("nfdump"), "-r", str(stored), "-o", "json"]
    out = subprocess.run(command, check=True, timeout=60, capture_output=True, env={**os.environ, "TZ": "UTC"}).stdout
    found: list[Row] = json.loads(out)
    return [row for row in found if row["type"] == "FLOW"]


def is_flow(row: Row) -> bool:
    """Whether a record of ours is one that nfdump shows."""
    return "octetDeltaCount" in row


@frozen
class Source:
    """What must be known of a recording to tell what nfdump makes of it."""

    version: int
    booted_ms: int | None = None

    @classmethod
    def of(cls, datagrams: list[bytes], rows: list[Row]) -> Source:
        """From the datagrams, and the records in them."""
        boots = [row["systemInitTimeMilliseconds"] for row in rows if "systemInitTimeMilliseconds" in row]
        return cls(datagrams[0][1], _since_1970(boots[0]) if boots else None)

    def expected(self, row: Row, theirs: Row) -> Row:
        """What nfdump should say of a record of ours, in as many fields as it gives."""
        return {key: _FIELDS[key](row, self) for key in theirs if key not in IGNORED}


def given(theirs: Row) -> Row:
    """What nfdump says, without what it adds of itself."""
    return {key: value for key, value in theirs.items() if key not in IGNORED}


Field = Callable[[Row, Source], Any]
NEVER = "1970-01-01T00:00:00.000"


def _since_1970(text: str) -> int:
    return round(datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC).timestamp() * 1000)


def _time(which: str) -> Field:
    def find(row: Row, source: Source) -> str:
        uptime = row.get(f"flow{which}SysUpTime")
        if source.version == 9 and uptime == 0 and row["flowEndSysUpTime"] == 0:
            return NEVER
        if f"flow{which}Milliseconds" in row:
            return str(row[f"flow{which}Milliseconds"]).removesuffix("Z")
        if uptime is not None and source.booted_ms is not None:
            swapped: int = row["flowEndSysUpTime" if which == "Start" else "flowStartSysUpTime"]
            moment = datetime.fromtimestamp((source.booted_ms + swapped) / 1000, UTC)
            return moment.isoformat(timespec="milliseconds").removesuffix("+00:00")
        assert f"flow{which}Microseconds" in row or f"flow{which}Nanoseconds" in row
        return NEVER

    return find


def _one_of(*names: str, absent: Any = 0) -> Field:
    return lambda row, _: next((row[name] for name in names if name in row), absent)


def _counter(name: str) -> Field:
    def find(row: Row, source: Source) -> int:
        rate = row["samplingInterval"] if source.version == 5 else 1
        count: int = row[name]
        return count * max(rate, 1)

    return find


def _mask(which: str) -> Field:
    names = (f"{which}IPv4PrefixLength", f"{which}IPv6PrefixLength")
    return lambda row, source: 0 if source.version == 5 else next((row[name] for name in names if name in row), 0)


def _flags(row: Row, _: Source) -> str:
    bits = row.get("reverseTcpControlBits", row.get("tcpControlBits", 0))
    return "".join(letter if bits & 1 << 7 - at else "." for at, letter in enumerate("CEUAPRSF"))


def _icmp(shift: int) -> Field:
    names = ("icmpTypeCodeIPv4", "icmpTypeCodeIPv6", "destinationTransportPort")

    def find(row: Row, source: Source) -> int:
        known = names[:1] if source.version == 9 else names
        return next((row[name] for name in known if name in row), 0) >> shift & 0xFF

    return find


_FIELDS: dict[str, Field] = {
    "first": _time("Start"),
    "last": _time("End"),
    "in_packets": _counter("packetDeltaCount"),
    "in_bytes": _counter("octetDeltaCount"),
    "out_packets": _one_of("reversePacketDeltaCount"),
    "out_bytes": _one_of("reverseOctetDeltaCount"),
    "proto": _one_of("protocolIdentifier"),
    "tcp_flags": _flags,
    "src_port": _one_of("sourceTransportPort"),
    "dst_port": _one_of("destinationTransportPort"),
    "icmp_type": _icmp(8),
    "icmp_code": _icmp(0),
    "src_tos": _one_of("reverseIpClassOfService", "ipClassOfService"),
    "dst_tos": _one_of("postIpClassOfService"),
    "src4_addr": _one_of("sourceIPv4Address"),
    "dst4_addr": _one_of("destinationIPv4Address"),
    "src6_addr": _one_of("sourceIPv6Address"),
    "dst6_addr": _one_of("destinationIPv6Address"),
    "ip4_next_hop": _one_of("ipNextHopIPv4Address"),
    "input_snmp": _one_of("ingressInterface"),
    "output_snmp": _one_of("egressInterface"),
    "src_mask": _mask("source"),
    "dst_mask": _mask("destination"),
    "fwd_status": _one_of("forwardingStatus"),
    "direction": _one_of("flowDirection"),
    "src_as": _one_of("bgpSourceAsNumber"),
    "dst_as": _one_of("bgpDestinationAsNumber"),
    "src_vlan": _one_of("vlanId"),
    "dst_vlan": _one_of("postVlanId"),
    "in_src_mac": _one_of("sourceMacAddress", absent="00:00:00:00:00:00"),
    "out_dst_mac": _one_of("postDestinationMacAddress", absent="00:00:00:00:00:00"),
    "in_dst_mac": _one_of("destinationMacAddress", absent="00:00:00:00:00:00"),
    "out_src_mac": _one_of("postSourceMacAddress", absent="00:00:00:00:00:00"),
}
