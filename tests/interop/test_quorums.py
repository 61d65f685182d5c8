"""A whole fleet on ZooKeeper and Kafka, whose leaders die, whose majorities are lost, whose ways lead one way only.

Through all of it nothing acknowledged is lost or given twice; what has no quorum waits, and goes on when it is back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
import trio
from attrs import define
from tools.chaos.proxy import FaultProxy, Way
from tools.fleet import Fleet, running
from tools.peers import kafka, zookeeper
from tools.peers.server import Server

from tests.interop.test_fleet_on_kafka import Scenario, a_configuration, in_thread
from tests.peers import needs, slow

pytestmark = [needs("kafka", "zookeeper"), pytest.mark.timeout(240)]

SESSION_S = 3.0
ACTING_S = SESSION_S * 2 / 3
WAIT_S = 40


async def until(is_so: Callable[[], Awaitable[bool]], seconds: float = WAIT_S) -> None:
    with trio.fail_after(seconds):
        while not await is_so():
            await trio.sleep(0.1)


def on_zookeeper(*servers: Server) -> str:
    hosts = ",".join(server.address for server in servers)
    return f'coordinator = "zookeeper"\nzookeeper = "{hosts}"\nsession_timeout_s = {SESSION_S}\nreport_interval_s = 0.5'


async def none_is_acting(scenario: Scenario) -> bool:
    return set((await scenario.held()).values()) == {0}


async def until_led(servers: tuple[Server, ...]) -> Server:
    """Wait until the ensemble has a leader: it."""
    with trio.fail_after(WAIT_S):
        while True:
            for server in servers:
                if server.is_running and await trio.to_thread.run_sync(is_leader, server):
                    return server
            await trio.sleep(0.1)


def is_leader(server: Server) -> bool:
    try:
        return zookeeper.mode(server.port) == "leader"
    except OSError:
        return False


def test_c12_c13_a_leader_of_zookeeper_is_killed_then_its_majority_and_an_owner_is_stopped_beyond_its_session(
    tmp_path: Path,
) -> None:
    with (
        zookeeper.ensemble(tmp_path / "zookeeper") as keepers,
        kafka.broker(tmp_path / "kafka", heap_mb=256) as broker,
    ):
        config = a_configuration(tmp_path / "fleet.toml", broker.port, fleet=on_zookeeper(*keepers))
        with running(tmp_path / "fleet", collectors=2, config=config) as fleet:

            async def faults(scenario: Scenario) -> None:
                await scenario.until_divided()
                leader = await until_led(keepers)
                await in_thread(leader.kill)
                await scenario.progress()
                second = await until_led(keepers)
                await in_thread(second.kill)
                # Nobody can say who owns what: all stop acting in time, and the records wait with their meters.
                await until(lambda: none_is_acting(scenario), ACTING_S + 5)
                await in_thread(leader.start)
                await scenario.progress()
                await in_thread(second.start)
                await scenario.until_divided()
                await an_owner_is_stopped(scenario)

            scenario = Scenario(fleet)
            trio.run(scenario.run, faults, fleet.consume[1])
            status = fleet.status()
    scenario.check()
    assert min(status[name]["counts"]["commit"]["stored"] for name in ("phloem-1", "phloem-2")) > 20


async def an_owner_is_stopped(scenario: Scenario) -> None:
    """C13: beyond its session; what it owned is another's when it wakes, with batches of it in its hands."""
    pid = scenario.fleet.processes()["phloem-1"]
    before = (await scenario.held())["phloem-1"]
    assert before
    os.kill(pid, signal.SIGSTOP)
    try:
        await scenario.progress()
        assert (await scenario.held())["phloem-2"] == 3
    finally:
        os.kill(pid, signal.SIGCONT)
    # It has stopped acting on what it had before it does anything else.
    await trio.sleep(1.0)
    assert sum((await scenario.held()).values()) <= 3
    await scenario.progress()
    await scenario.until_divided()


@define
class OneMore:
    """A node beside the fleet's own, with a way of its own to ZooKeeper."""

    name: str
    control: str

    async def held(self) -> int:
        """How many orgs it holds."""
        return int((await trio.to_thread.run_sync(self._status))["gauges"]["claims_held"])

    def _status(self) -> dict[str, dict[str, float]]:
        with urlopen(f"http://{self.control}/status", timeout=5) as answer:
            found: dict[str, dict[str, float]] = json.load(answer)
            return found


