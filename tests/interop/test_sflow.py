"""sFlow datagrams, decoded by us and by tshark: the same values."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.interop.exporters import a_capture_of, program
from tests.peers import needs
from tests.unit.flows.test_sflow import (
    GATEWAY,
    ROUTER,
    SWITCH,
    ethernet,
    expanded,
    ipv4,
    ipv6,
    raw,
    sample,
    sflow,
    tcp,
)

FIELDS = {
    "sflow_245.agent": "exporterIPv4Address",
    "sflow_245.sub_agent_id": "_domain",
    "sflow.flow_sample.sampling_rate": "samplingInterval",
    "sflow.flow_sample.sample_pool": "selectorIdTotalPktsObserved",
    "sflow_245.header.frame_length": "layer2OctetDeltaCount",
    "sflow_245.vlan.out": "postVlanId",
    "sflow_245.nexthop": "ipNextHopIPv4Address",
    "sflow_245.nexthop.src_mask": "sourceIPv4PrefixLength",
    "sflow_245.nexthop.dst_mask": "destinationIPv4PrefixLength",
    "sflow_245.srcAS": "bgpSourceAsNumber",
    "sflow_245.peerAS": "bgpPrevAdjacentAsNumber",
    "eth.src": "sourceMacAddress",
    "eth.dst": "destinationMacAddress",
    "vlan.id": "dot1qVlanId",
    "ipv6.src": "sourceIPv6Address",
    "ipv6.dst": "destinationIPv6Address",
    "ipv6.flow": "flowLabelIPv6",
    "ipv6.hlim": "ipTTL",
    "tcp.srcport": "sourceTransportPort",
    "tcp.dstport": "destinationTransportPort",
    "tcp.flags": "tcpControlBits",
}
INNER = {"ip.src": "sourceIPv4Address", "ip.dst": "destinationIPv4Address", "ip.len": "octetDeltaCount"}
"""Fields that the datagram's own packet has as well, before the sampled one's."""


def ours(capture: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "sapflow", "decode", str(capture)]
    text = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    return [json.loads(line) for line in text.splitlines()]


def tsharks(capture: Path) -> list[dict[str, str]]:
    """A sample a datagram: what each says."""
    fields = [*FIELDS, *INNER]
    command = [program("tshark"), "-r", str(capture), "-d", "udp.port==2055,sflow", "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    text = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    found = []
    for line in text.splitlines():
        values = dict(zip(fields, (column.split(",") for column in line.split("\t")), strict=True))
        for field in INNER:
            del values[field][0]
        found.append({name: column[0] for name, column in values.items() if column and column[0]})
    return found


def same(theirs: str, our: Any) -> bool:
    return theirs == our or (isinstance(our, int) and int(theirs, 0) == our)


@needs("tshark")
def test_tshark_and_we_read_the_same_samples(tmp_path: Path) -> None:
    tcp4 = raw(ethernet(ipv4(tcp()), 0x0800))
    tagged = raw(ethernet(ipv4(tcp(5000, 22, 0x10), options=2), 0x0800, (0x8100, 5 << 13 | 77)))
    tcp6 = raw(ethernet(ipv6(tcp(6000, 80)), 0x86DD), length=1234)
    samples = [
        sample(tcp4),
        sample(SWITCH, ROUTER, tagged, GATEWAY, rate=64, pool=1 << 31),
        sample(tcp6),
        expanded(tcp6),
        expanded(ROUTER, tagged, ingress=(0, 7), egress=(0, 1 << 24)),
    ]
    datagrams = [sflow(one, number=number, sub_agent=number) for number, one in enumerate(samples)]
    capture = a_capture_of(datagrams, tmp_path / "sflow.pcap")
    rows = ours(capture)
    theirs = tsharks(capture)
    assert len(rows) == len(theirs) == len(samples)
    rows.sort(key=lambda row: row["_domain"])
    compared = 0
    for row, them in zip(rows, theirs, strict=True):
        for field, value in them.items():
            name = {**FIELDS, **INNER}[field]
            assert same(value, row.get(name)), (field, value, name, row)
            compared += 1
    assert compared > 60
