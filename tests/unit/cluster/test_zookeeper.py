"""The coordinator in ZooKeeper against a server of our own in virtual time."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, field
from tools.simulate.zookeeper import PATHS, FakeClient, Server
from trio.testing import MockClock

from sapflow.cluster.reconciler import Work
from sapflow.cluster.view import View
from sapflow.cluster.zookeeper import ZooKeeperCoordinator
from sapflow.errors import ConfigurationError
from sapflow.runtime.threads import ThreadKind

TIMEOUT_S = 6.0


class Inline(ThreadKind):
    """No thread: virtual time would run ahead of it."""

    async def run(self, work: Callable[[], Any], *, abandon: bool = False) -> Any:
        return work()


@define(eq=False)
class Started:
    """A running member, the last client that it has, and what it was told."""

    coordinator: ZooKeeperCoordinator
    server: Server
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    views: list[View] = field(factory=list)
    lost: list[float] = field(factory=list)
    number: int = 0

    @property
    def client(self) -> FakeClient:
        return self.server.clients[self.number]

    @property
    def held(self) -> set[str]:
        return self.coordinator.held

    def told(self) -> None:
        if not self.held:
            self.lost.append(trio.current_time())

    async def run(self) -> None:
        with self.scope:
            await self.coordinator.run()


def a_member(nursery: trio.Nursery, server: Server, name: str, *wanted: str, role: str = "phloem") -> Started:
    started: Started

    coordinator = ZooKeeperCoordinator(
        name=name,
        role=role,
        addresses={"link": f"{name}:1"},
        fleet="test",
        fleet_token="f-token",
        hosts="nowhere",
        session_timeout_s=TIMEOUT_S,
        report_interval_s=1.0,
        load=lambda: {"bytes_per_s": 7},
        on_change=lambda view: started.views.append(view),
        work=Work(on_claims=lambda: started.told()),
        connect=server.connect,
        threads=Inline("kazoo", 1),
    )
    started = Started(coordinator, server)
    for org in wanted:
        coordinator.want(org)
    nursery.start_soon(started.run)
    return started


async def all_running(server: Server, *members: Started) -> None:
    """Until each has its client."""
    await trio.testing.wait_all_tasks_blocked()
    for member in members:
        znodes = member.coordinator._znodes
        member.number = server.clients.index(znodes.client)  # type: ignore[arg-type]


def orgs(number: int) -> list[str]:
    return [f"org-{index}" for index in range(number)]


def test_a_session_shorter_than_three_reports_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="three report intervals"):
        ZooKeeperCoordinator(
            name="p1",
            role="phloem",
            addresses={},
            fleet="test",
            fleet_token="",
            hosts="",
            session_timeout_s=2.9,
            report_interval_s=1.0,
            load=dict,
            on_change=lambda _view: None,
        )


async def test_members_see_each_other_and_their_loads(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        one, two = a_member(nursery, server, "c1", role="collector"), a_member(nursery, server, "p1")
        await trio.sleep(3)
        assert [member.name for member in one.views[-1].members] == ["c1", "p1"]
        assert one.views[-1].loads == {"c1": {"bytes_per_s": 7}, "p1": {"bytes_per_s": 7}}
        assert one.views[-1].of_role("collector") == (one.coordinator.member,)
        two.scope.cancel()
        await trio.sleep(1)
        assert [member.name for member in one.coordinator.view.members] == ["c1"]
        assert server.watched_twice == []
        nursery.cancel_scope.cancel()
    assert [path for path, node in server.nodes.items() if node.owner] == []


async def test_two_that_start_together_share_and_the_dead_ones_orgs_pass_on(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        one, two = (a_member(nursery, server, name, *orgs(20)) for name in ("p1", "p2"))
        await trio.sleep(6)
        assert one.held | two.held == set(orgs(20))
        assert not one.held & two.held
        assert min(len(one.held), len(two.held)) >= 9
        one.scope.cancel()
        await trio.sleep(5)
        assert two.held == set(orgs(20))
        assert set(server.owners().values()) == {"p2"}
        nursery.cancel_scope.cancel()


async def test_one_that_comes_later_is_given_its_share(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        one = a_member(nursery, server, "p1", *orgs(20))
        await trio.sleep(5)
        assert one.held == set(orgs(20))
        two = a_member(nursery, server, "p2", *orgs(20))
        await trio.sleep(15)
        assert one.held | two.held == set(orgs(20))
        assert min(len(one.held), len(two.held)) >= 9
        nursery.cancel_scope.cancel()


async def test_a_peg_moves_an_org_and_its_end_leaves_it_where_it_is(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        members = {name: a_member(nursery, server, name, "a", "b.c") for name in ("p1", "p2")}
        await trio.sleep(5)
        other = "p2" if "b.c" in members["p1"].held else "p1"
        server.put(PATHS.peg("b.c"), other.encode())
        await trio.sleep(4)
        assert "b.c" in members[other].held
        assert server.owners()["b.c"] == other
        server.remove(PATHS.peg("b.c"))
        await trio.sleep(4)
        assert server.owners().keys() == {"a", "b.c"}
        assert server.watched_twice == []
        nursery.cancel_scope.cancel()


async def test_what_is_released_is_free_and_wanted_again_is_claimed_again(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a", "b")
        await trio.sleep(5)
        member.coordinator.release("a")
        assert member.held == {"b"}
        await trio.sleep(1)
        assert server.owners() == {"b": "p1"}
        member.coordinator.want("a")
        await trio.sleep(3)
        assert member.held == {"a", "b"}
        member.coordinator.release("b")
        member.coordinator.want("b")
        await trio.sleep(1)
        assert member.held == {"a", "b"}
        nursery.cancel_scope.cancel()


async def test_a_silent_server_ends_acting_at_two_thirds_and_the_same_session_gives_it_back(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a", "b")
        await trio.sleep(5)
        silent_from = trio.current_time()
        member.client.answers_are_lost = True
        await trio.sleep(2 / 3 * TIMEOUT_S + 0.01)
        assert member.held == set()
        assert len(member.lost) == 1
        assert 2 / 3 * TIMEOUT_S - 1 <= member.lost[0] - silent_from <= 2 / 3 * TIMEOUT_S
        member.client.answers_are_lost = False
        server.remove(PATHS.claim("b"))
        await trio.sleep(4)
        assert member.held == {"a", "b"}, "b was claimed anew"
        assert len(member.lost) == 1
        assert [member.name for member in member.coordinator.view.members] == ["p1"]
        nursery.cancel_scope.cancel()


async def test_a_short_cut_leaves_claims_acted_on_and_a_long_one_does_not(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        member.client.drops()
        await trio.sleep(2)
        assert member.held == {"a"}
        member.client.comes_back()
        await trio.sleep(2)
        assert (member.held, member.lost) == ({"a"}, [])
        member.client.drops()
        await trio.sleep(4.1)
        assert member.held == set()
        member.client.comes_back()
        await trio.sleep(2)
        assert member.held == {"a"}
        assert len(member.lost) == 1
        nursery.cancel_scope.cancel()


async def test_an_expired_session_ends_acting_at_once_and_everything_is_registered_again(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member, other = a_member(nursery, server, "p1", *orgs(4)), a_member(nursery, server, "c1", role="collector")
        await trio.sleep(5)
        await all_running(server, member, other)
        for client in server.clients:
            client.expires()
        await trio.testing.wait_all_tasks_blocked()
        assert member.held == set()
        assert len(member.lost) == 1
        await trio.sleep(5)
        assert member.held == set(orgs(4))
        assert {len(view.members) for view in member.views[-5:]} == {2}, "none was given up for joining again"
        assert server.watched_twice == []
        nursery.cancel_scope.cancel()


async def test_a_claim_whose_answer_was_lost_is_found_to_be_ours(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        member.client.answers_are_lost = True
        member.coordinator.want("b")
        await trio.sleep(1)
        assert server.owners() == {"a": "p1", "b": "p1"}
        member.client.answers_are_lost = False
        await trio.sleep(5)
        assert member.held == {"a", "b"}
        assert server.watched_twice == []
        nursery.cancel_scope.cancel()


async def test_whatever_happens_a_path_has_one_watch_and_requests_grow_no_faster_than_changes(
    autojump_clock: MockClock,
) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        members = [a_member(nursery, server, f"p{index}", *orgs(30)) for index in range(3)]
        await trio.sleep(10)
        await all_running(server, *members)
        rng = random.Random(5)
        for step in range(200):
            client = rng.choice(server.clients)
            match rng.randrange(6):
                case 0 if client.connected:
                    client.drops()
                case 1 if not client.connected:
                    client.comes_back()
                case 2:
                    client.expires()
                case 3:
                    server.put(PATHS.peg(rng.choice(orgs(30))), rng.choice(["p0", "p1", "p2"]).encode())
                case 4:
                    rng.choice(members).coordinator.release(rng.choice(orgs(30)))
                case _:
                    rng.choice(members).coordinator.want(orgs(step)[-1] if step else "a")
            await trio.sleep(rng.random())
            for member in members:
                assert all(len(watches) == 1 for watches in member.client.watches.values())
        assert server.watched_twice == []
        for client in server.clients:
            if not client.connected:
                client.comes_back()
        await trio.sleep(60)
        ratios = [member.coordinator.operations_per_change for member in members]
        assert all(0.5 <= ratio <= 1.5 for ratio in ratios), ratios
        for member in members:
            assert member.coordinator.watches == len(member.client.watches)
            assert set(member.client.watches) <= set(server.nodes)
        nursery.cancel_scope.cancel()


async def test_a_new_process_of_a_name_takes_it_over_and_the_old_one_yields(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        old = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        new = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        assert (old.held, new.held) == (set(), {"a"})
        assert old.lost
        assert new.coordinator.view.members == (new.coordinator.member,)
        await trio.sleep(30)
        assert new.held == {"a"}, "the old one does not take it back"
        new.scope.cancel()
        await trio.sleep(15)
        assert old.held == {"a"}
        nursery.cancel_scope.cancel()


async def test_nodes_that_are_not_understood_are_nobodys(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a")
        await trio.sleep(1)
        for data in (b"\xff", b"7", b"{}", b'{"name": 3}', b"[" * 100_000):
            server.put(f"{PATHS.members}/junk", data)
            server.put(f"{PATHS.loads}/junk", data)
            server.put(f"{PATHS.pegs}/a b", data)
            server.put(f"{PATHS.claims}/a b", data)
            await trio.sleep(2)
        assert member.held == {"a"}
        assert [member.name for member in member.coordinator.view.members] == ["p1"]
        nursery.cancel_scope.cancel()


async def test_a_fleet_whose_nodes_were_removed_is_made_again(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        for path in sorted(server.nodes, reverse=True):
            server.remove(path)
        await trio.sleep(10)
        assert member.held == {"a"}
        assert PATHS.member("p1") in server.nodes
        nursery.cancel_scope.cancel()


async def test_a_client_that_died_is_replaced(autojump_clock: MockClock) -> None:
    server = Server()
    async with trio.open_nursery() as nursery:
        member = a_member(nursery, server, "p1", "a")
        await trio.sleep(5)
        member.client.dies()
        await trio.sleep(TIMEOUT_S + 10)
        assert len(server.clients) == 1
        assert member.held == {"a"}
        nursery.cancel_scope.cancel()
