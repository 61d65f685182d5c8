"""The local coordinator in virtual time: who is there, who was, and life without it."""

from typing import Any

import trio
from trio.testing import MockClock, memory_stream_pair

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


def a_member(host: Host, name: str, views: list[View], token: str = "f-token") -> LocalCoordinator:
    def load() -> dict[str, Any]:
        return {"bytes_per_s": 7}

    return LocalCoordinator(
        name=name,
        role="collector",
        addresses={"link": f"{name}:1"},
        fleet_token=token,
        dial=host.dial,
        report_interval_s=1.0,
        load=load,
        on_change=views.append,
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
    assert membership.expire(5.0) == ["c1"]
    assert membership.view() == View()
