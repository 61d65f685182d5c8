"""`sapflow up` on a machine where things go wrong: a full disk, its own death, a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tools.fleet import running


def sapflow(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sapflow", *arguments]
    return subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)


def until(what: Any, seconds: float = 30) -> Any:
    """What `what()` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def fill_up(disk: Path) -> None:
    """Take all the room, in a file `fill`."""
    with (disk / "fill").open("wb", buffering=0) as fill, suppress(OSError):
        while True:
            fill.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_child_that_dies_on_a_full_disk_is_started_again_and_the_fleet_goes_on(small_disk: Path) -> None:
    with running(small_disk, collectors=1) as fleet:
        before = fleet.processes()

        def events(kind: str) -> list[dict[str, Any]]:
            lines = [line for line in (small_disk / "up.out").read_text().splitlines() if line.endswith("}")]
            return [event for event in map(json.loads, lines) if event["event"] == kind]

        # Room for the lines that `up` says here, in the blocks that they have already; none for another file.
        with (small_disk / "up.out").open("ab") as room:
            room.write(b"\n" * 100)
        fill_up(small_disk)
        os.kill(before["collector-1"], signal.SIGKILL)
        told = until(lambda: events("fleet file not written"))
        assert told[0]["reason"] == "No space left on device"
        assert until(lambda: events("restarted"))[0]["name"] == "collector-1"
        assert alive(before["balancer"])
        assert alive(before["phloem-1"])
        (small_disk / "fill").unlink()
        until(lambda: fleet.processes()["collector-1"] == events("restarted")[-1]["pid"])
        assert len(events("fleet file not written")) == 1
    assert sapflow("status", "--data", str(small_disk)).returncode == 1


def test_children_end_when_up_is_killed_and_another_can_start_at_once(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        children = list(fleet.processes().values())
        up = json.loads((tmp_path / "fleet.json").read_text())["up"]
        os.kill(up, signal.SIGKILL)
        os.waitpid(up, 0)
        until(lambda: not any(map(alive, children)))
        found = sapflow("status", "--data", str(tmp_path))
        assert found.returncode == 1
        assert "no fleet runs in" in found.stderr
        assert "was killed" in found.stderr
    with running(tmp_path, collectors=1) as fleet:
        assert len(fleet.processes()) == 3


TOOL = """
import sys, time
from pathlib import Path
from tools.fleet import running
with running(Path(sys.argv[1]), collectors=1) as fleet:
    print(*fleet.processes().values(), flush=True)
    time.sleep(100)
"""


def test_a_fleet_that_a_tool_started_ends_when_the_tool_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TOOL, str(tmp_path)], stdout=subprocess.PIPE) as tool:
        assert tool.stdout is not None
        children = [int(pid) for pid in tool.stdout.readline().split()]
        assert len(children) == 3
        tool.kill()
    until(lambda: not any(map(alive, children)))
    until(lambda: not (tmp_path / "fleet.json").exists())


def test_after_a_clean_stop_status_says_that_no_fleet_runs(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1):
        ready = json.loads((tmp_path / "up.out").read_text().splitlines()[0])
        assert ready["console"] is None
        assert (tmp_path / "fleet.json").exists()
    assert not (tmp_path / "fleet.json").exists()
    found = sapflow("status", "--data", str(tmp_path))
    assert found.returncode == 1
    assert found.stderr.startswith(f"sapflow: no fleet runs in {tmp_path}; start one with 'sapflow up --data")


def test_a_source_bound_to_an_org_that_does_not_exist_is_told_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "fleet.conf"
    config.write_text('[balancer]\nsources = [{ prefix = "127.0.0.0/8", org = "acme" }]\n')
    with running(tmp_path / "data", collectors=1, config=config):
        said = [json.loads(line) for line in (tmp_path / "data" / "up.log").read_text().splitlines() if line[0] == "{"]
    warning = next(line for line in said if line["event"] == "source without org")
    assert (warning["level"], warning["org"]) == ("warning", "acme")
    assert "sapflow orgs add acme" in warning["advice"]


def test_a_second_signal_while_it_stops_leaves_nothing_half_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sapflow", "up", "--ephemeral", "--json", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as up:
        assert up.stdout is not None
        children = json.loads(up.stdout.readline())["processes"].values()
        # One that does not react is what a stop waits for.
        slow = next(iter(children))
        os.kill(slow, signal.SIGSTOP)
        up.send_signal(signal.SIGTERM)
        until(lambda: sum(map(alive, children)) == 1)
        up.send_signal(signal.SIGINT)
        up.send_signal(signal.SIGTERM)
        os.kill(slow, signal.SIGCONT)
        assert up.wait(30) == 0
    assert not any(map(alive, children))
    assert not (tmp_path / "fleet.json").exists()
