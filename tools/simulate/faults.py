"""Faults, drawn from the seed: what happens to whom, for how long. All of it is mended at the end.

kill, power       a process dies (its host closes its sockets; or says nothing to anybody, and comes back later)
terminate         a process is ended in good order, and started again
drain             a process is asked to end gently, and started again; only where a plan says so
stop              a process is stopped for a while (SIGSTOP): its connections stall
cut               connections between two hosts are reset
partition         nothing gets from one host to another, nor back
slow, thin, lossy a path has latency, little bandwidth, or loses segments
disk              a disk is slow, full, or fails at a write or at a sync
clock             a host's clock makes a step
late              a collector says that its loop is late
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field, frozen

from tools.simulate.fleet import Fleet
from tools.simulate.processes import Process
from tools.simulate.wires import Path

KINDS = (
    *("kill",) * 4,
    *("power", "stop", "partition") * 2,
    *("terminate", "cut", "slow", "thin", "lossy", "disk", "clock", "late"),
)
FAR_S = 3600.0
DRAIN_S = 10.0


@frozen
class Plan:
    """How often, and for how long."""

    every_s: tuple[float, float] = (0.1, 1.5)
    lasts_s: tuple[float, float] = (0.1, 5.0)
    kinds: tuple[str, ...] = KINDS
    often: float = 1.0


@define
class Faults:
    """Inflicts them, each in a task of its own."""

    fleet: Fleet
    plan: Plan
    count: int = 0
    _under: set[str] = field(factory=set)
    """Processes that something is done to."""

    async def run(self, seconds: float) -> None:
        """Faults for so long; then all is mended."""
        rng = self.fleet.rng
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            while (
                wait_s := rng.uniform(*self.plan.every_s) / self.plan.often
            ) and trio.current_time() + wait_s < until:
                await trio.sleep(wait_s)
                kind = rng.choice(self.plan.kinds)
                lasts_s = min(rng.uniform(*self.plan.lasts_s), until - trio.current_time())
                nursery.start_soon(self._inflict, kind, lasts_s)
        self._mend()

    def _mend(self) -> None:
        fleet = self.fleet
        for _, _, path in fleet.network.paths():
            path.mend()
            fleet.network.let_go(path)
        for host in fleet.hosts.values():
            host.disk.mend()
            host.clock_off_s = host.lag_s = 0.0
        fleet.trace.note("faults", f"all mended after {self.count}")

    async def _inflict(self, kind: str, lasts_s: float) -> None:
        self.count += 1
        on_process: dict[str, Callable[[Process, float], Awaitable[None]]] = {
            "kill": self._kill,
            "power": self._power,
            "terminate": self._terminate,
            "drain": self._drain,
            "stop": self._stop,
            "disk": self._disk,
            "clock": self._clock,
            "late": self._late,
        }
        if kind not in on_process:
            await self._on_path(kind, lasts_s)
            return
        free = [one for one in self.fleet.processes.values() if one.name not in self._under and one.starts]
        if kind == "drain":  # a meter has nobody to hand on to
            free = [one for one in free if not one.name.startswith("meter")]
        if not free:
            return
        victim = self.fleet.rng.choice(free)
        self._under.add(victim.name)
        try:
            await on_process[kind](victim, lasts_s)
        finally:
            self._under.discard(victim.name)

    async def _kill(self, victim: Process, _lasts_s: float) -> None:
        self._note("kill", victim.name)
        await victim.kill()

    async def _power(self, victim: Process, lasts_s: float) -> None:
        self._note("power", victim.name, lasts_s)
        victim.want(False)
        await victim.lose_power()
        await trio.sleep(lasts_s)
        victim.host.powered = True
        victim.want(True)

    async def _terminate(self, victim: Process, _lasts_s: float) -> None:
        self._note("terminate", victim.name)
        await victim.terminate()

    async def _drain(self, victim: Process, _lasts_s: float) -> None:
        self._note("drain", victim.name)
        await victim.drain(DRAIN_S)

    async def _stop(self, victim: Process, lasts_s: float) -> None:
        self._note("stop", victim.name, lasts_s)
        victim.host.stop()
        await trio.sleep(lasts_s)
        victim.host.go_on()

    async def _disk(self, victim: Process, lasts_s: float) -> None:
        disk, rng = victim.host.disk, self.fleet.rng
        how = rng.choice(("slow", "full", "write", "sync"))
        self._note(f"disk {how}", victim.name, lasts_s)
        if how == "slow":
            disk.write_s = rng.uniform(0.05, 1.0)
        else:
            disk.fault = how  # type: ignore[assignment]
        await trio.sleep(lasts_s)
        disk.mend()

    async def _clock(self, victim: Process, _lasts_s: float) -> None:
        step_s = self.fleet.rng.uniform(-FAR_S, FAR_S)
        self._note(f"clock {step_s:+.0f} s", victim.name)
        victim.host.clock_off_s += step_s

    async def _late(self, victim: Process, lasts_s: float) -> None:
        self._note("late", victim.name, lasts_s)
        victim.host.lag_s = self.fleet.rng.uniform(0.5, 5.0)
        await trio.sleep(lasts_s)
        victim.host.lag_s = 0.0

    async def _on_path(self, kind: str, lasts_s: float) -> None:
        fleet, rng = self.fleet, self.fleet.rng
        one, other, path = rng.choice(fleet.network.paths())
        self._note(kind, f"{one.name} {other.name}", lasts_s)
        if kind == "cut":
            for socket in list(one.sockets):
                if socket.remote is not None and socket.remote[0] == other.address:
                    socket.cut()
            return
        self._spoil(kind, path)
        await trio.sleep(lasts_s)
        path.mend()
        fleet.network.let_go(path)

    def _spoil(self, kind: str, path: Path) -> None:
        rng = self.fleet.rng
        match kind:
            case "partition":
                path.blocked = True
            case "slow":
                path.latency_s, path.jitter_s = rng.uniform(0.1, 1.0), rng.uniform(0, 0.5)
            case "thin":
                path.bytes_per_s = rng.uniform(1_000, 100_000)
            case "lossy":
                path.lost = rng.uniform(0.05, 0.5)
            case _:
                raise AssertionError(kind)

    def _note(self, kind: str, whom: str, lasts_s: float = 0.0) -> None:
        self.fleet.trace.note("faults", f"{kind} {whom}" + (f" for {lasts_s:.2f} s" if lasts_s else ""))