async def is_idle(node: OneMore) -> bool:
    return await node.held() == 0


async def are_divided(scenario: Scenario, node: OneMore) -> bool:
    """Each org is one node's, and each node has one."""
    return sorted([*(await scenario.held()).values(), await node.held()]) == [1, 2]


@contextmanager
def one_more(fleet: Fleet, role: str, directory: Path, address: str) -> Iterator[OneMore]:
    """A process of this role, which reaches ZooKeeper at an address of its own."""
    settings = (fleet.data / "fleet.toml").read_text().splitlines()
    own = {"zookeeper": address, "consume": "127.0.0.1:0"}
    lines = [f'{key} = "{own[key]}"' if (key := line.split(" = ")[0]) in own else line for line in settings]
    config = directory / f"{role}.toml"
    config.write_text("\n".join(lines))
    name = f"{role}-9"
    command = [sys.executable, "-m", "sapflow", role, "--config", str(config), "--name", name]
    with (directory / f"{role}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield OneMore(name, ready["addresses"]["control"])
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@slow("four partitions, each for longer than a session")
def test_c14_a_node_that_is_heard_by_zookeeper_but_does_not_hear_it_or_the_other_way_round_does_no_harm(
    tmp_path: Path,
) -> None:
    with (
        zookeeper.server(tmp_path / "zookeeper") as keeper,
        kafka.broker(tmp_path / "kafka", heap_mb=256) as broker,
    ):
        config = a_configuration(tmp_path / "fleet.toml", broker.port, fleet=on_zookeeper(keeper))
        config.write_text(config.read_text().replace("phloems = 2", "phloems = 1"))
        with running(tmp_path / "fleet", collectors=2, config=config) as fleet:

            async def faults(scenario: Scenario) -> None:
                async with trio.open_nursery() as nursery:
                    proxies = [FaultProxy(keeper.address) for _ in range(2)]
                    for proxy in proxies:
                        await nursery.start(proxy.run)
                    with (
                        one_more(fleet, "phloem", tmp_path, proxies[0].address) as node,
                        one_more(fleet, "collector", tmp_path, proxies[1].address),
                    ):
                        ways: tuple[Way, ...] = ("in", "out")
                        for way in ways:
                            await until(partial(are_divided, scenario, node))
                            with proxies[0].one_way(way):
                                await until(partial(is_idle, node), ACTING_S + 3)
                                # Until long after its session is over the other one does all the work.
                                await trio.sleep(SESSION_S)
                                await scenario.progress()
                                assert await is_idle(node)
                                assert (await scenario.held())["phloem-1"] == 3
                            with proxies[1].one_way(way):
                                await trio.sleep(SESSION_S + 1)
                            await scenario.progress()
                        await until(partial(are_divided, scenario, node))
                    nursery.cancel_scope.cancel()

            scenario = Scenario(fleet)
            trio.run(scenario.run, faults, fleet.consume[0])
    scenario.check()


@slow("three brokers, of which one comes back")
def test_c10_a_leader_of_three_brokers_is_killed_and_what_has_too_few_copies_is_not_acknowledged(
    tmp_path: Path,
) -> None:
    with kafka.cluster(tmp_path / "kafka", brokers=3, heap_mb=256) as brokers:
        config = a_configuration(tmp_path / "fleet.toml", brokers[0].port)
        hosts = ",".join(broker.address for broker in brokers)
        config.write_text(config.read_text().replace(f'"{brokers[0].address}"', f'"{hosts}"'))
        with running(tmp_path / "fleet", collectors=2, config=config) as fleet:

            async def faults(scenario: Scenario) -> None:
                await scenario.until_divided()
                for victim in brokers[:2]:
                    await in_thread(victim.kill)
                    if victim is brokers[0]:
                        await scenario.progress()
                # One copy of three: fewer than the two that an acknowledgement takes.
                with trio.fail_after(WAIT_S):
                    while not await scenario.has_failed():
                        await trio.sleep(0.2)
                before = scenario.ledger.acknowledged_records
                await trio.sleep(2)
                assert scenario.ledger.acknowledged_records == before
                await in_thread(brokers[1].start)
                await scenario.progress()

            scenario = Scenario(fleet)
            trio.run(scenario.run, faults, fleet.consume[1])
    scenario.check()
