"""`decode` on files with sets that cannot be read: their neighbours come out, and what is left out is named."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from tests.unit.cli.test_files import run

LOOSE = make_template(300, [(0, 82, 65_535)])
FILE = make_message(make_set(2, LOOSE.raw) + make_set(300, b"\x01a") + make_set(300, b"\x09") + make_set(300, b"\x01b"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flows.ipfix"
    # No end in sight: of a file all is read that can be, however much cannot.
    path.write_bytes(
        FILE + make_message(make_set(300, b"\x09")) * 9 + make_message(make_set(300, b"\x01c"), sequence=2)
    )
    return path


def test_a_set_that_cannot_be_read_costs_itself_and_is_named_at_the_end(file: Path) -> None:
    result = run("decode", file)
    assert [json.loads(line)["interfaceName"] for line in result.stdout.splitlines()] == ["a", "b", "c"]
    assert result.exit_code == 1
    assert str(result.exception) == f"{file}: 10 set(s) left out that cannot be read: {{'record': 10}}"


def test_stats_have_what_was_left_out_by_reason(file: Path) -> None:
    (stats,) = [json.loads(line) for line in run("decode", "--stats", file).stdout.splitlines()]
    assert (stats["records"], stats["errors"]) == (3, {"record": 10})


def test_no_more_is_read_of_what_is_nothing_of_ours_than_tells_so() -> None:
    with Path("/dev/zero").open("rb") as endless:
        command = [sys.executable, "-m", "sapflow", "decode", "-"]
        done = subprocess.run(command, stdin=endless, capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    assert b"no IPFIX File, capture or flow datagram: it begins with 00000000" in done.stderr


def test_datagrams_whose_ends_nothing_tells_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.netflow9"
    path.write_bytes(b"\0\x09" + bytes(70_000))
    result = run("decode", path)
    assert "more than one datagram of netflow9" in str(result.exception)


def test_netflow_v5_is_read_datagram_by_datagram(tmp_path: Path) -> None:
    path = tmp_path / "many.netflow5"
    one = struct.pack("!HHIIIIBBH", 5, 1, 0, 1_750_000_000, 0, 0, 0, 0, 0) + bytes(48)
    path.write_bytes(one * 2_000)
    assert len(run("decode", path).stdout.splitlines()) == 2_000
