"""Simulated hosts: an address, a clock that may be wrong, a disk that may fail, and the sockets that are its own.

Which host a task runs on is a context variable: what a process starts, runs where it does.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from tools.simulate.disks import Disk

if TYPE_CHECKING:
    from tools.simulate.sockets import SimulatedSocket

FIRST_PORT = 32_768


@define(eq=False)
class Host:
    """One machine, with one process on it."""

    name: str
    address: str
    number: int
    clock_off_s: float = 0.0
    """How far its clock is from the true time."""
    powered: bool = True
    running: bool = True
    """False while its process is stopped (SIGSTOP): its system calls do not return."""
    reads: bool = True
    """False while it is up and says so, and takes nothing in: a grey failure."""
    disk: Disk = field(factory=Disk)
    lag_s: float = 0.0
    """How late its event loop says to be, beside what its work makes it."""
    bytes_per_s: float = float("inf")
    """What its one process can take in: reading more makes it late."""
    accept_s: float = 0.0
    """What a connection that it accepts costs it."""
    busy_until: float = 0.0
    """When its process is done with what it has begun."""
    sockets: dict[SimulatedSocket, None] = field(factory=dict)
    _last_port: int = FIRST_PORT

    def next_port(self) -> int:
        """A port that was not used before."""
        self._last_port += 1
        return self._last_port

    async def work(self, seconds: float) -> None:
        """Wait until the process has time for this, and be busy with it from then on for so long."""
        now = trio.current_time()
        begins = max(now, self.busy_until)
        self.busy_until = begins + seconds
        if begins > now:
            await trio.sleep_until(begins)

    def late_s(self) -> float:
        """How late its event loop is now."""
        return self.lag_s + max(0.0, self.busy_until - trio.current_time())

    def stop(self) -> None:
        """Its process does not run; its kernel does."""
        self.running = False

    def go_on(self) -> None:
        """Its process runs again."""
        self.running = True
        for socket in list(self.sockets):
            socket.wake()

    def close_all(self) -> None:
        """Its process died: the kernel closes what was open."""
        self.busy_until = 0.0
        for socket in list(self.sockets):
            socket.orphan()

    def lose_power(self) -> None:
        """Nothing of it is there any more, and nobody is told."""
        self.powered = False
        for socket in list(self.sockets):
            socket.vanish()


_current: ContextVar[Host] = ContextVar("current_host")


def current() -> Host:
    """The host that the calling task runs on."""
    return _current.get()


def current_or_none() -> Host | None:
    """As `current`; None where no host is simulated."""
    return _current.get(None)


def enter(host: Host) -> None:
    """The calling task, and all that it starts, runs on `host` from here on."""
    _current.set(host)
