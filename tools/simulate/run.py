"""One simulation: a fleet, senders and faults, all of it from one seed; then all is mended, and must settle."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from tools.simulate.clock import VirtualClock
from tools.simulate.determinism import collect, determined
from tools.simulate.faults import KINDS, Faults, Plan
from tools.simulate.fleet import Fleet, Size
from tools.simulate.invariants import Invariants
from tools.simulate.senders import Senders
from tools.simulate.sockets import Factory
from tools.simulate.trace import Trace
from tools.simulate.wires import Network

LOADS = (
    {"interval_s": 1.0, "records": 1},
    {"interval_s": 0.5, "records": 24},
    {"interval_s": 0.5, "records": 200},
    {"interval_s": 0.1, "records": 1000},
)
"""Of each sender. The last of them fills every budget as soon as somebody is slow."""
READY_S = 20.0
STEP_S = 0.25


@frozen
class Scenario:
    """What is simulated."""

    seed: int
    size: Size = Size()
    plan: Plan = Plan()
    calm_s: float = 1.0
    """Before the first fault."""
    faults_s: float = 5.0
    settle_s: float = 60.0
    """All must be as it should be again so long after everything was mended."""
    balance: float | None = None
    """How many times the mean the most loaded collector may have, `balance_after_s` after all was mended; None: any."""
    balance_after_s: float = 30.0

    @classmethod
    def drawn(cls, seed: int) -> Scenario:
        """A small fleet, its size from the seed too."""
        rng = random.Random(f"size {seed}")
        size = Size(
            balancers=rng.randint(1, 3),
            collectors=rng.randint(2, 4),
            meters=rng.randint(2, 6),
            spooled=rng.randint(0, 2),
            exporters=rng.randint(0, 2),
            orgs=rng.randint(1, 3),
            readers=rng.randint(0, 2),
            latency_s=rng.choice((0.0005, 0.005, 0.05)),
            write_s=rng.choice((0.002, 0.02, 0.2)),
            **rng.choice(LOADS),
        )
        # Not of everything a little: with some kinds left out, others come together more often.
        plan = Plan(kinds=tuple(rng.sample(KINDS, rng.randint(2, len(KINDS)))), often=rng.choice((0.5, 1.0, 2.0)))
        return cls(seed, size, plan)


@define
class Outcome:
    """What came of it."""

    seed: int
    wrong: list[str] = field(factory=list)
    checksum: int = 0
    notes: int = 0
    faults: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    settled_s: float = 0.0
    """From the mending until all was as it should be."""
    balance: float | None = None
    """The most loaded collector's part of the mean, where that was asked for."""
    acknowledged_records: int = 0
    exported_records: int = 0
    read_records: int = 0
    """By consumers."""
    most_held: dict[str, int] = field(factory=dict)
    drains: dict[str, list[bool]] = field(factory=dict)
    """By process that was drained: each time, whether it said that it had handed on everything."""
    lines: list[str] = field(factory=list)
    """The last of the trace."""


def simulate(scenario: Scenario) -> Outcome:
    """Run one, in this thread, from its beginning to its end."""
    outcome = Outcome(scenario.seed)
    began = time.process_time()
    clock, trace = VirtualClock(), Trace()
    with temporary_directory() as directory, determined(scenario.seed, clock, trace):
        trace.hidden[str(directory)] = "DATA"
        trio.run(_Simulation(scenario, outcome, directory, trace).run, clock=clock)
    outcome.cpu_s = time.process_time() - began
    outcome.virtual_s = clock.now
    outcome.checksum, outcome.notes, outcome.lines = trace.checksum, trace.notes, list(trace.lines)
    return outcome


def replay(seed: int) -> str:
    """How a seed is run again."""
    return f"python -m tools.simulate --seed {seed} --trace"


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """In memory where there is such a place: a sync costs nothing there, and nothing here loses its power."""
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="sapflow-simulated-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@define
class _Simulation:
    scenario: Scenario
    outcome: Outcome
    directory: Path
    trace: Trace

    async def run(self) -> None:
        scenario, trace = self.scenario, self.trace
        rng = random.Random(f"faults {scenario.seed}")
        network = Network(random.Random(f"network {scenario.seed}"), scenario.size.latency_s)
        network.on_sent = lambda socket, data: trace.sent(socket.local, socket.remote, data)
        trio.socket.set_custom_socket_factory(Factory(network))
        fleet = Fleet(scenario.size, self.directory, network, trace, rng)
        fleet.make()
        senders = Senders(fleet)
        invariants = Invariants(fleet, senders)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            nursery.start_soon(fleet.run)
            with trio.move_on_after(READY_S) as starting:
                await fleet.ready()
            if starting.cancelled_caught:
                invariants.look()
                invariants.faults.append(f"not ready within {READY_S:g} s: {invariants.unsettled()}")
            else:
                await self._through(fleet, senders, invariants)
            nursery.cancel_scope.cancel()
        invariants.final()
        outcome = self.outcome
        outcome.drains = {name: process.drains for name, process in fleet.processes.items() if process.drains}
        outcome.wrong, outcome.most_held = invariants.faults, invariants.most_held
        outcome.acknowledged_records = senders.ledger.acknowledged_records
        outcome.read_records = sum(reader.records for reader in invariants.readers)
        outcome.exported_records = sum(session.records for session in senders.sessions.values())

    async def _through(self, fleet: Fleet, senders: Senders, invariants: Invariants) -> None:
        scenario, outcome = self.scenario, self.outcome
        faults = Faults(fleet, scenario.plan)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(invariants.run)
            for reader in invariants.readers:
                nursery.start_soon(reader.run)
            sent = trio.Event()
            nursery.start_soon(_until, senders.run, sent)
            await trio.sleep(scenario.calm_s)
            await faults.run(scenario.faults_s)
            if scenario.balance is not None:
                await trio.sleep(scenario.balance_after_s)
                outcome.balance = await invariants.balance(scenario.balance)
            mended = trio.current_time()
            senders.stop.set()
            with trio.move_on_after(scenario.settle_s) as settling:
                await sent.wait()
                while not invariants.settled():
                    await trio.sleep(STEP_S)
            if settling.cancelled_caught:
                what = invariants.unsettled()
                invariants.faults.append(f"not settled {scenario.settle_s:g} s after all was mended: {what}")
            invariants.look()
            outcome.settled_s, outcome.faults = trio.current_time() - mended, faults.count
            nursery.cancel_scope.cancel()


async def _until(work: object, done: trio.Event) -> None:
    await work()  # type: ignore[operator]
    done.set()
