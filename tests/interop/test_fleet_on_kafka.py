"""A whole fleet with Kafka as its log: two Phloem nodes divide the orgs; no fault loses a record or gives it twice."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, field
from tools.chaos import Account, count
from tools.fleet import Fleet, running
from tools.loadgen import Ledger, load
from tools.peers import kafka, zookeeper
from tools.peers.server import HOST, Server, free_ports

from sapflow.client import consume, list_groups, subscribe
from sapflow.client.ledger import ledger as tell_ledger
from sapflow.errors import Unreachable
from sapflow.ledger import OrgLedger
from tests.interop.throttle import Throttle
from tests.peers import needs

pytestmark = [needs("kafka"), pytest.mark.timeout(180)]

ORGS = ("acme", "globex", "initech")
PACE = {"meters": 12, "interval_s": 0.2, "records": 8}


@define
class Brokers:
    """One broker, with a direct way to it and a slow one."""

    server: Server
    slow: Throttle


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    direct, behind, before, controller = free_ports(4)
    properties = {
        "listeners": f"DIRECT://{HOST}:{direct},SLOW://{HOST}:{behind},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"DIRECT://{HOST}:{direct},SLOW://{HOST}:{before}",
        "listener.security.protocol.map": "DIRECT:PLAINTEXT,SLOW:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "DIRECT",
        "controller.quorum.voters": f"1@{HOST}:{controller}",
    }
    with (
        Throttle(before, behind).serving() as slow,
        kafka.broker(tmp_path_factory.mktemp("kafka"), port=direct, properties=properties) as server,
    ):
        yield Brokers(server, slow)


def a_configuration(path: Path, kafka_port: int, *, fleet: str = "", phloem: str = "") -> Path:
    path.write_text(
        f'phloems = 2\n[fleet]\n{fleet}\n[phloem]\nengine = "kafka"\nkafka = "{HOST}:{kafka_port}"\n'
        f"kafka_commit_timeout_s = 4.0\nkafka_request_timeout_s = 2.0\nkafka_ledger_interval_s = 0.5\n{phloem}\n"
    )
    return path


@define
class Follower:
    """A consumer that follows an org through all faults, and does not know more than its position and its marks."""

    org: str
    seen: dict[bytes, int] = field(factory=dict)
    twice: int = 0
    """Given again within one subscription."""
    missing: int = 0
    position: int | str = "earliest"

    async def run(self, url: str, token: str) -> None:
        while True:
            try:
                async with subscribe(url, self.org, token, at=self.position) as batches:
                    async for batch in batches:
                        self.position = batch.position
                        last = self.seen.get(batch.stream, 0)
                        self.missing += batch.seq > last + 1
                        self.seen[batch.stream] = max(last, batch.seq)
                    self.twice += batches.repeats
            except Unreachable:
                await trio.sleep(0.2)

    def has_all(self, ledger: Ledger) -> bool:
        acknowledged = ledger.acknowledged.get(self.org, {})
        return all(self.seen.get(stream, 0) >= through for stream, through in acknowledged.items())


@define
class Scenario:
    """A fleet under load, with a follower of each org, and then the account."""

    fleet: Fleet
    ledger: Ledger = field(factory=Ledger)
    account: Account = field(factory=Account)
    followers: list[Follower] = field(factory=lambda: [Follower(org) for org in ORGS])

    async def run(self, faults: Callable[[Scenario], object], door: str) -> None:
        fleet = self.fleet
        tokens = {org: fleet.token(org) for org in ORGS}
        await trio.sleep(1.5)  # collectors read the org table once a second
        stop = trio.Event()
        async with trio.open_nursery() as following:
            for follower in self.followers:
                following.start_soon(follower.run, f"link://{door}", fleet.fleet_token())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(load, fleet.doors["link"], tokens, self.ledger, stop, **PACE))  # type: ignore[arg-type]
                await self.progress()
                await faults(self)  # type: ignore[misc]
                stop.set()
                nursery.cancel_scope.deadline = trio.current_time() + 40
            with trio.fail_after(20):
                while not all(follower.has_all(self.ledger) for follower in self.followers):
                    await trio.sleep(0.1)
            following.cancel_scope.cancel()
        await count(fleet, self.ledger, self.account)

    async def progress(self) -> None:
        """Every org has something new acknowledged."""
        before = {org: self.acknowledged(org) for org in ORGS}
        with trio.fail_after(40):
            while any(self.acknowledged(org) < before[org] + 20 for org in ORGS):
                await trio.sleep(0.1)

    def acknowledged(self, org: str) -> int:
        return sum(self.ledger.acknowledged.get(org, {}).values())

    def check(self) -> None:
        assert self.account.clean, self.account
        assert self.account.acknowledged_records == self.account.sent_records == self.account.stored_records > 500
        assert [(one.twice, one.missing) for one in self.followers] == [(0, 0)] * len(ORGS)

    async def held(self) -> dict[str, int]:
        """How many orgs each node holds."""
        status = await trio.to_thread.run_sync(self.fleet.status)
        nodes = {name: one.get("gauges", {}) for name, one in status.items() if name.startswith("phloem")}
        return {name: gauges.get("claims_held", 0) for name, gauges in nodes.items()}

    async def has_failed(self) -> bool:
        """Whether every node has had a commit that failed."""
        status = await trio.to_thread.run_sync(self.fleet.status)
        nodes = [one["counts"]["commit"]["failures"] for name, one in status.items() if name.startswith("phloem")]
        return min(nodes) > 0

    async def until_divided(self) -> None:
        """Each org is one node's, and each node has one."""
        with trio.fail_after(40):
            while sorted((await self.held()).values()) != [1, 2]:
                await trio.sleep(0.3)


