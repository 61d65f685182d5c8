"""One process that a supervisor keeps, from its start to its end, and what it says: see `supervisor.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog
import trio

from sapflow.runtime.drain import Successor
from sapflow.runtime.sockets import SOCKETS_VARIABLE, told_sockets

log = structlog.get_logger()

MAX_LINE_BYTES = 64 << 10
LAST_WORDS_S = 1.0
"""So long what a process said at its end may still be on its way when it has ended."""


async def start_process(command: Sequence[str], sockets: Mapping[str, int]) -> trio.Process:
    """A child with pipes for its standard input and output, that is given sockets. Raises OSError."""
    return await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=tuple(sockets.values()),
        env={**os.environ, SOCKETS_VARIABLE: told_sockets(sockets)} if sockets else None,
    )


class Life:
    """`run()` is its task; `settled` is set when it is up, or never will be, and `over` when it has ended.

    `begin` gives the process, with pipes for its standard input and output, or raises OSError.
    """

    def __init__(
        self,
        name: str,
        begin: Callable[[], Awaitable[trio.Process]],
        ready_timeout_s: float,
        stop_timeout_s: float,
        changed: Callable[[], None],
    ) -> None:
        self.pid = 0
        self.code = -1
        self.addresses: dict[str, str] = {}
        self.is_up = False
        self.why: str | None = None
        """Why it is not up, or was ended here."""
        self.is_drained = False
        """It said that it had been drained …"""
        self.is_clean = False
        """… and had handed on everything."""
        self.lasted_s = 0.0
        self.settled = trio.Event()
        self.over = trio.Event()
        self._name = name
        self._begin = begin
        self._ready_timeout_s = ready_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._changed = changed
        self._process: trio.Process | None = None
        self._held = b""

    async def run(self) -> None:
        """Until it has ended; when cancelled, it is ended."""
        began = trio.current_time()
        try:
            await self._run()
        finally:
            self.lasted_s = trio.current_time() - began
            self.settled.set()
            self.over.set()
            self._changed()

    async def ask_to_drain(self, within_s: float, successor: Successor) -> None:
        """It is to end gently, within so many seconds."""
        await self._tell(f"drain {within_s:g} {successor}")

    async def ask_to_begin(self) -> None:
        """A successor is to take up its work."""
        await self._tell("begin")

    async def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with trio.move_on_after(1.0):
            try:
                await self._process.stdin.send_all(f"{line}\n".encode())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.info("process has ended already", name=self._name, pid=self.pid)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()

    async def _run(self) -> None:
        try:
            self._process = process = await self._begin()
        except OSError as error:
            self.why = f"it cannot be started: {error.strerror}"
            return
        self.pid = process.pid
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_if_late)
                said = await self._ready(process)
                nursery.cancel_scope.cancel()
            if isinstance(said, str):
                await self._end_unready(process, said)
            else:
                self.addresses, self.is_up = said.get("addresses", {}), True
                self.settled.set()
                self._changed()
                await self._until_it_ends(process)
        finally:
            with trio.CancelScope(shield=True):
                await self._end(process)

    async def _tell_if_late(self) -> None:
        await trio.sleep(self._ready_timeout_s / 3)
        log.warning(
            "process not ready yet",
            name=self._name,
            pid=self.pid,
            meaning=f"the machine is busy, or it hangs; it is killed {self._ready_timeout_s:g} s after its start",
        )

    async def _end_unready(self, process: trio.Process, why: str) -> None:
        self.why = why
        if process.poll() is None:
            process.kill()
            log.warning("process killed", name=self._name, pid=self.pid, reason=why)
        self.code = await process.wait()

    async def _until_it_ends(self, process: trio.Process) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, process)
            self.code = await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_S

    async def _listen(self, process: trio.Process) -> None:
        assert process.stdout is not None
        while True:
            line, separator, rest = self._held.partition(b"\n")
            if separator:
                self._held = rest
                said = _read(line)
                if said is not None and said.get("event") == "drained":
                    self.is_drained, self.is_clean = True, bool(said.get("clean"))
                continue
            data = await process.stdout.receive_some(4096)
            # What is no line is of no meaning here.
            self._held = (self._held + bytes(data))[-MAX_LINE_BYTES:]
            if not data:
                return

    async def _ready(self, process: trio.Process) -> dict[str, Any] | str:
        """What the child's first line says, or why there is none that can be used."""
        assert process.stdout is not None
        with trio.move_on_after(self._ready_timeout_s):
            while b"\n" not in self._held:
                data = await process.stdout.receive_some(4096)
                self._held += bytes(data)
                if not data:
                    # Its output ends a moment before it does, and its exit code is what tells most.
                    with trio.move_on_after(LAST_WORDS_S):
                        return f"it ended with code {await process.wait()} before it was ready"
                    return "it closed its output before it was ready"
                if len(self._held) > MAX_LINE_BYTES:
                    return "its first line does not end"
            line, _, self._held = self._held.partition(b"\n")
            return _read(line) or "its first line is not that it is ready"
        return f"it was not ready within {self._ready_timeout_s:g} s"

    async def _end(self, process: trio.Process) -> None:
        if process.poll() is None:
            # SIGTERM would have it drain: but all of the fleet ends.
            process.send_signal(signal.SIGINT)
            with trio.move_on_after(self._stop_timeout_s):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
