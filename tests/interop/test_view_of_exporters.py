"""One question, asked of every real exporter: the view of flows gives the same answer for what each saw."""

import json
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.interop.exporters import Command, pmacctd, program, record, softflowd
from tests.interop.test_softflowd import FLOWS
from tests.interop.test_udp_exporters import a_capture_of
from tests.peers import needs

SAMPLING = 4


def with_options(command: Command, *options: str) -> Command:
    return lambda directory, port: [*command(directory, port), *options]


def viewed(command: Command, directory: Path) -> list[dict[str, Any]]:
    capture = a_capture_of(record(command, directory), directory / "export.pcap")
    line = [sys.executable, "-m", "sapflow", "decode", str(capture), "--view", "flow", "--scaled"]
    found = subprocess.run(line, check=True, timeout=60, capture_output=True, text=True)
    return [json.loads(row) for row in found.stdout.splitlines()]


def bytes_by_port(rows: list[dict[str, Any]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for row in rows:
        assert (row["src_addr"], row["dst_addr"]) == ("192.0.2.1", "192.0.2.2")
        assert (row["dst_port"], row["proto"]) == (53, 17)
        assert row["start"] <= row["end"]
        found[row["src_port"]] += row["bytes"]
    return found


@needs("pmacctd")
@pytest.mark.parametrize("version", [5, 9, 10])
def test_bytes_by_source_port_of_pmacctd_are_those_of_the_packets(version: int, tmp_path: Path) -> None:
    expected = {1000 + number: 2 * (20 + 8 + 20 + number) for number in range(FLOWS)}
    assert bytes_by_port(viewed(pmacctd(version), tmp_path)) == expected


@needs("softflowd")
@pytest.mark.parametrize("version", [5, 9, 10])
def test_softflowd_s_sampling_is_known_from_its_header_or_its_options_data(version: int, tmp_path: Path) -> None:
    rows = viewed(with_options(softflowd(version), "-s", str(SAMPLING)), tmp_path)
    assert rows
    for row in rows:
        assert row["sampling"] == SAMPLING
        assert row["scaled_bytes"] == SAMPLING * row["bytes"]


def conversations(path: Path) -> None:
    """Ten requests of 100 octets of payload, each with an answer of 300."""
    one, other = b"\xc0\x00\x02\x01", b"\xc0\x00\x02\x02"
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    for number in range(20):
        port = 1000 + number // 2
        source, target, ports, size = (other, one, (53, port), 300) if number % 2 else (one, other, (port, 53), 100)
        udp = struct.pack("!HHHH", *ports, 8 + size, 0) + bytes(size)
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, source, target)
        packet = bytes(12) + b"\x08\x00" + head + udp
        data += struct.pack("<IIII", 1_750_000_000 + number, 0, len(packet), len(packet)) + packet
    path.write_bytes(data)


def of_conversations(*options: str) -> Command:
    def command(directory: Path, port: int) -> list[str]:
        conversations(directory / "flows.pcap")
        line = [program("softflowd"), "-d", "-a", "-c", "none", "-r", str(directory / "flows.pcap")]
        return [*line, "-n", f"127.0.0.1:{port}", *options]

    return command


@needs("softflowd")
@pytest.mark.parametrize("options", [("-v", "5"), ("-v", "9"), ("-v", "10"), ("-v", "10", "-b")], ids=" ".join)
def test_bytes_by_source_are_the_same_of_flows_and_of_biflows(options: tuple[str, ...], tmp_path: Path) -> None:
    rows = viewed(of_conversations(*options), tmp_path)
    found = Counter({(row["src_addr"], row["src_port"], row["dst_port"]): row["bytes"] for row in rows})
    assert found == {
        **{("192.0.2.1", 1000 + number, 53): 128 for number in range(10)},
        **{("192.0.2.2", 53, 1000 + number): 328 for number in range(10)},
    }
    assert any(row["reverse"] for row in rows) == ("-b" in options)
