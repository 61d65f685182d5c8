"""Children are kept running, whatever becomes of them, and end when their supervisor does."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from sapflow.errors import SapflowError
from sapflow.runtime import supervisor as module
from sapflow.runtime.supervisor import BACKOFF_MOST_S, Child, Supervisor, backoff_s

READY = """echo '{"event": "ready", "addresses": {"door": "127.0.0.1:1"}}'; """
WAIT = "exec sleep 100"


class Kept:
    """A supervisor with one child, and what it told."""

    def __init__(self, script: str, **settings: float) -> None:
        self.child = Child("one", ["/bin/sh", "-c", script])
        self.told: list[dict[str, Any]] = []
        self._news = trio.Event()
        self.supervisor = Supervisor(self._tell, **settings)

    def _tell(self, event: dict[str, Any]) -> None:
        self.told.append(event)
        self._news.set()
        self._news = trio.Event()

    async def until(self, count: int) -> list[str]:
        """The kinds of the first `count` events, once there are so many."""
        with trio.fail_after(30):
            while len(self.told) < count:
                await self._news.wait()
        return [event["event"] for event in self.told[:count]]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.supervisor.keep, self.child)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backoff_s", lambda failures: 0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_ready_with_its_addresses_and_ends_with_its_supervisor() -> None:
    kept = Kept(READY + WAIT)
    async with kept.running():
        assert kept.child.addresses == {"door": "127.0.0.1:1"}
        assert kept.told == [{"event": "started", "name": "one", "pid": kept.child.pid}]
        assert alive(kept.child.pid)
    assert not alive(kept.child.pid)


async def test_a_child_that_dies_is_told_and_started_again() -> None:
    kept = Kept(READY + WAIT)
    async with kept.running():
        before = kept.child.pid
        os.kill(before, signal.SIGKILL)
        assert await kept.until(3) == ["started", "died", "restarted"]
        assert kept.told[1] == {"event": "died", "name": "one", "pid": before, "code": -signal.SIGKILL}
        assert kept.child.pid != before
        assert kept.child.starts == 2


async def test_a_restarted_child_that_hangs_before_it_is_ready_is_killed_and_tried_again(tmp_path: Path) -> None:
    counter = f"echo x >> {tmp_path}/starts; "
    hang_second = f'test "$(wc -l < {tmp_path}/starts)" = 2 && exec sleep 100; '
    kept = Kept(counter + hang_second + READY + WAIT, ready_timeout_s=1.5)
    with capture_logs() as logs:
        async with kept.running():
            os.kill(kept.child.pid, signal.SIGKILL)
            assert await kept.until(4) == ["started", "died", "died", "restarted"]
            hung = kept.told[2]
            assert hung["reason"] == "it was not ready within 1.5 s"
            assert hung["code"] == -signal.SIGKILL
            assert not alive(hung["pid"])
    late = [line for line in logs if line["event"] == "process not ready yet"]
    assert [line["pid"] for line in late] == [hung["pid"]]


async def test_a_command_that_is_not_there_is_said_so() -> None:
    child = Child("one", ["/nonexistent/program"])
    with pytest.raises(SapflowError, match="one cannot be started: No such file or directory"):
        await Supervisor(lambda event: None).keep(child)


async def test_a_child_that_does_not_stop_when_asked_is_killed() -> None:
    kept = Kept("trap '' INT; " + READY + "while :; do sleep 0.05; done", stop_timeout_s=0.3)
    with trio.fail_after(20):
        async with kept.running():
            pid = kept.child.pid
    assert not alive(pid)


def test_the_pause_before_a_start_doubles_with_each_failure_up_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    pauses = [backoff_s(failures) for failures in range(20)]
    assert all(after == min(2 * before, BACKOFF_MOST_S) for before, after in itertools.pairwise(pauses))
    assert pauses[-1] == BACKOFF_MOST_S


async def test_children_that_fail_at_once_wait_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(failures: int) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr(module, "backoff_s", noted)
    kept = Kept(READY)
    async with kept.running():
        await kept.until(6)
    assert asked[:3] == [1, 2, 3]


SUPERVISING = """
import sys, trio
from sapflow.runtime.supervisor import Child, Supervisor
child = Child("one", ["/bin/sh", "-c", sys.argv[1]])
trio.run(Supervisor(lambda event: print(event["pid"], flush=True)).keep, child)
"""


def test_a_childs_standard_input_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    """Also long after: what ends it is no thread that Trio lets go of."""
    script = READY + f"cat; echo gone > {tmp_path}/gone"
    above = subprocess.Popen([sys.executable, "-c", SUPERVISING, script], stdout=subprocess.PIPE)
    assert above.stdout is not None
    pid = int(above.stdout.readline())
    assert alive(pid)
    above.kill()
    above.wait(10)
    above.stdout.close()

    async def until_gone() -> None:
        with trio.fail_after(20):
            while not (tmp_path / "gone").exists():
                await trio.sleep(0.02)

    trio.run(until_gone)


async def test_an_events_receiver_sees_each_child_of_several() -> None:
    told: list[str] = []
    supervisor = Supervisor(lambda event: told.append(event["name"]))
    children = [Child(name, ["/bin/sh", "-c", READY + WAIT]) for name in ("a", "b")]
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for child in children:
                starting.start_soon(partial(nursery.start, supervisor.keep, child))
        assert sorted(told) == ["a", "b"]
        assert set(supervisor.children) == {"a", "b"}
        nursery.cancel_scope.cancel()


def drains(directory: Path) -> str:
    """It writes down what it is told, and says that it is drained."""
    obey = """case "$line" in drain*) echo '{"event": "drained", "clean": true}'; exit;; esac"""
    return READY + f'while read -r line; do echo "$line" >> {directory}/told; {obey}; done'


async def test_a_drained_child_stays_away_until_it_is_restarted(tmp_path: Path) -> None:
    kept = Kept(drains(tmp_path))
    async with kept.running():
        pid = kept.child.pid
        drained = await kept.supervisor.drain("one", 7.5)
        assert drained.pid == pid
        assert drained.clean
        assert (tmp_path / "told").read_text() == "drain 7.5 none\n"
        assert await kept.until(3) == ["started", "draining", "drained"]
        assert not alive(pid)
        assert await kept.supervisor.restart("one", 7.5) is None
        assert kept.child.pid != pid
        assert alive(kept.child.pid)
        assert await kept.until(4) == ["started", "draining", "drained", "restarted"]


async def test_a_restarted_child_is_drained_and_another_when_it_is_back(tmp_path: Path) -> None:
    kept = Kept(drains(tmp_path))
    async with kept.running():
        pid = kept.child.pid
        drained = await kept.supervisor.restart("one", 1)
        assert drained is not None
        assert drained.pid == pid
        assert kept.child.pid != pid
        assert kept.child.state == "running"
        assert await kept.until(4) == ["started", "draining", "drained", "restarted"]


async def test_a_successor_is_ready_before_the_one_that_was_is_drained(tmp_path: Path) -> None:
    kept = Kept(drains(tmp_path))
    kept.child.successor_first = True
    async with kept.running():
        pid = kept.child.pid
        assert await kept.supervisor.restart("one", 1) is not None
        assert await kept.until(4) == ["started", "restarted", "draining", "drained"]
        assert [event["pid"] for event in kept.told[2:]] == [pid, pid]
        with trio.fail_after(20):
            while sorted((tmp_path / "told").read_text().splitlines()) != ["begin", "drain 1 there"]:
                await trio.sleep(0.02)
        assert alive(kept.child.pid)
        # And it is kept as any other.
        os.kill(kept.child.pid, signal.SIGKILL)
        assert await kept.until(6) == ["started", "restarted", "draining", "drained", "died", "restarted"]


async def test_a_successor_that_does_not_start_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    first = f"test -e {tmp_path}/second && exit 4; touch {tmp_path}/second; "
    kept = Kept(first + READY + WAIT)
    kept.child.successor_first = True
    async with kept.running():
        pid = kept.child.pid
        with pytest.raises(SapflowError, match=r"runs on as it was.*it ended with code 4 before it was ready"):
            await kept.supervisor.restart("one", 1)
        assert kept.child.pid == pid
        assert alive(pid)
        assert await kept.until(1) == ["started"]


async def test_one_that_dies_while_its_successor_starts_is_started_anew_and_there_are_not_two(tmp_path: Path) -> None:
    known, all_of_them = tmp_path / "known", tmp_path / "all"
    first = f"echo $$ >> {all_of_them}; if test -e {known}; then "
    first += f"pid=$(cat {known}); rm {known}; kill -9 $pid; sleep 0.5; else echo $$ > {known}; fi; "
    kept = Kept(first + READY + WAIT)
    kept.child.successor_first = True
    async with kept.running():
        with pytest.raises(SapflowError, match="ended before its successor was ready, and is started anew"):
            await kept.supervisor.restart("one", 1)
        assert await kept.until(3) == ["started", "died", "restarted"]
        running = [pid for pid in map(int, all_of_them.read_text().split()) if alive(pid)]
        assert running == [kept.child.pid]


async def test_a_child_that_does_not_end_when_it_is_to_be_drained_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_S", 0.2)
    kept = Kept(READY + WAIT)
    async with kept.running():
        pid = kept.child.pid
        drained = await kept.supervisor.restart("one", 0.1)
        assert drained is not None
        assert not drained.clean
        assert not alive(pid)
        assert await kept.until(4) == ["started", "draining", "died", "restarted"]


async def test_one_that_is_being_drained_is_not_drained_by_another_at_the_same_time() -> None:
    kept = Kept(READY + WAIT)
    async with kept.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kept.supervisor.drain, "one", 60)
            await kept.until(2)
            with pytest.raises(SapflowError, match="is being drained or restarted already"):
                await kept.supervisor.restart("one", 1)
            nursery.cancel_scope.cancel()
        with pytest.raises(SapflowError, match="there is no process 'two'; there are one"):
            await kept.supervisor.drain("two", 1)


async def test_a_socket_that_a_child_is_given_outlives_it(tmp_path: Path) -> None:
    kept = Kept(f'echo "$SAPFLOW_SOCKETS" >> {tmp_path}/given; {READY}{WAIT}')
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept.child.sockets["door"] = listener.fileno()
        async with kept.running():
            os.kill(kept.child.pid, signal.SIGKILL)
            await kept.until(3)
            given = (tmp_path / "given").read_text().splitlines()
            assert given == [f"door={listener.fileno()}"] * 2
            target = os.readlink(f"/proc/{kept.child.pid}/fd/{listener.fileno()}")
            assert target == os.readlink(f"/proc/self/fd/{listener.fileno()}")
