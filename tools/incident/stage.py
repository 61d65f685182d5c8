"""Plays a timeline on the real fleet in virtual time: who is there, what is sampled, and what must hold for all.

All processes are those of `tools.simulate`: the code of production on a network, disks and clocks of memory. Rates are
scaled: a byte stands for `BYTES_STAND_FOR`, a record too, and what a collector can take is divided by the same, so
that a gigabyte of telemetry needs not be kept to see what its weight does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, field, frozen

from balancer.placement import MAX_LAG_S
from sapflow.config import Config
from tools.incident.scenario import Cue, Options, Recording
from tools.simulate.clock import VirtualClock
from tools.simulate.determinism import collect, determined
from tools.simulate.fleet import MIB, Fleet, Size
from tools.simulate.invariants import Invariants
from tools.simulate.processes import Process
from tools.simulate.run import temporary_directory
from tools.simulate.senders import Senders
from tools.simulate.sockets import Factory
from tools.simulate.trace import Trace
from tools.simulate.wires import Network

BYTES_STAND_FOR = 10
MBPS = 1e6 / 8
SAMPLE_S = 1.0
BALANCE_OVER_S = 10.0
READY_S = 120.0
STEP_S = 0.25
LEAST_LATENESS_S = MAX_LAG_S
"""A collector whose event loop is as late has more than it can do: the balancers give it nothing more."""
IDLE_TIMEOUT_S = 120.0
"""Of links: five thousand meters that ping each other every few seconds show nothing."""


@frozen
class Production:
    """A timeline, the fleet that it is played on, and what must hold beside what always must."""

    size: Size
    cues: tuple[Cue, ...]
    capacity_mbps: float
    """What a collector can take in."""
    accept_s: float = 0.002
    """What a new link costs a collector."""
    settle_s: float = 60.0
    check: Callable[[Stage], None] = lambda _stage: None
    """Called when all has settled."""
    configure: Callable[[Config], Config] = lambda config: config
    name: str = "sapflow"
    figures: Callable[[Stage], dict[str, dict[str, float]]] = lambda _stage: {}
    """More that is sampled."""


@define
class Stage:
    """The fleet while it is played on."""

    production: Production
    options: Options
    fleet: Fleet
    senders: Senders
    invariants: Invariants
    recording: Recording
    began: float = 0.0
    marks: dict[str, float] = field(factory=dict)
    """Times that cues noted, for checks."""
    nursery: trio.Nursery | None = None
    """Of what a timeline starts; it ends with the timeline."""
    _taken: dict[str, float] = field(factory=dict)

    def now(self) -> float:
        """Virtual seconds since all was ready."""
        return trio.current_time() - self.began

    def note(self, what: str) -> None:
        """Something happens: in the report, and in the trace."""
        self.recording.event(self.now(), what)
        self.fleet.trace.note("incident", what)

    def mark(self, name: str) -> None:
        """Remember when this was."""
        self.marks[name] = self.now()

    def process(self, name: str) -> Process:
        """One by its name."""
        return self.fleet.processes[name]

    def collectors(self) -> list[Process]:
        """All of them, dead ones too."""
        return self.fleet.of_role("collector")

    def load(self, org: str, times: float) -> None:
        """From each meter's next batch on, an org sends so many times the usual."""
        self.senders.paces[org].records = max(1, round(self.fleet.size.records * times))

    async def kill(self, name: str, away_s: float = 0.0) -> None:
        """kill -9; it may start again after `away_s`."""
        process = self.process(name)
        process.want(False)
        await process.kill()
        await trio.sleep(away_s)
        process.want(True)

    def links_to(self, name: str) -> int:
        """Connections that balancers have to a collector: those carried to it, and two of their own each."""
        address = self.process(name).host.address
        return sum(
            socket.remote is not None and socket.remote[0] == address and not socket.closed
            for process in self.fleet.of_role("balancer")
            for socket in process.host.sockets
        )

    def link_address(self, name: str) -> str:
        """Where a collector's links end, as a balancer knows."""
        balancer = self.process("balancer-1")
        assert balancer.status is not None
        return next(str(one["addresses"]["link"]) for one in balancer.status()["members"] if one["name"] == name)

    def collector_of(self, org: str) -> str:
        """The collector that has most links of an org."""

        def links(process: Process) -> int:
            orgs = process.status()["orgs"] if process.status is not None else {}
            return int(orgs[org]["streams"]) if org in orgs else 0

        return max(self.collectors(), key=links).name

    def backlog_bytes(self) -> int:
        """What meters keep since it is not durable yet."""
        return sum(meter.uplink.unacknowledged_bytes for meter in self.senders.meters)

    def rates(self, key: str = "load") -> dict[str, list[float]]:
        """Of all collectors, as sampled."""
        return self.recording.series.get(key, {})

    def balance(self, since: float, over_s: float = BALANCE_OVER_S) -> float:
        """How many times the mean the most loaded collector had, from `since` on."""
        at = [i for i, when in enumerate(self.recording.times) if since <= when < since + over_s]
        sums = [sum(values[i] for i in at) for values in self.rates().values()]
        return max(sums) * len(sums) / sum(sums) if sum(sums) else float("inf")

    # --- while it runs ----------------------------------------------------------------------------------------

    async def sample(self) -> None:
        """Every second, until cancelled."""
        while True:
            await trio.sleep(SAMPLE_S)
            self.recording.sample(self.now(), self._values())
            self.options.progress(self.production.name, self.now(), self.options.seconds)

    def _values(self) -> dict[str, dict[str, float]]:
        rates: dict[str, float] = {}
        held: dict[str, float] = {}
        late: dict[str, float] = {}
        alive = 0
        for process in self.collectors():
            status: dict[str, Any] | None = process.status() if process.status is not None else None
            alive += process.ready
            total = status["flow"]["link"]["in"]["bytes"] if status is not None else 0
            before = self._taken.get(process.name, 0)
            # One that was started again counts from nothing.
            grown = total - before if total >= before else total
            self._taken[process.name] = total
            rates[process.name] = grown * BYTES_STAND_FOR / SAMPLE_S / MBPS
            held[process.name] = (status["gauges"]["held_bytes"] if status is not None else 0) * BYTES_STAND_FOR / MIB
            late[process.name] = process.host.late_s()
        ledger = self.senders.ledger
        return {
            "load": rates,
            "alive": {"collectors": alive},
            "backlog": {"with meters, not durable yet": self.backlog_bytes() * BYTES_STAND_FOR / MIB},
            "memory": held,
            "late": late,
            "lost": {"records lost": 0.0},
            "waiting": {"records not durable": (ledger.sent_records - ledger.acknowledged_records) * BYTES_STAND_FOR},
            **self.production.figures(self),
        }

    async def follow(self) -> None:
        """The timeline, each cue in a task of its own."""
        async with trio.open_nursery() as nursery:
            for cue in sorted(self.production.cues, key=lambda cue: cue.at):
                await trio.sleep(max(0.0, cue.at * self.options.seconds - self.now()))
                if cue.what:
                    self.note(cue.what)
                nursery.start_soon(cue.do, self)
            await trio.sleep(max(0.0, self.options.seconds - self.now()))

    async def settle(self) -> float:
        """No more is sent; seconds until all is durable and nothing is held anywhere."""
        began = trio.current_time()
        self.senders.stop.set()
        with trio.move_on_after(self.production.settle_s) as settling:
            while self.backlog_bytes() or not self.invariants.settled():
                await trio.sleep(STEP_S)
        if settling.cancelled_caught:
            what = self.invariants.unsettled()[:1000]
            self.recording.wrong.append(f"not settled within {self.production.settle_s:g} s: {what}")
        return trio.current_time() - began


