"""Child processes kept running: started, watched, started again with back-off, stopped in order.

A child says `{"event": "ready", …}` as its first line on standard output; its log goes to standard error. Its standard
input is a pipe that nothing is written to: it ends when this process does, however it does, and a child that was told
`--supervised` then ends too. (The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that started the child, and
Trio starts processes in threads that come and go.)
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
from attrs import define, field, frozen

from sapflow.errors import SapflowError

log = structlog.get_logger()

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
STEADY_S = 5.0
BACKOFF_MOST_S = 5.0
MAX_LINE_BYTES = 64 << 10


@define(eq=False)
class Child:
    """One role's process."""

    name: str
    command: list[str]
    pid: int = 0
    starts: int = 0
    addresses: dict[str, str] = field(factory=dict)
    log_place: str = "above"


@frozen
class _End:
    """How a child's process ended; `reason` is there when it was ended here."""

    code: int
    reason: str | None = None


class Supervisor:
    """Keeps children alive. `events` is called with each thing that happens to one."""

    def __init__(
        self,
        events: Callable[[dict[str, Any]], None],
        *,
        ready_timeout_s: float = READY_TIMEOUT_S,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._events = events
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s

    async def keep(self, child: Child, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a child until cancelled; started when it is ready for the first time.

        Raises SapflowError when it does not become ready the first time.
        """
        self.children[child.name] = child
        failures = 0
        while True:
            began = trio.current_time()
            end = await self._once(child, task_status)
            failures = 0 if trio.current_time() - began > STEADY_S else failures + 1
            why = {} if end.reason is None else {"reason": end.reason}
            self._events({"event": "died", "name": child.name, "pid": child.pid, "code": end.code, **why})
            await trio.sleep(backoff_s(failures))

    async def _once(self, child: Child, task_status: trio.TaskStatus[None]) -> _End:
        first = child.starts == 0
        try:
            process = await trio.lowlevel.open_process(child.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            if first:
                raise SapflowError(f"{child.name} cannot be started: {error.strerror}") from error
            return _End(-1, f"it cannot be started: {error.strerror}")
        child.pid = process.pid
        child.starts += 1
        try:
            said = await self._ready(process)
            if isinstance(said, str):
                if process.poll() is None:
                    process.kill()
                    log.warning("process killed", name=child.name, pid=child.pid, reason=said)
                code = await process.wait()
                if first:
                    raise SapflowError(f"{child.name} did not start: {said}; its log ({child.log_place}) says why")
                return _End(code, said)
            child.addresses = said.get("addresses", {})
            self._events({"event": "started" if first else "restarted", "name": child.name, "pid": child.pid})
            if first:
                task_status.started()
            return _End(await process.wait())
        finally:
            with trio.CancelScope(shield=True):
                await self._end(process)

    async def _ready(self, process: trio.Process) -> dict[str, Any] | str:
        """What the child's first line says, or why there is none that can be used."""
        assert process.stdout is not None
        held = b""
        with trio.move_on_after(self._ready_timeout_s):
            while b"\n" not in held:
                data = await process.stdout.receive_some(4096)
                held += bytes(data)
                if not data:
                    # Its output ends a moment before it does, and its exit code is what tells most.
                    with trio.move_on_after(1.0):
                        return f"it ended with code {await process.wait()} before it was ready"
                    return "it closed its output before it was ready"
                if len(held) > MAX_LINE_BYTES:
                    return "its first line does not end"
            try:
                found = json.loads(held.split(b"\n")[0])
            except ValueError:
                found = None
            return found if isinstance(found, dict) else "its first line is not that it is ready"
        return f"it was not ready within {self._ready_timeout_s:g} s"

    async def _end(self, process: trio.Process) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(self._stop_timeout_s):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()


def backoff_s(failures: int) -> float:
    """How long until a child is started again, when it ended so often in a row without a steady time between."""
    return random.uniform(0, min(BACKOFF_MOST_S, 0.05 * 2 ** min(failures, 10)))


def role_command(role: str, name: str, config: str) -> list[str]:
    """How a role's process is started by a supervisor."""
    return [sys.executable, "-m", "sapflow", role, "--config", config, "--name", name, "--supervised"]
