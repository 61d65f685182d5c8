"""Real exporters into the real fleet, by every door: what is stored is what they sent, and others read it too."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import trustme
from tools.fleet import Fleet, running

from tests.interop import ipfixdump
from tests.interop.exporters import EXPORTERS, Command, fixbuf_exporter, messages_of, program
from tests.interop.recordings import Recordings, Row, decoded, sapflow, undescribed
from tests.peers import needs

UDP = tuple(name for name, exporter in EXPORTERS.items() if not exporter.is_tcp and not exporter.needs_root)
PEERS = ("softflowd", "pmacctd", "nfreplay", "nfcapd", "fixbuf_exporter", "openssl", "ipfixDump")
SOFTFLOWD_TCP = "softflowd ipfix tcp"
LISTS = 20


def with_tls(directory: Path) -> tuple[Path, Path]:
    """A fleet's configuration with a TLS door, and who signed its certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "door.pem")
    config = directory / "fleet.toml"
    config.write_text(f'[balancer]\nipfix_tls = "127.0.0.1:0"\ntls_certificate = "{directory}/door.pem"\n')
    return config, directory / "authority.pem"


def export(command: Command, directory: Path, door: str) -> None:
    """Let an exporter run against a door, to its end."""
    host, port = door.split(":")
    assert host == "127.0.0.1"
    directory.mkdir(exist_ok=True)
    subprocess.run(command(directory, int(port)), check=True, timeout=60, capture_output=True)


def export_in_tls(file: Path, door: str, authority: Path, version: str) -> None:
    """An exporter's bytes in the TLS of OpenSSL: libfixbuf is packaged without any."""
    line = [program("openssl"), "s_client", "-connect", door, "-CAfile", str(authority), "-verify_return_error"]
    with file.open("rb") as data:
        subprocess.run(
            [*line, "-quiet", "-no_ign_eof", version], stdin=data, check=True, timeout=60, capture_output=True
        )


def values(rows: list[Row]) -> Counter[str]:
    """Records without what tells where they stand, and which run of softflowd sent them."""
    return Counter(
        json.dumps({name: value for name, value in row.items() if name[0] != "_" and name != "meteringProcessId"})
        for row in rows
    )


def domain_of(message: bytes) -> int:
    """libfixbuf is given one domain after the other.

    Between two messages of different domains it looks no template up when both messages use the same id, and reads the
    second by the template of the first.
    """
    return int.from_bytes(message[12:16], "big")


def a_fixbuf_file(path: Path) -> Path:
    subprocess.run([program("fixbuf_exporter"), "file", str(path), str(LISTS)], check=True, timeout=60)
    return path


def stored(fleet: Fleet, expected: int) -> list[Row]:
    """The org's records, when as many as expected are there."""
    until = time.monotonic() + 30
    while _stored_records(fleet.status()) < expected and time.monotonic() < until:
        time.sleep(0.1)
    return [json.loads(line) for line in tail(fleet, "jsonl").splitlines()]


def _stored_records(status: dict[str, Any]) -> int:
    found: int = status["phloem-1"].get("counts", {}).get("commit", {}).get("stored_records", 0)
    return found


def tail(fleet: Fleet, format_: str) -> bytes:
    words = ("tail", "default", "--at", "earliest", "--no-follow", "--data", fleet.data, "--format", format_)
    return sapflow(*words)


@needs(*PEERS)
def test_what_a_fleet_stores_of_every_exporter_is_what_it_sent_and_ipfixdump_reads_it_too(
    recordings: Recordings, tmp_path: Path
) -> None:
    recordings.begin(*UDP, SOFTFLOWD_TCP)
    config, authority = with_tls(tmp_path)
    file = a_fixbuf_file(tmp_path / "fixbuf.ipfix")
    expected: list[Row] = []
    with running(tmp_path / "fleet", collectors=1, config=config) as fleet:
        for name in UDP:
            sapflow("send", recordings[name].capture, "--to", f"udp://{fleet.doors['udp']}")
            expected += recordings[name].rows
        export(EXPORTERS[SOFTFLOWD_TCP].command, tmp_path / "softflowd", fleet.doors["ipfix_tcp"])
        expected += recordings[SOFTFLOWD_TCP].rows
        export(fixbuf_exporter(LISTS), tmp_path / "fixbuf", fleet.doors["ipfix_tcp"])
        expected += decoded(file)
        for version in ("-tls1_2", "-tls1_3"):
            export_in_tls(file, fleet.doors["ipfix_tls"], authority, version)
            expected += decoded(file)
        sapflow("send", file, "--to", f"ipfix+tls://{fleet.doors['ipfix_tls']}", "--ca", authority)
        expected += decoded(file)
        rows = stored(fleet, len(expected))
        (tmp_path / "stored.ipfix").write_bytes(b"".join(sorted(messages_of(tail(fleet, "ipfix")), key=domain_of)))
        counts = fleet.status()["balancer"]["counts"]
    assert values(rows) == values(expected)
    udp, sessions = counts["udp"], counts["intake"]
    assert (udp["malformed"], udp["unknown"], udp["lost_units"], udp["kernel_drops"]) == (0, 0, 0, 0)
    assert (sessions["malformed"], sessions["lost_records"], sessions["undecodable_sets"]) == (0, 0, 0)
    assert (counts["tls_door"]["accepted"], counts["tls_door"]["refused"]) == (3, 0)
    written = undescribed(tmp_path / "stored.ipfix")
    assert len(written) == len(rows)
    assert ipfixdump.records(tmp_path / "stored.ipfix") == [ipfixdump.as_printed(row) for row in written]