async def sapflow(*arguments: str) -> str:
    """What the command says; it must succeed."""
    command = [sys.executable, "-m", "sapflow", *arguments]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


async def in_thread(work: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(work)


def test_two_nodes_divide_the_orgs_and_one_that_is_killed_or_stopped_loses_and_doubles_nothing(
    brokers: Brokers, tmp_path: Path
) -> None:
    config = a_configuration(tmp_path / "fleet.toml", brokers.server.port)
    with running(tmp_path / "fleet", collectors=2, config=config) as fleet:

        async def faults(scenario: Scenario) -> None:
            await scenario.until_divided()
            fleet.kill("phloem-1")
            await scenario.progress()
            await scenario.until_divided()
            pid = fleet.processes()["phloem-1"]
            os.kill(pid, signal.SIGSTOP)
            try:
                # C13: its orgs become the other's, and it wakes up with batches of them in its hands.
                await scenario.progress()
            finally:
                os.kill(pid, signal.SIGCONT)
            await scenario.progress()

        scenario = Scenario(fleet)
        trio.run(scenario.run, faults, fleet.consume[1])
        status = fleet.status()
    scenario.check()
    assert min(status[name]["counts"]["commit"]["stored"] for name in ("phloem-1", "phloem-2")) > 20
    assert sum(status[name]["counts"]["engine"]["ledger_checkpoints"] for name in ("phloem-1", "phloem-2")) > 5


def test_a_node_that_is_drained_hands_its_orgs_over_and_a_rolling_restart_loses_and_doubles_nothing(
    brokers: Brokers, tmp_path: Path
) -> None:
    config = a_configuration(tmp_path / "fleet.toml", brokers.server.port)
    with running(tmp_path / "fleet", collectors=2, config=config) as fleet:
        data = str(tmp_path / "fleet")

        async def restarts(scenario: Scenario) -> None:
            await scenario.until_divided()
            said = await sapflow("drain", "phloem-1", "--data", data)
            assert "phloem-1 is drained, with all handed on" in said
            assert await scenario.held() == {"phloem-2": 3}
            await scenario.progress()
            await sapflow("restart", "phloem-1", "--data", data)
            await scenario.until_divided()
            said = await sapflow("restart", "phloem-2", "--data", data)
            assert "with all handed on" in said
            await scenario.progress()

        scenario = Scenario(fleet)
        trio.run(scenario.run, restarts, fleet.consume[1])
    scenario.check()


BUDGET = 8 << 20
MAX_RSS = BUDGET + (64 << 20) + (32 << 20)
"""Of a Phloem node: its budget and 64 MiB, and what librdkafka is: five readers and a producer with their threads."""


@needs("zookeeper")
def test_c10_c11_a_broker_that_is_paused_or_slow_is_waited_for_within_the_budget(
    brokers: Brokers, tmp_path: Path
) -> None:
    with zookeeper.server(tmp_path / "zookeeper") as keeper:
        config = a_configuration(
            tmp_path / "fleet.toml",
            brokers.slow.port,
            fleet=f'coordinator = "zookeeper"\nzookeeper = "{keeper.address}"',
            phloem=f"kafka_topic_per_org = true\nbudget_bytes = {BUDGET}",
        )
        with running(tmp_path / "fleet", collectors=2, config=config) as fleet:

            async def faults(scenario: Scenario) -> None:
                await scenario.until_divided()
                await in_thread(brokers.server.pause)
                try:
                    with trio.fail_after(20):
                        while not await scenario.has_failed():
                            await trio.sleep(0.2)
                finally:
                    brokers.server.resume()
                await scenario.progress()
                brokers.slow.delay_s, brokers.slow.bytes_per_s = 0.1, 10_000
                try:
                    await trio.sleep(3)
                finally:
                    brokers.slow.delay_s, brokers.slow.bytes_per_s = 0.0, float("inf")
                await scenario.progress()

            scenario = Scenario(fleet)
            trio.run(scenario.run, faults, fleet.consume[1])
            status = fleet.status()
    scenario.check()
    rss = [int(status[name]["gauges"]["rss_bytes"]) for name in ("phloem-1", "phloem-2")]
    assert max(rss) < MAX_RSS, rss


@define
class GroupReader:
    """A program that reads for a group at one node's door, and is there again whenever that is."""

    org: str
    given: list[tuple[bytes, int]] = field(factory=list)
    repeats: int = 0

    async def run(self, url: str, token: str) -> None:
        while True:
            try:
                async with consume(url, self.org, token, group="billing") as member:
                    async for batch in member:
                        self.given.append((batch.stream, batch.seq))
                        self.repeats = member.repeats
            except Unreachable:
                # At first only, while the node or Kafka does not answer in time; later the member connects by itself.
                assert not self.given
                await trio.sleep(0.2)


def test_a_group_is_read_on_at_another_node_when_one_is_killed_and_nothing_is_lost(
    brokers: Brokers, tmp_path: Path
) -> None:
    """Two programs at two nodes read for a group; each node is killed -9 in turn, and then one is stopped for long."""
    fleet_name = "groups"
    config = a_configuration(tmp_path / "fleet.toml", brokers.server.port, fleet=f'name = "{fleet_name}"')
    readers = [GroupReader("acme"), GroupReader("acme")]
    figures = []
    ledgers: list[OrgLedger] = []
    with running(tmp_path / "fleet", collectors=1, config=config) as fleet:

        async def faults(scenario: Scenario) -> None:
            token = fleet.fleet_token()
            async with trio.open_nursery() as reading:
                for reader, door in zip(readers, fleet.consume, strict=True):
                    reading.start_soon(reader.run, f"link://{door}", token)
                await more(20)
                for node in ("phloem-1", "phloem-2"):
                    fleet.kill(node)
                    await more(20)
                pid = fleet.processes()["phloem-1"]
                os.kill(pid, signal.SIGSTOP)
                try:
                    await scenario.progress()
                    await more(20)
                finally:
                    os.kill(pid, signal.SIGCONT)
                await scenario.progress()
                stored = scenario.ledger.acknowledged["acme"]
                with trio.fail_after(40):
                    while not has(stored):
                        await trio.sleep(0.1)
                    # Both nodes say the same, and that all was committed which was read before.
                    for door in fleet.consume:
                        figures.append((await list_groups(f"link://{door}", "acme", token, timeout_s=20.0))[0])
                        ledgers.append(await tell_ledger(f"link://{door}", "acme", token))
                reading.cancel_scope.cancel()

        def has(stored: dict[bytes, int]) -> bool:
            seen = {number for reader in readers for number in reader.given}
            return all((stream, seq) in seen for stream, last in stored.items() for seq in range(1, last + 1))

        async def more(count: int) -> None:
            before = sum(len(reader.given) for reader in readers)
            with trio.fail_after(40):
                while sum(len(reader.given) for reader in readers) < before + count:
                    await trio.sleep(0.1)

        scenario = Scenario(fleet)
        trio.run(scenario.run, faults, fleet.consume[1])
    scenario.check()
    for reader in readers:
        # What one program was given, it was given once, whatever became of its node.
        assert len(reader.given) == len(set(reader.given)), reader.repeats
    both = set(readers[0].given) & set(readers[1].given)
    # What was given to both was given to the first and not committed when its node was killed or stopped.
    assert len(both) < len(set(readers[0].given) | set(readers[1].given)) / 2, len(both)
    assert {one.generation for one in figures} == {figures[0].generation}
    for told, group in zip(ledgers, figures, strict=True):
        assert told.closes, told.differences()
        assert told.groups["billing"].position >= group.position
        # What was given last is committed with the next.
        assert told.groups["billing"].batches < told.total.batches / 2
