"""The coordinator in a real ZooKeeper: members, loads and claims, and what becomes of them when something fails."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_digest_acl
from tools.chaos.proxy import FaultProxy
from tools.peers import zookeeper
from tools.peers.server import Server

from sapflow.cluster.kazoo_client import USER, credential
from sapflow.cluster.paths import Paths
from sapflow.cluster.reconciler import Work
from sapflow.cluster.view import View
from sapflow.cluster.zookeeper import ZooKeeperCoordinator
from tests.peers import needs

pytestmark = needs("zookeeper")

TIMEOUT_S = 2.0
ACTING_S = TIMEOUT_S * 2 / 3
TOKEN = "f-token"
PATHS = Paths("test")


@define(eq=False)
class Started:
    """A running member, and what it was told."""

    coordinator: ZooKeeperCoordinator
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    views: list[View] = field(factory=list)
    lost: list[float] = field(factory=list)

    @property
    def held(self) -> set[str]:
        return self.coordinator.held

    @property
    def incoming(self) -> frozenset[str]:
        return self.coordinator._claimer.reconciler.incoming

    def sees(self) -> set[str]:
        return {member.name for member in self.coordinator.view.members}

    def loads(self) -> dict[str, int]:
        return {name: load.get("bytes_per_s", 0) for name, load in self.coordinator.view.loads.items()}

    def told(self) -> None:
        if not self.held:
            self.lost.append(trio.current_time())

    async def run(self) -> None:
        with self.scope:
            await self.coordinator.run()


def a_member(nursery: trio.Nursery, address: str, name: str, *wanted: str, role: str = "phloem") -> Started:
    started: Started
    coordinator = ZooKeeperCoordinator(
        name=name,
        role=role,
        addresses={"link": f"{name}:1"},
        fleet="test",
        fleet_token=TOKEN,
        hosts=address,
        session_timeout_s=TIMEOUT_S,
        report_interval_s=0.3,
        load=lambda: {"bytes_per_s": len(name)},
        on_change=lambda view: started.views.append(view),
        work=Work(on_claims=lambda: started.told()),
    )
    started = Started(coordinator)
    for org in wanted:
        coordinator.want(org)
    nursery.start_soon(started.run)
    return started


async def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    with trio.fail_after(seconds):
        while not is_so():
            await trio.sleep(0.01)


async def never_both(one: Started, other: Started) -> None:
    """Fail as soon as two members would act on one org, but for one that is handed over."""
    while True:
        both = one.held & other.held
        assert both <= one.incoming | other.incoming
        await trio.sleep(0.01)


@contextmanager
def another_client(server: Server, **options: object) -> Iterator[KazooClient]:
    client = KazooClient(server.address, timeout=TIMEOUT_S, **options)
    client.start(timeout=10)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def operator(server: Server) -> dict[str, object]:
    """What the fleet's operator is known by."""
    return {
        "auth_data": [("digest", f"{USER}:{credential(TOKEN)}")],
        "default_acl": [make_digest_acl(USER, credential(TOKEN), all=True)],
    }


def watches(server: Server) -> int:
    """As the server counts them."""
    text = zookeeper.four_letters(server.port, "mntr").decode()
    found = re.search(r"^zk_watch_count\s+(\d+)$", text, re.MULTILINE)
    assert found, text
    return int(found[1])


async def one_watch_a_path(server: Server, *members: Started) -> None:
    """Wait for it: between a change and the word of it, the server has fired what a member still counts."""
    await until(lambda: watches(server) == sum(member.coordinator.watches for member in members))
    # Members' folder, each member, claims' and pegs' folders: for those who want orgs.
    assert all(member.coordinator.watches <= 3 + len(members) for member in members)


