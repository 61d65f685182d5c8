"""The local coordinator in virtual time: who is there, who was, and life without it."""

from typing import Any

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, memory_stream_pair

from sapflow.cluster.claims import Claims
from sapflow.cluster.lines import receive_lines, send_line
from sapflow.cluster.local import LocalCoordinator
from sapflow.cluster.server import CoordinatorServer
from sapflow.cluster.view import Member, Membership, View
from sapflow.errors import Unreachable


class Host:
    """A coordinator that members reach over memory, and that can go away."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.server: CoordinatorServer | None = None
        self._tasks: trio.Nursery | None = None

    async def start(self) -> None:
        await self.nursery.start(self._run)

    def stop(self) -> None:
        assert self._tasks is not None
        self.server = None
        self._tasks.cancel_scope.cancel()

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        server = CoordinatorServer("f-token", lease_s=3.0, tell_interval_s=1.0)
        async with trio.open_nursery() as self._tasks:
            self.server = server
            task_status.started()
            await server.run()

    async def _serve(self, server: CoordinatorServer, stream: trio.abc.Stream) -> None:
        async with stream:
            await server.serve(stream, "peer")

    async def dial(self) -> trio.abc.Stream:
        if self.server is None or self._tasks is None:
            raise Unreachable("nobody is there")
        ours, theirs = memory_stream_pair()
        self._tasks.start_soon(self._serve, self.server, ours)
        return theirs


def a_member(
    host: Host, name: str, views: list[View], role: str = "collector", pegs: dict[str, str] | None = None
) -> LocalCoordinator:
    def load() -> dict[str, Any]:
        return {"bytes_per_s": 7}

    return LocalCoordinator(
        name=name,
        role=role,
        addresses={"link": f"{name}:1"},
        fleet_token="f-token",
        dial=host.dial,
        report_interval_s=1.0,
        load=load,
        on_change=views.append,
        pegs=pegs,
    )


async def test_members_see_each_other_and_their_loads(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        views: list[View] = []
        nursery.start_soon(a_member(host, "c1", views).run)
        nursery.start_soon(a_member(host, "c2", []).run)
        await trio.sleep(3)
        assert {member.name for member in views[-1].of_role("collector")} == {"c1", "c2"}
        assert views[-1].loads == {"c1": {"bytes_per_s": 7}, "c2": {"bytes_per_s": 7}}
        assert views[-1].of_role("phloem") == ()
        nursery.cancel_scope.cancel()


async def test_a_member_that_died_is_gone_for_the_others_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        views: list[View] = []
        nursery.start_soon(a_member(host, "c1", views).run)
        life = trio.CancelScope()

        async def other() -> None:
            with life:
                await a_member(host, "c2", []).run()

        nursery.start_soon(other)
        await trio.sleep(2)
        assert len(views[-1].members) == 2
        life.cancel()
        await trio.sleep(0.1)
        assert {member.name for member in views[-1].members} == {"c1"}
        nursery.cancel_scope.cancel()


async def test_without_the_coordinator_everyone_keeps_the_last_view_and_comes_back(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        views: list[View] = []
        member = a_member(host, "c1", views)
        nursery.start_soon(member.run)
        await trio.sleep(2)
        host.stop()
        await trio.sleep(20)
        assert [m.name for m in member.view.members] == ["c1"]
        await host.start()
        told = len(views)
        await trio.sleep(3)
        assert len(views) > told
        assert [m.name for m in member.view.members] == ["c1"]
        nursery.cancel_scope.cancel()


async def test_each_loss_of_the_coordinator_is_told_once_and_so_is_its_return(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            host = Host(nursery)
            nursery.start_soon(a_member(host, "c1", []).run)
            await trio.sleep(5)
            for _ in range(2):
                await host.start()
                await trio.sleep(5)
                host.stop()
                await trio.sleep(5)
            nursery.cancel_scope.cancel()
    told = [line["event"] for line in logs if line["event"].startswith("coordinator")]
    lost, back = "coordinator lost", "coordinator back"
    assert told == ["coordinator not there yet", back, lost, back, lost]


async def test_without_the_fleets_token_nobody_is_told_anything(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        stream = await host.dial()
        await send_line(stream, {"token": "wrong", "join": {}})
        assert [line async for line in receive_lines(stream)] == []
        nursery.cancel_scope.cancel()


def test_a_lease_ends_when_its_member_is_silent_and_only_its_own_generation_ends_it() -> None:
    membership = Membership(lease_s=3.0)
    old = Member("c1", "collector", "old", 1)
    new = Member("c1", "collector", "new", 2)
    membership.join(old, 0.0)
    membership.join(new, 1.0)
    membership.leave("c1", "old")
    assert membership.view().members == (new,)
    assert not membership.renew("c1", "old", {}, 2.0)
    assert membership.renew("c1", "new", {"x": 1}, 2.0)
    assert membership.expire(4.9) == []
    assert membership.expire(5.0) == [new]
    assert membership.view() == View()


def test_a_claim_is_its_owners_until_released_or_its_lease_ends() -> None:
    claims = Claims(max_orgs=3)
    assert claims.claim(["a", "b"], "p1", "g1") == (["a", "b"], {})
    assert claims.claim(["a", "b", "c"], "p2", "g2") == (["c"], {"a": "p1", "b": "p1"})
    assert claims.claim(["a"], "p1", "g1") == (["a"], {})
    assert claims.claim(["a"], "p1", "g9") == ([], {"a": "p1"}), "one that came back holds nothing of before"
    assert claims.claim(["d"], "p1", "g1") == ([], {"d": ""}), "the table is full"
    assert claims.by_owner() == {"p1": 2, "p2": 1}
    assert claims.release(["a", "c"], "p1", "g1") == ["a"]
    assert claims.left("p1", "g1") == ["b"]
    assert claims.claim(["a", "b"], "p2", "g2") == (["a", "b"], {})


def a_claimer(nursery: trio.Nursery, host: Host, name: str, *orgs: str) -> tuple[LocalCoordinator, trio.CancelScope]:
    member, life = a_member(host, name, [], role="phloem"), trio.CancelScope()
    for org in orgs:
        member.want(org)

    async def run() -> None:
        with life:
            await member.run()

    nursery.start_soon(run)
    return member, life


ORGS = [f"org-{number}" for number in range(20)]


async def test_those_that_start_together_share_and_the_dead_ones_orgs_pass_on(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        (one, life), (two, _) = (a_claimer(nursery, host, name, *ORGS) for name in ("p1", "p2"))
        await trio.sleep(1)
        assert not one.held | two.held, "none claims before it knows of the others"
        await trio.sleep(30)
        assert sorted([*one.held, *two.held]) == sorted(ORGS)
        assert min(len(one.held), len(two.held)) >= 9
        life.cancel()
        await trio.sleep(5)
        assert two.held == set(ORGS)
        nursery.cancel_scope.cancel()


async def test_one_that_comes_later_is_handed_its_share_and_no_org_is_without_a_worker(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        one, _ = a_claimer(nursery, host, "p1", *ORGS)
        await trio.sleep(5)
        assert one.held == set(ORGS)
        two, _ = a_claimer(nursery, host, "p2", *ORGS)
        overlaps = False
        for _ in range(200):
            await trio.sleep(0.1)
            assert one.held | two.held == set(ORGS)
            overlaps = overlaps or bool(one.held & two.held)
        assert overlaps
        assert not one.held & two.held
        assert min(len(one.held), len(two.held)) >= 9
        nursery.cancel_scope.cancel()


async def test_a_released_org_is_claimed_by_whoever_else_wants_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        one, _ = a_claimer(nursery, host, "p1", "acme")
        await trio.sleep(15)
        two, _ = a_claimer(nursery, host, "p2", "acme")
        await trio.sleep(30)
        assert (one.held, two.held) == ({"acme"}, set())
        one.release("acme")
        assert one.held == set()
        await trio.sleep(3)
        assert two.held == {"acme"}
        nursery.cancel_scope.cancel()


async def until_even(members: list[LocalCoordinator]) -> list[set[str]]:
    """What each holds, once nothing has changed for ten seconds: evening out goes an org at a time."""
    with trio.fail_after(300):
        had, since = [set(member.held) for member in members], trio.current_time()
        while trio.current_time() < since + 10:
            await trio.sleep(0.1)
            now = [set(member.held) for member in members]
            if now != had:
                had, since = now, trio.current_time()
    return had


async def test_without_the_coordinator_the_work_goes_on_and_stays_where_it_was(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        members = [a_claimer(nursery, host, name, *ORGS)[0] for name in ("p1", "p2", "p3")]
        had = await until_even(members)
        assert sorted(org for held in had for org in held) == sorted(ORGS)
        host.stop()
        for _ in range(50):
            await trio.sleep(0.1)
            assert [set(member.held) for member in members] == had
        await host.start()
        for _ in range(250):
            await trio.sleep(0.1)
            now = [set(member.held) for member in members]
            assert set().union(*now) == set(ORGS)
            # Who had one too many may hand it over, when not all have told yet what they have.
            assert sum(len(new - old) for new, old in zip(now, had, strict=True)) <= 1
        assert host.server is not None
        assert sum(host.server.claims.by_owner().values()) == len(ORGS)
        assert [member.gauges()["coordinator_alarm"] for member in members] == [0, 0, 0]
        nursery.cancel_scope.cancel()


async def test_a_peg_is_followed_and_ends_with_its_member(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        pegs = {"a": "p2", "b": "p2", "c": "p2", "d": "gone"}
        one, two = (a_member(host, name, [], role="phloem", pegs=pegs) for name in ("p1", "p2"))
        life = trio.CancelScope()

        async def run_two() -> None:
            with life:
                await two.run()

        for member in (one, two):
            for org in ("a", "b", "c", "d"):
                member.want(org)
        nursery.start_soon(one.run)
        await trio.sleep(15)
        assert one.held == {"a", "b", "c", "d"}
        nursery.start_soon(run_two)
        await trio.sleep(30)
        assert two.held >= {"a", "b", "c"}
        life.cancel()
        await trio.sleep(15)
        assert one.held == {"a", "b", "c", "d"}
        nursery.cancel_scope.cancel()


async def test_what_is_told_of_an_org_is_the_latest(autojump_clock: MockClock) -> None:
    """A claim refused and an org freed within one line: the claimer must not believe what is over."""
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        one, two = await host.dial(), await host.dial()
        for stream, name in ((one, "p1"), (two, "p2")):
            join = {"name": name, "role": "phloem", "generation": "g", "pid": 1, "addresses": {}}
            await send_line(stream, {"token": "f-token", "join": join})
        await send_line(one, {"load": {}, "claim": ["acme", "globex"]})
        await trio.sleep(0.1)
        await send_line(two, {"load": {}, "claim": ["acme", "globex"]})
        await send_line(one, {"load": {}, "release": ["acme"]})
        await trio.sleep(0.1)
        others, freed = set(), set()
        with trio.move_on_after(0.1):
            async for line in receive_lines(two):
                freed = freed - set(line.get("others", ())) | set(line.get("freed", ()))
                others = others - set(line.get("freed", ())) | set(line.get("others", ()))
        assert (others, freed) == ({"globex"}, {"acme"})
        nursery.cancel_scope.cancel()


async def test_a_member_that_hangs_loses_its_lease_its_claims_and_its_connection(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        stream = await host.dial()
        join = {"name": "p1", "role": "phloem", "generation": "g", "pid": 1, "addresses": {}}
        await send_line(stream, {"token": "f-token", "join": join})
        await send_line(stream, {"load": {}, "claim": ["acme"]})
        await trio.sleep(0.5)
        assert host.server is not None
        assert host.server.claims.by_owner() == {"p1": 1}
        await trio.sleep(5)
        assert host.server.claims.by_owner() == {}
        assert host.server.membership.view() == View()
        with trio.fail_after(1):
            lines = [line async for line in receive_lines(stream)]
        assert all("view" in line for line in lines)
        nursery.cancel_scope.cancel()


async def test_c13_one_that_comes_back_to_the_same_coordinator_lets_go_of_what_others_have_claimed(
    autojump_clock: MockClock,
) -> None:
    """As after a SIGSTOP: the coordinator was there all the time, so its claims were freed with its connection."""
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        await host.start()
        one, _ = a_claimer(nursery, host, "p1", "acme")
        await trio.sleep(15)
        two, _ = a_claimer(nursery, host, "p2", "acme")
        await trio.sleep(5)
        assert (one.held, two.held) == ({"acme"}, set())
        assert host.server is not None
        (session,) = [found for (name, _), found in host.server._sessions.items() if name == "p1"]
        resumed = trio.Event()

        async def dial_when_resumed() -> trio.abc.Stream:
            await resumed.wait()
            return await host.dial()

        one._dial = dial_when_resumed
        session.cut()
        await trio.sleep(10)
        assert (one.held, two.held) == ({"acme"}, {"acme"}), "a paused one cannot know"
        resumed.set()
        await trio.sleep(1)
        assert (one.held, two.held) == (set(), {"acme"})
        nursery.cancel_scope.cancel()
