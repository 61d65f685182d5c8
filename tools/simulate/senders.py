"""Who sends to a simulated fleet, and what each may claim afterwards.

A meter (tools.loadgen's, over the real uplink) is told what is durable; all that was acknowledged must be in the log. A
plain exporter is told nothing: what went over a connection that both ends closed in good order must be in the log; of
one that broke, no more than was sent. An impostor, whose token is another org's or none, gets nothing in.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from sapflow.errors import Unreachable
from sapflow.runtime.dial import dial
from tools.loadgen import Ledger, Messages, Meter, Pace
from tools.simulate.fleet import Fleet
from tools.simulate.hosts import Host, enter
from tools.simulate.processes import Process

SESSION_S = (2.0, 15.0)
CLOSING_S = 30.0


@define
class Exported:
    """One exporter's connection."""

    org: str
    taker: str
    """The process that ended it."""
    records: int = 0
    """Given to the kernel."""
    whole: bool = False
    """Both ends closed it in good order, and its taker did not die with what it had not passed on."""
    at_risk: bool = True
    """Its taker may have something of it that nobody else has."""


@define
class Senders:
    """All of them, until `stop`."""

    fleet: Fleet
    ledger: Ledger = field(factory=Ledger)
    sessions: dict[str, Exported] = field(factory=dict)
    """Exporters' connections by their own address."""
    meters: list[Meter] = field(factory=list)
    impostors: Ledger = field(factory=Ledger)
    """Of meters whose token is another org's, or none: nothing of theirs may ever be acknowledged, or be in the log."""
    stop: trio.Event = field(factory=trio.Event)
    paces: dict[str, Pace] = field(init=False)
    """By org: may be changed while they send."""
    idle_timeout_s: float = 30.0
    """Of meters' links."""
    ends: Counter[str] = field(factory=Counter)
    """How often each process that takes from exporters has ended."""

    def __attrs_post_init__(self) -> None:
        size = self.fleet.size
        self.paces = {org: Pace(size.interval_s, size.records) for org in size.org_names}

    async def run(self) -> None:
        """Send until `stop` is set and all that meters sent is durable."""
        fleet, size = self.fleet, self.fleet.size
        pace = Pace(size.interval_s, size.records)
        for process in (*fleet.of_role("balancer"), *fleet.of_role("meter")):
            self._watch(process)
        async with trio.open_nursery() as impostors, _then_cancelled(impostors), trio.open_nursery() as nursery:
            for number in range(1, size.meters + 1):
                org = size.org_names[number % size.orgs]
                door = f"10.0.0.{1 + number % size.balancers}:4740"
                meter = Meter(
                    f"agent-{number}", org, fleet.tokens[org], door, self.ledger, idle_timeout_s=self.idle_timeout_s
                )
                self.meters.append(meter)
                host = fleet.host(f"agent-{number}", f"10.5.{number // 256}.{number % 256}")
                nursery.start_soon(self._meter, meter, host, self.paces[org])
            for number, token in enumerate((fleet.tokens[size.org_names[0]], "none"), 1):
                impostor = Meter(f"impostor-{number}", size.org_names[-1], token, "10.0.0.1:4740", self.impostors)
                if token == "none" or size.orgs > 1:
                    host = fleet.host(impostor.name, f"10.0.8.{number}")
                    impostors.start_soon(self._meter, impostor, host, pace)
            for number in range(1, size.exporters + 1):
                org = size.org_names[number % size.orgs]
                door = f"10.0.0.{1 + number % size.balancers}:4739"
                taker = f"balancer-{1 + number % size.balancers}"
                nursery.start_soon(self._exporter, f"exporter-{number}", f"10.0.4.{number}", org, taker, door, pace)
            for number in range(1, size.spooled + 1):
                org = size.org_names[number % size.orgs]
                door = f"10.0.3.{number}:4739"
                taker = f"meter-{number}"
                nursery.start_soon(self._exporter, f"router-{number}", f"10.0.6.{number}", org, taker, door, pace)

    def _watch(self, process: Process) -> None:
        """What a process takes of exporters is in its memory until it is durable: in the log, or in its spool."""

        def end() -> None:
            self.ends[process.name] += 1
            held = process.status is not None and _in_memory(process.status()["gauges"])
            for session in self.sessions.values():
                if session.taker == process.name and session.at_risk:
                    session.at_risk = False
                    session.whole &= not held

        process.on_end = end

    async def _meter(self, meter: Meter, host: Host, pace: Pace) -> None:
        enter(host)
        await meter.run(self.stop, pace)

    async def _exporter(self, name: str, address: str, org: str, taker: str, door: str, pace: Pace) -> None:
        enter(self.fleet.host(name, address))
        await pace.begin()
        while not self.stop.is_set():
            # An end that a kernel says for a process that died looks like one in good order.
            ends = self.ends[taker]
            try:
                stream = await dial(door, timeout_s=2.0)
            except Unreachable:
                await trio.sleep(random.uniform(0, 1.0))
                continue
            assert isinstance(stream, trio.SocketStream)
            host, port = stream.socket.getsockname()
            session = self.sessions[f"{host}:{port}"] = Exported(org, taker)
            try:
                async with stream:
                    await self._session(stream, session, pace)
                    session.whole = session.at_risk and self.ends[taker] == ends
            except (trio.BrokenResourceError, trio.TooSlowError):
                await trio.sleep(random.uniform(0, 1.0))

    async def _session(self, stream: trio.SocketStream, session: Exported, pace: Pace) -> None:
        messages = Messages(pace.records, domain=1)
        await stream.send_all(messages.templates())
        until = trio.current_time() + random.uniform(*SESSION_S)
        while not self.stop.is_set() and trio.current_time() < until:
            session.records += pace.records
            await stream.send_all(messages.next())
            with trio.move_on_after(pace.interval_s * random.uniform(0.5, 1.5)):
                await self.stop.wait()
        await stream.send_eof()
        with trio.fail_after(CLOSING_S):
            while await stream.receive_some():
                continue


@asynccontextmanager
async def _then_cancelled(nursery: trio.Nursery) -> AsyncIterator[None]:
    """Whoever waits for what never comes is not waited for."""
    yield
    nursery.cancel_scope.cancel()


def _in_memory(gauges: dict[str, float]) -> bool:
    return bool(gauges.get("unacknowledged_bytes") or gauges.get("pending_bytes"))
