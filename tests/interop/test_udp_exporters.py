"""Real exporters over UDP, decoded by us, by nfdump and by tshark: the same records, value by value."""

import json
import os
import struct
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tools.fleet import running

from tests.interop.exporters import Command, nfcapd, nfreplay, pmacctd, program, record, softflowd
from tests.interop.test_softflowd import FLOWS
from tests.peers import needs

EXPORTERS = {
    **{f"softflowd v{version}": softflowd(version) for version in (5, 9, 10)},
    **{f"pmacctd v{version}": pmacctd(version) for version in (5, 9, 10)},
    **{f"nfreplay v{version}": nfreplay(version) for version in (5, 9)},
}
of_each = pytest.mark.parametrize("command", [pytest.param(item, id=name) for name, item in EXPORTERS.items()])

Flow = tuple[str, str, int, int, int, int, int, int, int]
"""Addresses, ports, protocol, packets, bytes, start and end (ms since 1970)."""


def a_capture_of(datagrams: list[bytes], path: Path) -> Path:
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    for payload in datagrams:
        udp = struct.pack("!HHHH", 40_000, 2055, 8 + len(payload), 0) + payload
        addresses = b"\xc0\x00\x02\x09\xc0\x00\x02\x0a"
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses + udp
        data += struct.pack("<IIII", int(time.time()), 0, len(packet), len(packet)) + packet
    path.write_bytes(data)
    return path


def milliseconds(text: str) -> int:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def flow_of(row: dict[str, Any]) -> Flow:
    start = row.get("flowStartMilliseconds") or row["flowStartSeconds"]
    end = row.get("flowEndMilliseconds") or row["flowEndSeconds"]
    return (
        row["sourceIPv4Address"],
        row["destinationIPv4Address"],
        row["sourceTransportPort"],
        row["destinationTransportPort"],
        row["protocolIdentifier"],
        row["packetDeltaCount"],
        row["octetDeltaCount"],
        milliseconds(start),
        milliseconds(end),
    )


def rows_of(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if "sourceIPv4Address" in row and "octetDeltaCount" in row]


def ours(capture: Path) -> list[dict[str, Any]]:
    found = subprocess.run(
        [sys.executable, "-m", "sapflow", "decode", str(capture)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    return rows_of(found.stdout)


def nfdumps(stored: Path) -> Counter[Flow]:
    command = [program("nfdump"), "-r", str(stored), "-o", "json"]
    found = subprocess.run(
        command, check=True, timeout=60, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"}
    )
    return Counter(
        (
            row["src4_addr"],
            row["dst4_addr"],
            row.get("src_port", 0),
            row.get("dst_port", 0),
            row["proto"],
            row["in_packets"],
            row["in_bytes"],
            milliseconds(row["first"]),
            milliseconds(row["last"]),
        )
        for row in json.loads(found.stdout)
        if row["type"] == "FLOW"
    )


def tsharks(capture: Path) -> Counter[tuple[str, str, int, int, int]]:
    """Addresses, ports and bytes."""
    fields = ("cflow.srcaddr", "cflow.dstaddr", "cflow.srcport", "cflow.dstport", "cflow.octets")
    command = [program("tshark"), "-r", str(capture), "-d", "udp.port==2055,cflow", "-T", "fields"]
    for field in fields:
        command += ["-e", field]
    text = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    found: Counter[tuple[str, str, int, int, int]] = Counter()
    for line in text.splitlines():
        columns = [column.split(",") if column else [] for column in line.split("\t")]
        for source, destination, source_port, destination_port, octets in zip(*columns, strict=True):
            found[source, destination, int(source_port), int(destination_port), int(octets)] += 1
    return found


@needs("softflowd", "pmacctd", "nfcapd", "nfdump", "nfreplay")
@of_each
def test_nfdump_and_we_read_the_same_flows(tmp_path: Path, command: Command) -> None:
    datagrams = record(command, tmp_path)
    rows = ours(a_capture_of(datagrams, tmp_path / "sent.pcap"))
    assert len(rows) == FLOWS
    assert Counter(map(flow_of, rows)) == nfdumps(nfcapd(tmp_path / "nfcapd", datagrams))


@needs("softflowd", "pmacctd", "tshark")
@pytest.mark.parametrize("name", ["softflowd v5", "softflowd v9", "softflowd v10", "pmacctd v9", "pmacctd v10"])
def test_tshark_and_we_read_the_same_flows(tmp_path: Path, name: str) -> None:
    capture = a_capture_of(record(EXPORTERS[name], tmp_path), tmp_path / "sent.pcap")
    assert Counter((*flow_of(row)[:4], row["octetDeltaCount"]) for row in ours(capture)) == tsharks(capture)


@needs("softflowd", "pmacctd", "nfdump", "nfcapd", "nfreplay")
def test_what_a_fleet_stores_of_every_exporter_is_what_a_file_of_it_holds(tmp_path: Path) -> None:
    expected: Counter[Flow] = Counter()
    with running(tmp_path / "fleet", collectors=1) as fleet:
        for number, command in enumerate(EXPORTERS.values()):
            datagrams = record(command, tmp_path / str(number))
            capture = a_capture_of(datagrams, tmp_path / f"{number}.pcap")
            expected.update(map(flow_of, ours(capture)))
            send = [sys.executable, "-m", "sapflow", "send", str(capture), "--to", f"udp://{fleet.doors['udp']}"]
            subprocess.run(send, check=True, timeout=60, capture_output=True)
        tail = [sys.executable, "-m", "sapflow", "tail", "default", "--at", "earliest", "--no-follow"]
        found: Counter[Flow] = Counter()
        until = time.monotonic() + 20
        while found.total() < expected.total() and time.monotonic() < until:
            done = subprocess.run(
                [*tail, "--data", str(fleet.data)], check=True, timeout=60, capture_output=True, text=True
            )
            found = Counter(map(flow_of, rows_of(done.stdout)))
        udp = fleet.status()["balancer"]["counts"]["udp"]
    assert found == expected
    assert (udp["malformed"], udp["unknown"], udp["lost_units"], udp["kernel_drops"]) == (0, 0, 0, 0)
