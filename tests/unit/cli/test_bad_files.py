"""`decode` on files with sets that cannot be read: their neighbours come out, and what is left out is named."""

import json
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
