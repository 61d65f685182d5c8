"""Simulated processes: a role's own `run` on a host, kept running as the supervisor does, and killed.

Killed with -9: the host's kernel closes its sockets first, so that no farewell gets out; then its tasks are cancelled,
through every shield, since nothing holds up a SIGKILL. Its files stay as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import trio
from attrs import define, field

from balancer.carry import carrier
from sapflow.errors import SapflowError
from sapflow.monitor.control import Actions, Status
from sapflow.monitor.machine import Machine
from sapflow.runtime.drain import Drain
from sapflow.runtime.threads import instead
from tools.simulate.carrying import copy_one_way
from tools.simulate.disks import work_on
from tools.simulate.hosts import Host, current, enter
from tools.simulate.trace import Trace, told

Announce = Callable[[dict[str, Any]], None]
Run = Callable[[Announce, Machine], Awaitable[None]]

RESTART_S = (0.05, 0.5)
LATE_S = 5.0
"""So long after its deadline a process that was to be drained is killed."""


@define
class SimulatedFigures:
    """Figures of a process that is none: nothing but what a fault says."""

    host: Host

    async def run(self) -> None:
        """There is nothing to measure."""

    def read(self) -> dict[str, float]:
        """As `ProcessFigures`."""
        return {"rss_bytes": 0, "cpu_seconds": 0.0, "cpu": 0.0, "lag_s": self.host.late_s()}


@define(eq=False)
class Process:
    """One role's process."""

    name: str
    host: Host
    start: Run
    trace: Trace
    ready: bool = False
    wanted: bool = True
    """False: when it ends, it stays away until it is."""
    starts: int = 0
    deaths: list[str] = field(factory=list)
    """What it died of by itself; a bug, each of them."""
    status: Status | None = None
    """What its control plane shows."""
    on_end: Callable[[], None] = lambda: None
    """Told when it is about to be killed or ended."""
    drains: list[bool] = field(factory=list)
    """Of each time that it was drained: whether it said that it had handed on everything."""
    _drain: Drain = field(factory=Drain)
    _killed: bool = False
    _scope: trio.CancelScope | None = None
    _task: trio.lowlevel.Task | None = None
    _changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _ended: trio.Event = field(factory=trio.Event)

    async def keep(self, restart_s: Callable[[], float]) -> None:
        """Run it, and start it again when it ended, until cancelled."""
        enter(self.host)
        instead.set(_inline)
        carrier.set(copy_one_way)
        self._task = trio.lowlevel.current_task()
        while True:
            while not self.wanted:
                await self._changed.park()
            self.starts += 1
            self.trace.note(self.name, "starts")
            self._killed = False
            with trio.CancelScope() as self._scope:
                await self._run()
            self._scope = None
            self.ready, self.status = False, None
            self.host.close_all()
            self._ended.set()
            self.trace.note(self.name, "ended")
            await trio.sleep(restart_s())

    async def _run(self) -> None:
        try:
            self._drain = drain = Drain()
            await self.start(
                self._announce, Machine(self._serve_control, lambda: SimulatedFigures(self.host), drain=drain)
            )
            if not drain.is_asked:
                self.deaths.append("it returned")
        except* SapflowError as group:
            # As the command does: what it says is told, and the supervisor starts it again.
            self.trace.note(self.name, f"exits: {group.exceptions[0]}")
            self.on_end()
        except* Exception as group:
            if not self._killed:
                self.deaths.append(told(group))

    def _announce(self, event: dict[str, Any]) -> None:
        if event["event"] == "drained":
            self.drains.append(event["clean"])
        else:
            self.ready = True
        self.trace.note(self.name, f"{event['event']} {event.get('clean', '')}".strip())

    async def _serve_control(
        self,
        address: str,
        role: str,
        status: Status,
        *,
        pages: Mapping[str, Callable[[str], dict[str, Any]]] | None = None,
        actions: Actions | None = None,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.status = status
        task_status.started("0.0.0.0:0")
        await trio.sleep_forever()

    async def kill(self) -> None:
        """SIGKILL; returns when nothing of it is there any more."""
        await self._end(self.host.close_all)

    async def lose_power(self) -> None:
        """As a kill, but its host says nothing to anybody."""
        await self._end(self.host.lose_power)

    async def terminate(self) -> None:
        """SIGTERM: it may say farewell."""
        if self._scope is not None:
            self.on_end()
            ended = self._ended = trio.Event()
            self._scope.cancel()
            await ended.wait()

    async def drain(self, within_s: float) -> None:
        """It hands on what it has, and ends; it is started anew then. What takes too long is killed."""
        if self._scope is None or not self.ready:
            return
        self.on_end()
        ended = self._ended = trio.Event()
        self._drain.ask(within_s)
        with trio.move_on_after(within_s + LATE_S):
            await ended.wait()
        if not ended.is_set():
            self.deaths.append("it did not end when it was drained")
            await self.kill()

    async def _end(self, sockets: Callable[[], None]) -> None:
        if self._scope is None:
            return
        self.on_end()
        self._killed = True
        sockets()
        ended = self._ended = trio.Event()
        self._scope.cancel()
        assert self._task is not None
        while not ended.is_set():
            for scope in _scopes(self._task):
                scope.shield = False
            sockets()
            await trio.lowlevel.checkpoint()

    def want(self, wanted: bool) -> None:
        """Whether it is to be there."""
        self.wanted = wanted
        self._changed.unpark_all()


async def _inline(kind: str, work: Callable[[], Any], *, abandon: bool) -> Any:
    """What a thread does, done here; it holds up a cancelled task as a thread does, but not a SIGKILL."""
    with trio.CancelScope(shield=not abandon):
        return await work_on(current().disk, kind, work)


def _scopes(task: trio.lowlevel.Task) -> Iterator[trio.CancelScope]:
    """All cancel scopes below a task's own. Trio shows those of nurseries only."""
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _scopes(child)
    status: trio._core._run.CancelStatus | None = task._cancel_status
    while status is not None:
        yield status._scope
        status = status._parent