def play(production: Production, options: Options) -> Recording:
    """The production on the real fleet, from the seed of `options`."""
    recording = Recording(production.name)
    began = time.process_time()
    clock, trace = VirtualClock(), Trace()
    with temporary_directory() as directory, determined(options.seed, clock, trace):
        trace.hidden[str(directory)] = "DATA"
        trio.run(_play, production, options, recording, directory, trace, clock=clock)
    recording.trace, recording.cpu_s = trace.checksum, time.process_time() - began
    return recording


async def _play(production: Production, options: Options, recording: Recording, directory: Path, trace: Trace) -> None:
    network = Network(random.Random(f"network {options.seed}"), production.size.latency_s)
    network.on_sent = lambda socket, data: trace.sent(socket.local, socket.remote, data)
    trio.socket.set_custom_socket_factory(Factory(network))
    rng = random.Random(f"incident {options.seed}")
    fleet = Fleet(production.size, directory, network, trace, rng, configure=_configured(production), map_bytes=4 << 30)
    fleet.make()
    for process in fleet.of_role("collector"):
        process.host.bytes_per_s = production.capacity_mbps * MBPS / BYTES_STAND_FOR
        process.host.accept_s = production.accept_s
    senders = Senders(fleet, idle_timeout_s=IDLE_TIMEOUT_S)
    invariants = Invariants(fleet, senders)
    stage = Stage(production, options, fleet, senders, invariants, recording)
    async with trio.open_nursery() as nursery:
        for task in (collect, fleet.run, invariants.run, *(reader.run for reader in invariants.readers)):
            nursery.start_soon(task)
        with trio.fail_after(READY_S):
            await fleet.ready()
            nursery.start_soon(senders.run)
            while sum(bool(meter.uplink.up) for meter in senders.meters) < len(senders.meters):
                await trio.sleep(STEP_S)
        stage.began = trio.current_time()
        async with trio.open_nursery() as watching:
            watching.start_soon(stage.sample)
            async with trio.open_nursery() as stage.nursery:
                await stage.follow()
                stage.nursery.cancel_scope.cancel()
            recording.facts["settled"] = f"{await stage.settle():.1f} s after the last batch"
            watching.cancel_scope.cancel()
        invariants.look()
        _account(stage)
        production.check(stage)
        nursery.cancel_scope.cancel()
    invariants.final()
    recording.wrong += invariants.faults


def _account(stage: Stage) -> None:
    """What must hold in every production: nothing sent is lost."""
    ledger, recording = stage.senders.ledger, stage.recording
    lost = ledger.sent_records - ledger.acknowledged_records
    recording.facts["records sent"] = f"{ledger.sent_records * BYTES_STAND_FOR:,}"
    recording.facts["records durable"] = f"{ledger.acknowledged_records * BYTES_STAND_FOR:,}"
    recording.facts["records lost"] = f"{lost * BYTES_STAND_FOR:,}"
    recording.require(not lost, f"{lost:,} records that meters sent are not durable")
    recording.require(ledger.sent_records > 0, "nothing was sent")


def _configured(production: Production) -> Callable[[Config], Config]:
    def configure(config: Config) -> Config:
        budget = 32 * MIB
        config = evolve(
            config,
            collector=evolve(config.collector, budget_bytes=budget, idle_timeout_s=IDLE_TIMEOUT_S),
            balancer=evolve(config.balancer, max_unplaced_links=5000, links_per_s=0.5 / production.accept_s),
            phloem=evolve(config.phloem, budget_bytes=2 * budget),
        )
        return production.configure(config)

    return configure
