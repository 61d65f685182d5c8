"""A real exporter through the real fleet, read by a real reader: the same records."""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tools.fleet import Fleet, running
from tools.peers import find

from tests.peers import needs

FLOWS = 40


def a_capture(path: Path, *, apart_s: int = 0) -> None:
    """UDP packets of FLOWS flows, two each, on Ethernet."""
    packets = []
    for number in range(FLOWS):
        for _ in range(2):
            payload = b"x" * (20 + number)
            udp = struct.pack("!HHHH", 1000 + number, 53, 8 + len(payload), 0) + payload
            head = struct.pack(
                "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"
            )
            packets.append(bytes(12) + b"\x08\x00" + head + udp)
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    for number, packet in enumerate(packets):
        data += struct.pack("<IIII", 1_750_000_000 + apart_s * number, number, len(packet), len(packet)) + packet
    path.write_bytes(data)


def export(capture: Path, address: str) -> None:
    softflowd = find("softflowd")
    assert softflowd is not None
    command = [softflowd, "-d", "-c", "none", "-r", str(capture), "-n", address, "-v", "10", "-P", "tcp"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def recorded(capture: Path) -> bytes:
    """The bytes that softflowd sends for the capture."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        received = []

        def take() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(65_536):
                    received.append(data)

        taker = threading.Thread(target=take)
        taker.start()
        export(capture, f"127.0.0.1:{server.getsockname()[1]}")
        taker.join(30)
    return b"".join(received)


def tail(fleet: Fleet, format_: str) -> bytes:
    command = [sys.executable, "-m", "sapflow", "tail", "default", "--at", "earliest", "--no-follow"]
    command += ["--data", str(fleet.data), "--format", format_]
    return subprocess.run(command, check=True, timeout=60, capture_output=True).stdout


def stored_records(fleet: Fleet) -> int:
    counts = fleet.status()["phloem-1"].get("counts", {})
    found: int = counts.get("commit", {}).get("stored_records", 0)
    return found


def ports_by_ipfixdump(path: Path) -> Counter[str]:
    """Source ports of the flow records, as libfixbuf's reader finds them."""
    ipfix_dump = find("ipfixDump")
    assert ipfix_dump is not None
    out = subprocess.run([ipfix_dump, "--in", str(path)], check=True, timeout=60, capture_output=True, text=True).stdout
    return Counter(
        line.split(":")[-1].strip()
        for line in out.splitlines()
        if "sourceTransportPort" in line
        and ":" in line
        and "template" not in line.lower()
        and not line.rstrip().endswith(")")
    )


@needs("softflowd", "ipfixDump")
def test_softflowds_records_arrive_as_another_reader_reads_them(tmp_path: Path) -> None:
    capture = tmp_path / "flows.pcap"
    a_capture(capture)
    direct = tmp_path / "direct.ipfix"
    direct.write_bytes(recorded(capture))
    with running(tmp_path / "fleet") as fleet:
        export(capture, fleet.doors["ipfix_tcp"])
        until = time.monotonic() + 30
        while stored_records(fleet) < FLOWS and time.monotonic() < until:
            time.sleep(0.1)
        rows = [json.loads(line) for line in tail(fleet, "jsonl").splitlines()]
        through = tmp_path / "through.ipfix"
        through.write_bytes(tail(fleet, "ipfix"))
    flows = [row for row in rows if "sourceTransportPort" in row]
    assert len(flows) == FLOWS
    assert Counter(row["sourceTransportPort"] for row in flows) == Counter(range(1000, 1000 + FLOWS))
    assert {row["packetDeltaCount"] for row in flows} == {2}
    expected = ports_by_ipfixdump(direct)
    assert sum(expected.values()) >= FLOWS
    assert ports_by_ipfixdump(through) == expected
