"""`decode` and `send` on every kind of file."""

import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sapflow.cli import cli
from sapflow.errors import SapflowError
from sapflow.flows.reference import reference_work
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports
from tests.unit.flows.test_netflow import FLOW, flow, flowset, v5, v5_record, v9
from tests.unit.flows.test_sflow import ethernet, ipv4, part, raw, sample, sflow, tcp

TCP4 = raw(ethernet(ipv4(tcp()), 0x0800))


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def a_pcap(*packets: tuple[int, int, bytes]) -> bytes:
    """UDP packets on raw IP: (source port, second, payload)."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    for port, second, payload in packets:
        udp = struct.pack("!HHHH", port, 2055, 8 + len(payload), 0) + payload
        addresses = b"\xc0\x00\x02\x01\xc0\x00\x02\x02"
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + addresses + udp
        data += struct.pack("<IIII", 1_750_000_000 + second, 0, len(packet), len(packet)) + packet
    return data


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "flows.pcap"
    path.write_bytes(
        a_pcap(
            (1, 0, v5(v5_record(80), v5_record(443))),
            (2, 0, v9(flowset(300, flow(53)))),
            (3, 1, b"no flows at all"),
            (2, 1, v9(flowset(0, FLOW), flowset(300, flow(54)), number=1)),
            (1, 1, v5(v5_record(22), number=5)),
            (4, 2, ipfix(define(PORTS), ports(7, 8))),
            (4, 2, ipfix(ports(9), number=2)[:-1]),
        )
    )
    return path


def test_a_capture_is_decoded_exporter_by_exporter(capture: Path) -> None:
    result = run("decode", capture)
    assert result.exit_code == 1
    assert isinstance(result.exception, SapflowError)
    assert "192.0.2.1:4: 1 datagram(s), or parts of them, dropped" in str(result.exception)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    by_exporter: dict[str, list[int]] = {}
    for row in found:
        port = row.get("destinationTransportPort") or row["sourceTransportPort"]
        by_exporter.setdefault(row["_exporter"], []).append(port)
    assert by_exporter == {"192.0.2.1:1": [80, 443, 22], "192.0.2.1:2": [53, 54], "192.0.2.1:4": [7, 8]}


def test_stats_say_what_each_exporter_and_domain_brought_and_lost(capture: Path) -> None:
    result = run("decode", capture, "--stats")
    found = {line.get("exporter"): line for line in map(json.loads, result.stdout.splitlines())}
    assert (found["192.0.2.1:1"]["records"], found["192.0.2.1:1"]["lost"]) == (3, 3)
    assert found["192.0.2.1:2"]["domains"]["9"]["records"] == 2
    assert found["192.0.2.1:4"]["errors"] == {"length": 1}
    assert found[None]["skipped"] == {"other_udp": 1}


def test_templates_are_told_once_each(capture: Path) -> None:
    found = [json.loads(line) for line in run("decode", capture, "--templates").stdout.splitlines()]
    assert [(line["exporter"], line["template"]) for line in found] == [
        ("192.0.2.1:1", 256),
        ("192.0.2.1:2", 300),
        ("192.0.2.1:4", 256),
    ]
    assert found[2]["fields"] == [{"name": "sourceTransportPort", "length": 2}]


def test_raw_datagrams_ipfix_files_and_standard_input_are_decoded(tmp_path: Path) -> None:
    raw = tmp_path / "v5"
    raw.write_bytes(v5(v5_record(1), v5_record(2)) + v5(v5_record(3), number=2))
    assert [row["destinationTransportPort"] for row in lines(run("decode", raw))] == [1, 2, 3]
    assert len(lines(run("decode", "-", stdin=reference_work(3)))) == 72


def test_sflow_is_decoded_from_a_raw_datagram_and_from_a_capture(tmp_path: Path) -> None:
    counters = part(2, bytes(80))
    datagrams = [sflow(sample(TCP4), counters, number=number) for number in (1, 2, 5)]
    raw_file, capture_file = tmp_path / "sflow", tmp_path / "sflow.pcap"
    raw_file.write_bytes(datagrams[0])
    capture_file.write_bytes(a_pcap(*((6, second, datagram) for second, datagram in enumerate(datagrams))))
    assert [row["destinationTransportPort"] for row in lines(run("decode", raw_file))] == [443]
    assert len(lines(run("decode", capture_file))) == 3
    (stats,) = lines(run("decode", capture_file, "--stats"))
    assert {name: stats[name] for name in ("protocol", "datagrams", "records", "lost", "skipped", "errors")} == {
        "protocol": "sflow",
        "datagrams": 3,
        "records": 3,
        "lost": 2,
        "skipped": {"counter_sample": 3},
        "errors": {},
    }
    assert stats["domains"]["9"]["templates"] == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        door.settimeout(5)
        run("send", capture_file, "--to", f"udp://127.0.0.1:{door.getsockname()[1]}")
        assert [door.recv(65_535) for _ in datagrams] == datagrams
    (template,) = lines(run("decode", capture_file, "--templates"))
    assert {"name": "samplingInterval", "length": 4} in template["fields"]


@pytest.mark.parametrize("name", ["flows.pcap", "work.ipfix", "v5"])
def test_a_file_that_is_cut_off_is_said_to_be_and_what_came_before_is_decoded(
    tmp_path: Path, capture: Path, name: str
) -> None:
    (tmp_path / "work.ipfix").write_bytes(reference_work(3))
    (tmp_path / "v5").write_bytes(v5(v5_record(1)) + v5(v5_record(2)))
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / name).read_bytes()[:-5])
    result = run("decode", cut)
    assert result.exit_code == 1
    assert str(cut) in str(result.exception)
    assert len(result.stdout.splitlines()) >= 1


def test_what_is_no_flow_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert f"{path}: no IPFIX File, capture or flow datagram" in str(run("decode", path).exception)
    path.write_bytes(b"")
    assert "begins with nothing" in str(run("decode", path).exception)


def test_a_capture_is_played_as_datagrams_as_they_were(capture: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        door.settimeout(5)
        url = f"udp://127.0.0.1:{door.getsockname()[1]}"
        result = run("send", capture, "--to", url, "--speed", "100", "--json")
        assert lines(result)[0]["messages"] == 6
        assert door.recv(65_535) == v5(v5_record(80), v5_record(443))
        assert door.recv(65_535) == v9(flowset(300, flow(53)))


def test_messages_of_an_ipfix_file_are_played_one_in_each_datagram(tmp_path: Path) -> None:
    path = tmp_path / "work.ipfix"
    work = reference_work(3)
    path.write_bytes(work)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", 0))
        door.settimeout(5)
        url = f"udp://127.0.0.1:{door.getsockname()[1]}"
        assert lines(run("send", path, "--to", url, "--json"))[0] == {"records": 72, "messages": 4, "bytes": len(work)}
        assert b"".join(door.recv(65_535) for _ in range(4)) == work


def test_a_door_that_nobody_is_behind_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "work.ipfix"
    path.write_bytes(reference_work(50))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{unused.getsockname()[1]}"
    assert "is the door there" in str(run("send", path, "--to", url).exception)


@pytest.mark.parametrize(
    "arguments", [("--to", "udp://x"), ("--to", "link://h"), ("--to", "udp://h:1", "--speed", "0")]
)
def test_wrong_use_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "work.ipfix"
    path.write_bytes(reference_work(1))
    assert run("send", path, *arguments).exit_code == 2
