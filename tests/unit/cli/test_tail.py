"""`sapflow tail` and `orgs`, as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sapflow.entry import LogEntry
from sapflow.orgs import OrgTable
from tests.unit.client.doors import STREAM, Door, a_door
from tests.unit.flows.flows_made import messages

SAPFLOW = [sys.executable, "-m", "sapflow"]


def sapflow(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [*SAPFLOW, *map(str, words)], timeout=60, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert found.returncode == code, (found.returncode, found.stderr)
    assert "Traceback" not in found.stderr
    return found


def arguments(door: Door, tmp_path: Path, *more: object) -> list[object]:
    (tmp_path / "token").write_text("a-token\n")
    return ["tail", "acme", "--to", door.url, "--token-file", tmp_path / "token", *more]


def positions(text: str) -> list[int]:
    return [json.loads(line)["_position"] for line in text.splitlines()]


@pytest.mark.parametrize("limit", [7, 24, 30, 100])
def test_as_many_records_as_wanted_are_in_an_ipfix_file(limit: int, tmp_path: Path) -> None:
    with a_door(tmp_path, batches=3) as door:
        file = tmp_path / "out.ipfix"
        words = ("--at", "earliest", "--no-follow", "--format", "ipfix", "--limit", limit, "-o", file)
        sapflow(*arguments(door, tmp_path, *words))
        assert len(sapflow("decode", file).stdout.splitlines()) == min(limit, 72)


def test_a_door_that_comes_back_is_read_on_from_where_it_went_away(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=2) as door:
        process = subprocess.Popen(
            [*SAPFLOW, *map(str, arguments(door, tmp_path, "--at", "earliest", "--limit", 5 * 24))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            first = [process.stdout.readline() for _ in range(48)]
            door.stop()
            time.sleep(0.5)
            door.start()
            door.store(3, 5)
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert process.returncode == 0
    assert positions("".join(first) + rest) == [number for number in range(1, 6) for _ in range(24)]
    assert errors.count("trying again") == 1
    assert "back; reading on after position 2" in errors


def test_ctrl_c_is_how_following_ends(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=1) as door:
        process = subprocess.Popen(
            [*SAPFLOW, *map(str, arguments(door, tmp_path, "--at", "earliest"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with a_door(tmp_path, batches=2) as door:
        no_follow = arguments(door, tmp_path, "--at", "earliest", "--no-follow")
        assert "No space left on device" in sapflow(*no_follow, "-o", "/dev/full", code=1).stderr
        assert "beyond the log's end" in sapflow(*arguments(door, tmp_path, "--no-follow", "--at", 10**25)).stderr
        wrong = ("tail", "acme", "--to", door.url, "--token-file", tmp_path / "binary")
        assert "is no text" in sapflow(*wrong, code=1).stderr
    assert "cannot be reached" in sapflow(*arguments(door, tmp_path), code=1).stderr
    (tmp_path / "f.toml").write_bytes(b"\xff\xfe")
    assert "f.toml: not TOML" in sapflow("config", "check", tmp_path / "f.toml", code=1).stderr


def test_a_reader_that_has_had_enough_ends_the_command_without_a_word(tmp_path: Path) -> None:
    with a_door(tmp_path, batches=200) as door:
        command = " ".join(map(str, [*SAPFLOW, *arguments(door, tmp_path, "--at", "earliest", "--no-follow")]))
        found = subprocess.run(
            ["/bin/sh", "-c", f"{command} | head -n 2"], timeout=60, capture_output=True, text=True, check=True
        )
    assert len(found.stdout.splitlines()) == 2
    assert found.stderr == ""


def test_a_link_to_nobody_is_given_up(tmp_path: Path) -> None:
    with a_door(tmp_path) as door:
        url = door.url
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "work").write_bytes(b"\x00\x0a\x00\x10" + bytes(12))
    began = time.monotonic()
    found = sapflow("send", tmp_path / "work", "--to", url, "--token-file", tmp_path / "token", code=1)
    assert "no link within 10 s" in found.stderr
    assert time.monotonic() - began < 40
    for bad in ("ipfix+tcp://127.0.0.1:99999", "udp://[::1]:x", "link://127.0.0.1:99999"):
        assert "is not a" in sapflow("send", tmp_path / "work", "--to", bad, code=2).stderr


def test_orgs_are_added_listed_given_tokens_and_removed(tmp_path: Path) -> None:
    data = ("--data", tmp_path)
    assert "no orgs yet" in sapflow("orgs", "list", *data).stderr
    token = sapflow("orgs", "add", "acme", *data).stdout.strip()
    assert OrgTable(tmp_path / "orgs.json").authenticate(token) == "acme"
    assert "exists already" in sapflow("orgs", "add", "acme", *data, code=1).stderr
    assert "is no org's name" in sapflow("orgs", "add", "Acme!", *data, code=1).stderr
    second = sapflow("orgs", "token", "acme", *data).stdout.strip()
    assert second != token
    listed = json.loads(sapflow("orgs", "list", "--json", *data).stdout)
    assert listed == {"orgs": [{"org": "acme", "tokens": 2}]}
    assert token not in (tmp_path / "orgs.json").read_text()
    assert "2 token(s)" in sapflow("orgs", "token", "acme", "--revoke", *data).stdout
    assert OrgTable(tmp_path / "orgs.json").authenticate(token) is None
    sapflow("orgs", "remove", "acme", *data)
    assert "no org 'acme'" in sapflow("orgs", "remove", "acme", *data, code=1).stderr
    assert sapflow("orgs", "nosuch", code=2).stderr


@pytest.mark.parametrize("group", [(), ("--group", "billing")])
def test_rates_and_names_that_were_told_before_are_known_to_a_tail_that_begins_behind(
    group: tuple[str, ...], tmp_path: Path
) -> None:
    with a_door(tmp_path) as door:
        told = messages({"samplerId": 1, "samplerRandomInterval": 100}, scopes=1, template=301)
        told += messages({"lineCardId": 1, "ingressInterface": 7, "interfaceName": "eth0"}, scopes=1)
        flow = messages({"ingressInterface": 7, "samplerId": 1, "octetDeltaCount": 5}, template=302)
        entries = [
            LogEntry(STREAM, seq, "192.0.2.1:9", seq, 1, 1, data, tells=seq == 1)
            for seq, data in ((1, told), (2, flow))
        ]
        door.engine.append([("acme", entry) for entry in entries])
        words = (*group, "--at", 1, "--no-follow", "--scaled", "--names")
        found = sapflow(
            *arguments(
                door, tmp_path, *words, "--fields", "_position,samplingRate,scaledOctetDeltaCount,ingressInterfaceName"
            )
        ).stdout
    assert json.loads(found) == {
        "_position": 2,
        "scaledOctetDeltaCount": 500,
        "ingressInterfaceName": "eth0",
        "samplingRate": 100.0,
    }
