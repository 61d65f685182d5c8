"""Child processes kept running: started, watched, started again with back-off, stopped in order.

A child says `{"event": "ready", …}` as its first line on standard output; its log goes to standard error.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import structlog
import trio
from attrs import define, field

from sapflow.errors import SapflowError

log = structlog.get_logger()

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
STEADY_S = 5.0


@define(eq=False)
class Child:
    """One role's process."""

    name: str
    command: list[str]
    pid: int = 0
    starts: int = 0
    addresses: dict[str, str] = field(factory=dict)
    log_place: str = "above"
    _process: trio.Process | None = None

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


class Supervisor:
    """Keeps children alive. `events` is called with each thing that happens to one."""

    def __init__(self, events: Callable[[dict[str, Any]], None]) -> None:
        self.children: dict[str, Child] = {}
        self._events = events
        self._stopping = False

    async def keep(self, child: Child, *, task_status: trio.TaskStatus[None]) -> None:
        """Run a child until cancelled; started when it is ready for the first time.

        Raises SapflowError when it does not become ready the first time.
        """
        self.children[child.name] = child
        failures = 0
        while True:
            began = trio.current_time()
            code = await self._once(child, task_status if child.starts == 0 else None)
            if self._stopping:
                return
            failures = 0 if trio.current_time() - began > STEADY_S else failures + 1
            delay_s = random.uniform(0, min(5.0, 0.05 * 2 ** min(failures, 10)))
            self._events({"event": "died", "name": child.name, "pid": child.pid, "code": code})
            await trio.sleep(delay_s)

    async def _once(self, child: Child, first: trio.TaskStatus[None] | None) -> int:
        process = await trio.lowlevel.open_process(child.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        child._process, child.pid = process, process.pid
        child.starts += 1
        try:
            assert process.stdout is not None
            line = await self._first_line(process)
            if line is None:
                if first is not None:
                    process.kill()
                    await process.wait()
                    raise SapflowError(f"{child.name} did not start; its log ({child.log_place}) says why")
            else:
                child.addresses = line.get("addresses", {})
                event = "started" if child.starts == 1 else "restarted"
                self._events({"event": event, "name": child.name, "pid": child.pid})
                if first is not None:
                    first.started()
            return await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._end(process)

    async def _first_line(self, process: trio.Process) -> dict[str, Any] | None:
        assert process.stdout is not None
        held = b""
        with trio.move_on_after(READY_TIMEOUT_S):
            while b"\n" not in held and (data := await process.stdout.receive_some(4096)):
                held += bytes(data)
            if b"\n" in held:
                found = json.loads(held.split(b"\n")[0])
                assert isinstance(found, dict)
                return found
        return None

    async def _end(self, process: trio.Process) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(STOP_TIMEOUT_S):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()

    def stop(self) -> None:
        """Ask all children to stop; `keep` then returns for each."""
        self._stopping = True
        for child in self.children.values():
            child.terminate()


def role_command(role: str, name: str, config: str) -> list[str]:
    """How a role's process is started."""
    return [sys.executable, "-m", "sapflow", role, "--config", config, "--name", name]
