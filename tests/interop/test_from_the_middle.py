"""A real exporter's log read from the middle, and again after a kill -9: the same rates as read from the start."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from tools.fleet import Fleet, running

from sapflow.errors import Unreachable
from tests.interop.exporters import a_capture_of
from tests.interop.recordings import Recordings, Row, decoded, of_each, sapflow

WAIT_S = 30


def send(fleet: Fleet, datagrams: list[bytes], directory: Path) -> None:
    """Each is in the log before the next is sent, so that it is an entry of its own."""
    host, port = fleet.doors["udp"].split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.connect((host, int(port)))
        for count, datagram in enumerate(datagrams, 1):
            door.send(datagram)
            expected = len(decoded(a_capture_of(datagrams[:count], directory / f"{count}.pcap")))
            until = time.monotonic() + WAIT_S
            while len(tail(fleet, "earliest")) < expected:
                assert time.monotonic() < until, (count, expected)
                time.sleep(0.02)


def tail(fleet: Fleet, at: object) -> list[Row]:
    words = ("--no-follow", "--scaled", "--names", "--data", fleet.data)
    return [json.loads(line) for line in sapflow("tail", "default", "--at", at, *words).splitlines()]


def compare(fleet: Fleet, whole: list[Row]) -> None:
    for position in range(max(row["_position"] for row in whole)):
        assert tail(fleet, position) == [row for row in whole if row["_position"] > position], position


@of_each("softflowd v9 sampled", "softflowd ipfix sampled")
def test_a_recording_read_from_anywhere_has_the_rates_it_has_from_the_start(
    recordings: Recordings, exporter: str, tmp_path: Path
) -> None:
    with running(tmp_path / "data") as fleet:
        send(fleet, recordings[exporter].datagrams, tmp_path)
        whole = tail(fleet, "earliest")
        rated = [row["_position"] for row in whole if row.get("samplingRate")]
        assert len(set(rated)) > 1
        compare(fleet, whole)
        fleet.kill("phloem-1")
        until = time.monotonic() + WAIT_S
        while (found := again(fleet)) is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert found == whole
        compare(fleet, whole)


def again(fleet: Fleet) -> list[Row] | None:
    """The log, when it is served again."""
    try:
        return tail(fleet, "earliest")
    except Unreachable:
        return None