async def test_members_see_each_other_their_loads_and_share_orgs_and_strangers_see_nothing(tmp_path: Path) -> None:
    orgs = {"a.b", "a_b", "x" * 63, "acme", "globex"}
    with zookeeper.server(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            one = a_member(nursery, server.address, "p1", *orgs)
            two = a_member(nursery, server.address, "p.two", *orgs)
            three = a_member(nursery, server.address, "collector-1", role="collector")
            nursery.start_soon(never_both, one, two)
            loads = {"p1": 2, "p.two": 5, "collector-1": 11}
            await until(lambda: one.loads() == two.loads() == three.loads() == loads)
            await until(lambda: one.held | two.held == orgs)
            assert {len(one.held), len(two.held)} == {2, 3}
            await until(lambda: sum(member.coordinator.watches for member in (one, two, three)) == 5 + 5 + 4)
            await one_watch_a_path(server, one, two, three)
            with another_client(server) as stranger, pytest.raises(NoAuthError):
                stranger.get(PATHS.member("p1"))
            with another_client(server, **operator(server)) as client:
                client.create(PATHS.peg("acme"), b"p1")
                await until(lambda: "acme" in one.held)
                client.set(PATHS.peg("acme"), b"p.two")
                await until(lambda: "acme" in two.held)
            two.scope.cancel()
            await until(lambda: one.sees() == {"p1", "collector-1"})
            await until(lambda: one.held == orgs)
            assert one.coordinator.operations_per_change < 2
            nursery.cancel_scope.cancel()


async def test_a_server_killed_and_started_again_finds_everyone_as_before(tmp_path: Path) -> None:
    orgs = {f"org-{number}" for number in range(50)}
    with zookeeper.server(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            one, two = (a_member(nursery, server.address, name, *orgs) for name in ("p1", "p2"))
            nursery.start_soon(never_both, one, two)
            await until(lambda: one.held | two.held == orgs)
            threads = threading.active_count()
            for _ in range(2):
                await trio.to_thread.run_sync(server.kill)
                await until(lambda: not one.held and not two.held, ACTING_S + 0.5)
                assert one.sees() == two.sees() == {"p1", "p2"}
                await trio.to_thread.run_sync(server.start)
                await until(lambda: one.held | two.held == orgs)
            await until(lambda: one.coordinator.watches == two.coordinator.watches == 5)
            await one_watch_a_path(server, one, two)
            assert threading.active_count() <= threads + 1, "but for Trio's own, which idle"
            await until(lambda: one.sees() == two.sees() == {"p1", "p2"})
            nursery.cancel_scope.cancel()


async def test_an_expired_session_ends_acting_and_all_is_registered_and_claimed_again(tmp_path: Path) -> None:
    orgs = {"a", "b", "c"}
    with zookeeper.server(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            member = a_member(nursery, server.address, "p1", *orgs)
            await until(lambda: member.held == orgs)
            session = member.coordinator._znodes.session
            identity = member.coordinator._znodes.client.client_id

            def expire() -> None:
                # Whoever has a session's id and password may close it.
                with another_client(server, client_id=identity):
                    pass

            nursery.start_soon(trio.to_thread.run_sync, expire)
            await until(lambda: bool(member.lost))
            assert member.held == set()
            await until(lambda: member.held == orgs)
            assert member.coordinator._znodes.session != session
            assert member.sees() == {"p1"}
            assert len(member.lost) == 1
            await one_watch_a_path(server, member)
            nursery.cancel_scope.cancel()


async def test_an_owner_that_is_cut_off_stops_in_time_and_another_takes_over(tmp_path: Path) -> None:
    orgs = {"a", "b"}
    with zookeeper.server(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            proxy = FaultProxy(server.address)
            await nursery.start(proxy.run)
            owner = a_member(nursery, proxy.address, "p1", *orgs)
            await until(lambda: owner.held == orgs)
            waiting = a_member(nursery, server.address, "p2", *orgs)
            await until(lambda: len(owner.held) == len(waiting.held) == 1)
            nursery.start_soon(never_both, owner, waiting)
            cut_off_at = trio.current_time()
            nursery.start_soon(proxy.half_open, TIMEOUT_S + 1.5)
            # At 2/3 of the timeout by its own clock; here with the margin that a busy machine needs.
            await until(lambda: not owner.held, TIMEOUT_S)
            assert owner.lost[0] - cut_off_at < TIMEOUT_S
            await until(lambda: waiting.held == orgs, TIMEOUT_S + 2)
            assert trio.current_time() - cut_off_at > ACTING_S
            assert waiting.sees() == {"p2"}
            await until(lambda: waiting.sees() == owner.sees() == {"p1", "p2"})
            await until(lambda: len(owner.held) == len(waiting.held) == 1)
            nursery.cancel_scope.cancel()


async def test_a_connection_that_flaps_each_second_leaves_no_claim_acted_on_too_long(tmp_path: Path) -> None:
    orgs = {f"org-{number}" for number in range(20)}
    with zookeeper.server(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            proxy = FaultProxy(server.address)
            await nursery.start(proxy.run)
            flapping = a_member(nursery, proxy.address, "p1", *orgs)
            steady = a_member(nursery, server.address, "p2", *orgs)
            await until(lambda: flapping.held | steady.held == orgs)
            nursery.start_soon(never_both, flapping, steady)
            for _ in range(4):
                await trio.sleep(1)
                proxy.cut()
            assert flapping.lost == [], "each cut was over well before its time"
            for _ in range(3):
                cut_off_at = trio.current_time()
                async with trio.open_nursery() as half_open:
                    half_open.start_soon(proxy.half_open, ACTING_S + 0.3)
                    await trio.sleep_until(cut_off_at + ACTING_S + 0.1)
                    assert flapping.held == set()
                await trio.sleep(0.6)
            await until(lambda: flapping.held | steady.held == orgs)
            await until(lambda: flapping.coordinator.watches == steady.coordinator.watches == 5)
            await one_watch_a_path(server, flapping, steady)
            await until(lambda: flapping.coordinator.operations_per_change < 2)
            nursery.cancel_scope.cancel()
