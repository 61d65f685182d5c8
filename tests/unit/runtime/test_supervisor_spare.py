"""A child that dies is the spare from then on, if there is one, and a process started anew if not."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sapflow.runtime import supervisor as module
from sapflow.runtime.spare import Spare
from sapflow.runtime.supervisor import Child, Supervisor

SPARE = """
import os, socket, sys
from sapflow.runtime.spare import await_order
order = await_order(socket.socket(fileno=int(sys.argv[-1])))
if order is not None:
    os.execv("/bin/sh", ["/bin/sh", "-c", *order.arguments])
"""


class Kept:
    """A supervisor with one child, which notes how it was started, and a spare."""

    def __init__(self, directory: Path) -> None:
        self.notes = directory / "notes"
        obey = """case "$line" in drain*) echo '{"event": "drained", "clean": true}'; exit;; esac"""
        script = f"""echo "$@" >> {self.notes}; echo '{{"event": "ready"}}'; while read -r line; do {obey}; done"""
        self.spare = Spare([sys.executable, "-c", SPARE], pause_s=0.01)
        self.child = Child("one", ["/bin/sh", "-c", script, "sh", "anew"], [script, "sh", "spare"])
        self.told: list[dict[str, Any]] = []
        self.supervisor = Supervisor(self.told.append, spare=self.spare)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.supervisor.keep, self.child)
            nursery.start_soon(self.spare.run)
            yield
            nursery.cancel_scope.cancel()

    async def loaded(self) -> int:
        with trio.fail_after(30):
            while not self.spare.pid:
                await trio.sleep(0.01)
        return self.spare.pid

    async def killed(self) -> int:
        """Have it die: its process id when it is back."""
        starts = self.child.starts
        os.kill(self.child.pid, signal.SIGKILL)
        with trio.fail_after(30):
            while self.child.starts == starts:
                await trio.sleep(0.01)
        return self.child.pid

    def started(self) -> list[str]:
        return self.notes.read_text().splitlines()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(module, "backoff_s", lambda failures: 0.01)
    monkeypatch.setattr(module, "STEADY_S", 60.0)
    return Kept(tmp_path)


async def test_a_child_that_dies_is_the_spare_and_is_kept_as_any_other(kept: Kept) -> None:
    async with kept.running():
        first, spare = kept.child.pid, await kept.loaded()
        assert await kept.killed() == spare
        assert kept.told[-2:] == [
            {"event": "died", "name": "one", "pid": first, "code": -signal.SIGKILL},
            {"event": "restarted", "name": "one", "pid": spare},
        ]
        drained = await kept.supervisor.drain("one", 5)
        assert drained.pid == spare
        assert drained.clean
    assert kept.started() == ["anew", "spare"]


async def test_a_child_that_dies_is_started_anew_when_the_spare_is_dead(kept: Kept) -> None:
    async with kept.running():
        os.kill(await kept.loaded(), signal.SIGKILL)
        await kept.killed()
    assert kept.started() == ["anew", "anew"]


async def test_a_child_that_fails_again_and_again_leaves_the_spare_to_others(kept: Kept) -> None:
    async with kept.running():
        for _ in range(3):
            await kept.loaded()
            await kept.killed()
    assert kept.started() == ["anew", "spare", "anew", "anew"]


async def test_a_restarted_child_is_the_spare_and_so_is_a_successor(kept: Kept) -> None:
    async with kept.running():
        await kept.loaded()
        await kept.supervisor.restart("one", 5)
        kept.child.successor_first = True
        await kept.loaded()
        await kept.supervisor.restart("one", 5)
    assert kept.started() == ["anew", "spare", "spare --successor"]


async def test_a_supervisor_that_ends_leaves_neither_child_nor_spare(kept: Kept) -> None:
    async with kept.running():
        pids = [kept.child.pid, await kept.loaded()]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
