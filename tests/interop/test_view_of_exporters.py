"""One question, asked of every real exporter: the view of flows gives the same answer for what each saw."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.interop.recordings import Recordings, Row, of_each, sapflow
from tests.interop.test_exporters import Flow, metered

BOTH_VERSIONS = (
    "softflowd v9",
    "softflowd ipfix",
    "softflowd ipfix biflow",
    "softflowd ipfix nanoseconds",
    "pmacctd v9",
    "pmacctd ipfix",
    "nfreplay v9",
)


def viewed(capture: Path) -> list[Row]:
    rows = [json.loads(line) for line in sapflow("decode", capture, "--view", "flow", "--scaled").splitlines()]
    return [row for row in rows if row["src_addr"] is not None]


def octets_of(rows: list[Row]) -> Counter[Flow]:
    found: Counter[Flow] = Counter()
    for row in rows:
        assert row["start"] <= row["end"]
        ports = (row["src_port"], row["dst_port"]) if row["proto"] in (6, 17) else (0, 0)
        found[row["src_addr"], row["dst_addr"], row["proto"], *ports] += row["bytes"]
    return +found


@of_each(*BOTH_VERSIONS)
def test_bytes_by_flow_are_those_of_the_packets(recordings: Recordings, exporter: str, tmp_path: Path) -> None:
    rows = viewed(recordings[exporter].capture)
    assert octets_of(rows) == metered(tmp_path / "flows.pcap")[1]
    assert any(row["reverse"] for row in rows) == ("biflow" in exporter)


@of_each("softflowd v5", "pmacctd v5", "nfreplay v5")
def test_bytes_by_flow_of_v5_are_those_of_the_ipv4_packets(
    recordings: Recordings, exporter: str, tmp_path: Path
) -> None:
    assert octets_of(viewed(recordings[exporter].capture)) == metered(tmp_path / "flows.pcap", is_v5=True)[1]


@of_each("softflowd v9 sampled", "softflowd ipfix sampled")
def test_sampling_is_known_from_options_data(recordings: Recordings, exporter: str) -> None:
    rows = viewed(recordings[exporter].capture)
    assert rows
    assert {(row["sampling"], row["scaled_bytes"] - 3 * row["bytes"]) for row in rows} == {(3, 0)}
