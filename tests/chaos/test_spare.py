"""The spare that `sapflow up` keeps, with real processes."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.fleet import Fleet, running

import sapflow
from sapflow.cli.fleet_control import ask_fleet
from sapflow.cli.spare import IDLE


def until(what: Any, seconds: float = 30) -> Any:
    """What `what()` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def title(pid: int) -> str:
    """As `ps` shows it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def up_of(fleet: Fleet) -> int:
    found: int = json.loads((fleet.data / "fleet.json").read_text())["up"]
    return found


def children_of(parent: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            yield int(path.parent.name)


def spare_of(fleet: Fleet) -> int:
    """The one that has loaded and waits; 0 when there is none."""
    return next((pid for pid in children_of(up_of(fleet)) if title(pid) == IDLE), 0)


def is_back_as(fleet: Fleet, name: str, pid: int) -> bool:
    return fleet.processes().get(name) == pid and "error" not in fleet.status()[name]


def events(fleet: Fleet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fleet.data / "up.out").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running(tmp_path_factory.mktemp("spare"), collectors=1) as running_fleet:
        yield running_fleet


@pytest.mark.parametrize("name", ["balancer", "collector-1", "phloem-1"])
def test_a_role_that_is_killed_is_the_spare_from_then_on_and_another_is_loaded(fleet: Fleet, name: str) -> None:
    before, spare = fleet.processes(), until(lambda: spare_of(fleet))
    fleet.kill(name)
    until(lambda: is_back_as(fleet, name, spare))
    assert title(spare).startswith(f"sapflow {name.partition('-')[0]} --config {fleet.data}")
    assert f"--name {name}" in title(spare)
    assert until(lambda: spare_of(fleet)) != spare
    assert fleet.processes() == {**before, name: spare}
    log = Path(f"/proc/{before['balancer' if name != 'balancer' else 'collector-1']}/fd/2")
    assert Path(f"/proc/{spare}/fd/2").readlink() == log.readlink()


def test_a_spare_that_is_killed_is_replaced_and_the_fleet_does_not_notice(fleet: Fleet) -> None:
    spare, before, told = until(lambda: spare_of(fleet)), fleet.processes(), events(fleet)
    os.kill(spare, signal.SIGKILL)
    until(lambda: spare_of(fleet) not in (0, spare))
    assert fleet.processes() == before
    assert events(fleet) == told


def test_a_role_that_is_killed_while_there_is_no_spare_is_started_anew(fleet: Fleet) -> None:
    spare = until(lambda: spare_of(fleet))
    before = fleet.processes()["collector-1"]
    os.kill(spare, signal.SIGSTOP)
    fleet.kill("collector-1")
    after = until(lambda: fleet.processes()["collector-1"] != before and fleet.processes()["collector-1"])
    until(lambda: is_back_as(fleet, "collector-1", after))
    assert after != spare
    assert "-m sapflow collector" in title(after)
    assert not alive(spare)


def test_a_restarted_role_is_the_spare_too_and_has_handed_on_all(fleet: Fleet) -> None:
    for name in ("phloem-1", "balancer"):
        spare = until(lambda: spare_of(fleet))
        os.kill(spare, signal.SIGINT)  # as of Ctrl-C, which is for its supervisor
        found = ask_fleet(str(fleet.data), "restart", name, 20.0)
        assert found["clean"], found
        assert is_back_as(fleet, name, spare)


def test_a_spare_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        spare, up = until(lambda: spare_of(fleet)), up_of(fleet)
        os.kill(up, signal.SIGKILL)
        os.waitpid(up, 0)
        assert until(lambda: not alive(spare))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_the_fleet_ends_it_and_the_spare_with_it(tmp_path: Path, number: int) -> None:
    """As Ctrl-C in a terminal is, and `systemctl stop`."""
    with running(tmp_path, collectors=1) as fleet:
        spare, up = until(lambda: spare_of(fleet)), up_of(fleet)
        os.killpg(up, number)
        until(lambda: not alive(spare))
        assert os.waitpid(up, 0)[1] == 0


def test_where_another_version_was_installed_since_a_spare_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "src"
    shutil.copytree(Path(sapflow.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PYTHONPATH", str(copy))
    with running(tmp_path / "data", collectors=1) as fleet:
        spare = until(lambda: spare_of(fleet))
        with (copy / "collector" / "sessions.py").open("a") as file:
            file.write("\nprint('this is the new version', file=__import__('sys').stderr)\n")
        fleet.kill("collector-1")
        until(lambda: is_back_as(fleet, "collector-1", spare))
        assert "-m sapflow collector" in title(spare)
        assert (fleet.data / "up.log").read_text().count("this is the new version") == 1


def test_no_spare_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    config = tmp_path / "fleet.conf"
    config.write_text("[fleet]\nspare = false\n")
    with running(tmp_path / "data", collectors=1, config=config) as fleet:
        before = fleet.processes()["collector-1"]
        fleet.kill("collector-1")
        until(lambda: fleet.processes()["collector-1"] != before)
        assert sorted(children_of(up_of(fleet))) == sorted(fleet.processes().values())
