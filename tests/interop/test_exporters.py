"""The records of each exporter hold the traffic that it metered: every packet and octet of every flow."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import rdpcap

from tests.interop.exporters import EXPORTERS, FPROBE_PORT
from tests.interop.recordings import Recordings, Row, of_each, sapflow
from tests.interop.traffic import CONVERSATIONS, VLAN, a_mixed_capture

Flow = tuple[str, str, int, int, int]
"""Addresses, protocol, ports; without ports 0."""

OF_BOTH_VERSIONS = (
    "softflowd v9",
    "softflowd ipfix",
    "softflowd ipfix nanoseconds",
    "softflowd ipfix tcp",
    "pmacctd v9",
    "pmacctd ipfix",
    "nfreplay v9",
)


def metered(path: Path, *, is_v5: bool = False) -> tuple[Counter[Flow], Counter[Flow]]:
    """Packets and octets of each flow in the capture that exporters are given."""
    packets: Counter[Flow] = Counter()
    octets: Counter[Flow] = Counter()
    for packet in rdpcap(str(a_mixed_capture(path))):
        if is_v5 and IPv6 in packet:
            continue
        head = packet[IPv6] if IPv6 in packet else packet[IP]
        body = packet.getlayer(TCP) or packet.getlayer(UDP)
        ports = (0, 0) if body is None else (body.sport, body.dport)
        flow = (head.src, head.dst, head.nh if IPv6 in packet else head.proto, *ports)
        packets[flow] += 1
        octets[flow] += len(bytes(head))
    return packets, octets


def exported(rows: list[Row]) -> tuple[Counter[Flow], Counter[Flow]]:
    """Packets and octets of each flow in records, both ways of a biflow."""
    packets: Counter[Flow] = Counter()
    octets: Counter[Flow] = Counter()
    for row in rows:
        if "octetDeltaCount" not in row:
            continue
        flow = _flow(row)
        packets[flow] += row["packetDeltaCount"]
        octets[flow] += row["octetDeltaCount"]
        if row.get("reversePacketDeltaCount"):
            back = (flow[1], flow[0], flow[2], flow[4], flow[3])
            packets[back] += row["reversePacketDeltaCount"]
            octets[back] += row["reverseOctetDeltaCount"]
    return packets, octets


def _flow(row: Row) -> Flow:
    source = row.get("sourceIPv4Address") or row["sourceIPv6Address"]
    destination = row.get("destinationIPv4Address") or row["destinationIPv6Address"]
    protocol: int = row["protocolIdentifier"]
    if protocol not in (6, 17):  # some have the ICMP type where others have ports
        return (source, destination, protocol, 0, 0)
    return (source, destination, protocol, row["sourceTransportPort"], row["destinationTransportPort"])


@of_each(*OF_BOTH_VERSIONS)
def test_every_packet_is_in_the_records(recordings: Recordings, exporter: str, tmp_path: Path) -> None:
    assert exported(recordings[exporter].rows) == metered(tmp_path / "flows.pcap")


@of_each("softflowd v5", "pmacctd v5", "nfreplay v5")
def test_every_ipv4_packet_is_in_the_records_of_v5(recordings: Recordings, exporter: str, tmp_path: Path) -> None:
    assert exported(recordings[exporter].rows) == metered(tmp_path / "flows.pcap", is_v5=True)


@of_each("softflowd ipfix biflow")
def test_both_ways_of_a_biflow_are_in_one_record(recordings: Recordings, exporter: str, tmp_path: Path) -> None:
    rows = recordings[exporter].rows
    assert exported(rows) == metered(tmp_path / "flows.pcap")
    assert sum(row.get("reversePacketDeltaCount", 0) > 0 for row in rows) == 3 * CONVERSATIONS


@of_each()
def test_nothing_is_taken_for_lost_where_every_message_came(
    recordings: Recordings, exporter: str, tmp_path: Path
) -> None:
    recording = recordings[exporter]
    session = tmp_path / "session.ipfix"
    if EXPORTERS[exporter].is_tcp:
        session.write_bytes(b"".join(recording.datagrams))
    source = session if EXPORTERS[exporter].is_tcp else recording.capture
    (stats,) = [json.loads(line) for line in sapflow("decode", "--stats", source).splitlines()]
    assert (stats["lost"], stats["undecodable_sets"], stats["errors"]) == (0, 0, {})
    assert stats["records"] == len(recording.rows)


@of_each("softflowd v9 sampled", "softflowd ipfix sampled")
def test_one_packet_of_three_is_in_the_records_of_a_sampler_and_its_options_say_so(
    recordings: Recordings, exporter: str, tmp_path: Path
) -> None:
    rows = recordings[exporter].rows
    packets, _ = metered(tmp_path / "flows.pcap")
    assert exported(rows)[0].total() == packets.total() // 3
    rates = {row.get("samplingInterval") or 1 + row["samplingPacketSpace"] for row in rows if "interfaceName" in row}
    assert rates == {3}


@of_each("softflowd v9", "softflowd ipfix biflow", "softflowd ipfix nanoseconds", "pmacctd v9", "pmacctd ipfix")
def test_what_was_in_a_vlan_is_marked_so(recordings: Recordings, exporter: str) -> None:
    tagged = [row for row in recordings[exporter].rows if row.get("vlanId") == VLAN]
    assert {row["sourceTransportPort"] for row in tagged} == set(range(4000, 4000 + CONVERSATIONS))


@of_each("fprobe v5")
def test_what_fprobe_saw_on_the_loopback_interface_is_what_was_sent_there(
    recordings: Recordings, exporter: str
) -> None:
    packets, octets = exported(recordings[exporter].rows)
    flows = {
        ("127.0.0.1", f"127.0.0.{2 + number}", 17, FPROBE_PORT - 1, FPROBE_PORT): 38 + number for number in range(4)
    }
    assert packets.keys() == flows.keys()
    assert {flow: octets[flow] / packets[flow] for flow in flows} == flows
