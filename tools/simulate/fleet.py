"""A simulated fleet: every role's real node, each on a host of its own, and who sends to it.

10.0.0.N  balancers; the first serves the coordinator      10.0.3.N  meters' hosts: some with a spool, on a disk
10.0.1.N  collectors                                        10.0.4.N  plain exporters
10.0.2.1  the Phloem node
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

import balancer.node
import collector.node
import meter.node
import phloem.node
from sapflow.config import (
    BalancerConfig,
    CollectorConfig,
    Config,
    FleetConfig,
    IntakeConfig,
    MeterConfig,
    PhloemConfig,
    SourceConfig,
)
from sapflow.monitor.machine import Machine
from sapflow.orgs import OrgTable
from tools.simulate.disks import Disk
from tools.simulate.hosts import Host
from tools.simulate.processes import RESTART_S, Announce, Process
from tools.simulate.trace import Trace
from tools.simulate.wires import Network

TOKEN = "the fleet's own"
COORDINATOR = "10.0.0.1:4730"
MIB = 1 << 20
BUDGET_BYTES = 4 * MIB
"""Small, so that it fills: as much as one grant of credit may be."""


@frozen
class Size:
    """How many there are of each."""

    balancers: int = 2
    collectors: int = 3
    meters: int = 6
    spooled: int = 1
    """Meters with a spool, each fed by one plain exporter."""
    exporters: int = 2
    orgs: int = 2
    readers: int = 1
    """Consumers, of an org each."""
    interval_s: float = 1.0
    """Between a sender's batches."""
    records: int = 24
    """In a batch."""
    latency_s: float = 0.0005
    """Between two hosts, and as much jitter."""
    write_s: float = 0.002
    """What a synced write takes."""

    @classmethod
    def large(cls) -> Size:
        """The fleet whose speed is measured: 200 meters, 5 collectors, 3 balancers."""
        return cls(balancers=3, collectors=5, meters=198, spooled=2, exporters=4, orgs=10, interval_s=10.0)

    @property
    def org_names(self) -> list[str]:
        """The orgs that there are."""
        return [f"org-{number}" for number in range(1, self.orgs + 1)]


@define
class Fleet:
    """Processes by name, their network and their disks."""

    size: Size
    directory: Path
    network: Network
    trace: Trace
    rng: random.Random
    processes: dict[str, Process] = field(factory=dict)
    hosts: dict[str, Host] = field(factory=dict)
    tokens: dict[str, str] = field(factory=dict)
    configure: Callable[[Config], Config] = lambda config: config
    """What is set otherwise, in every role."""
    map_bytes: int = 256 * MIB
    """The most that the log can be."""

    def make(self) -> None:
        """The directory, the orgs, and all processes; none runs yet."""
        table = OrgTable(self.directory / "orgs.json")
        for org in self.size.org_names:
            table.add(org)
            self.tokens[org] = table.issue_token(org)
            (self.directory / f"{org}.token").write_text(self.tokens[org])
        for number in range(1, self.size.balancers + 1):
            self._role("balancer", number, f"10.0.0.{number}", balancer.node.run)
        for number in range(1, self.size.collectors + 1):
            self._role("collector", number, f"10.0.1.{number}", collector.node.run)
        self._role("phloem", 1, "10.0.2.1", phloem.node.run)
        for number in range(1, self.size.spooled + 1):
            self._spooled(number, f"10.0.3.{number}")

    def host(self, name: str, address: str) -> Host:
        """A host, made when first asked for."""
        found = self.hosts.get(name)
        if found is None:
            found = self.hosts[name] = Host(name, address, len(self.hosts) + 100, disk=Disk(self.size.write_s))
            found.disk.mend()
            self.network.hosts[address] = found
        return found

    def of_role(self, role: str) -> list[Process]:
        """Processes of one role."""
        return [process for name, process in self.processes.items() if name.startswith(role)]

    def log_path(self) -> Path:
        """Where the log is."""
        return self.directory / "log"

    async def run(self) -> None:
        """Keep all processes until cancelled."""
        async with trio.open_nursery() as nursery:
            for process in self.processes.values():
                nursery.start_soon(process.keep, lambda: self.rng.uniform(*RESTART_S))

    async def ready(self) -> None:
        """Until every process is, and knows of all collectors."""
        while not self.is_whole():
            await trio.sleep(0.05)

    def is_whole(self) -> bool:
        """Whether every process runs and is ready, and the balancers see all members."""
        if not all(process.ready for process in self.processes.values()):
            return False
        members = self.size.balancers + self.size.collectors + 1
        return all(len(seen) == members for seen in self._seen())

    def _seen(self) -> Iterator[list[object]]:
        for process in self.of_role("balancer"):
            assert process.status is not None
            yield process.status()["members"]

    def _role(self, role: str, number: int, address: str, run: object) -> None:
        name = f"{role}-{number}"
        host = self.host(name, address)
        config = self.configure(self._config(address, first=number == 1))

        async def start(announce: Announce, machine: Machine) -> None:
            await run(config, name, TOKEN, announce, machine=machine)  # type: ignore[operator]

        self.processes[name] = Process(name, host, start, self.trace)

    def _spooled(self, number: int, address: str) -> None:
        name = f"meter-{number}"
        org = self.size.org_names[number % self.size.orgs]
        door = f"10.0.0.{1 + number % self.size.balancers}:4740"
        config = Config(
            fleet=FleetConfig(connect_timeout_s=2.0),
            intake=IntakeConfig(flush_interval_s=0.2),
            meter=MeterConfig(
                to=f"link://{door}",
                org=org,
                name=name,
                token_file=str(self.directory / f"{org}.token"),
                ipfix_tcp=f"{address}:4739",
                sources=("10.0.0.0/8",),
                control=f"{address}:0",
                spool=str(self.directory / name),
                spool_bytes=8 * MIB,
                window_bytes=MIB,
                pending_bytes=MIB,
                backoff_most_s=2.0,
            ),
        )
        start = partial(_start_meter, config)
        self.processes[name] = Process(name, self.host(name, address), start, self.trace)

    def _config(self, address: str, *, first: bool) -> Config:
        return Config(
            data=str(self.directory),
            fleet=FleetConfig(coordinator_address=COORDINATOR),
            intake=IntakeConfig(flush_interval_s=0.2),
            balancer=BalancerConfig(
                ipfix_tcp=f"{address}:4739",
                udp="",
                link=f"{address}:4740",
                control=f"{address}:0",
                serves_coordinator=first,
                handoff=False,
                budget_bytes=BUDGET_BYTES,
                spool=not first,  # the first one is without: both ways run beside each other
                spool_bytes=8 * MIB,
                sources=tuple(SourceConfig(f"10.0.4.{n}/32", self._org_of(n)) for n in range(1, 250)),
            ),
            collector=evolve(
                CollectorConfig(), link=f"{address}:0", live=f"{address}:0", budget_bytes=BUDGET_BYTES, handoff=False
            ),
            phloem=evolve(
                PhloemConfig(),
                consume=f"{address}:4741",
                budget_bytes=BUDGET_BYTES,
                commit_bytes=MIB,
                map_bytes=self.map_bytes,
            ),
        )

    def _org_of(self, exporter: int) -> str:
        return self.size.org_names[exporter % self.size.orgs]


async def _start_meter(config: Config, announce: Announce, machine: Machine) -> None:
    await meter.node.run(config, announce, machine)
