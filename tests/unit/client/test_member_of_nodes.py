"""A consumer group whose members are at several nodes of one log: one reads, and what it leaves another takes over."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from phloem.engine.kafka import group_log
from sapflow.client import Extent, Member, consume, list_groups, reset_group, subscription
from sapflow.client.groups import remove_group
from sapflow.errors import Fenced, Refused
from sapflow.link import Ponged
from tests.unit.client.doors import Door, a_door
from tests.unit.phloem.fake_kafka import FakeKafka

WAIT_S = 30


def a_member(door: Door, **options: object) -> AbstractAsyncContextManager[Member]:
    return consume(door.url, "acme", "a-token", group="billing", **options)  # type: ignore[arg-type]


async def some(member: Member, count: int) -> list[int]:
    return [(await anext(member)).position for _ in range(count)]


def with_two_doors(path: Path, work: Callable[[Door, Door], object]) -> None:
    async def bounded() -> None:
        with trio.fail_after(WAIT_S):
            await work(one, two)  # type: ignore[misc]

    kafka = FakeKafka()
    with a_door(path, 10, kafka=kafka, node="one") as one, a_door(path, kafka=kafka, node="two") as two:
        trio.run(bounded)


def test_a_member_at_another_node_stands_by_and_goes_on_where_the_first_had_come_to(tmp_path: Path) -> None:
    async def work(one: Door, two: Door) -> None:
        async with trio.open_nursery() as nursery:
            taken = trio.Event()
            given: list[int] = []

            async def stand_by() -> None:
                async with a_member(two) as member:
                    await member.turn()
                    taken.set()
                    given.extend(await some(member, 4))

            async with a_member(one) as member:
                assert await some(member, 6) == [1, 2, 3, 4, 5, 6]
                nursery.start_soon(stand_by)
                while (await list_groups(two.url, "acme", "a-token"))[0].members < 2:
                    await trio.sleep(0.05)
                assert not taken.is_set()
        assert given == [7, 8, 9, 10]
        for door in (one, two):
            (figures,) = await list_groups(door.url, "acme", "a-token")
            assert (figures.position, figures.last, figures.lag) == (10, 10, Extent(0, None, None, None))

    with_two_doors(tmp_path, work)


def test_a_member_that_stands_by_for_long_is_answered_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "PING_INTERVAL_S", 0.02)
    answered = 0
    take = subscription.Subscription._await_start

    async def counted(self: subscription.Subscription) -> None:
        nonlocal answered
        answered += bool(self._events) and isinstance(self._events[0], Ponged)
        await take(self)

    monkeypatch.setattr(subscription.Subscription, "_await_start", counted)

    async def work(one: Door, two: Door) -> None:
        async with trio.open_nursery() as nursery:
            given: list[int] = []

            async def stand_by() -> None:
                async with a_member(two) as member:
                    given.extend(await some(member, 1))

            async with a_member(one) as member:
                assert await some(member, 1) == [1]
                nursery.start_soon(stand_by)
                while answered < 3:
                    await trio.sleep(0.02)
        assert given == [2]

    with_two_doors(tmp_path, work)


def test_a_reset_at_another_node_sends_the_member_back(tmp_path: Path) -> None:
    async def work(one: Door, two: Door) -> None:
        async with a_member(one) as member:
            await some(member, 6)
            with pytest.raises(Refused, match=r"node one reads .*; stop it first|has 1 members"):
                await remove_group(two.url, "acme", "a-token", "billing")
            figures, _ = await reset_group(two.url, "acme", "a-token", "billing", 2)
            assert figures.position == 2
            given: list[int] = []
            while 3 not in given or given[-1] != 10:  # the other node is told within WATCH_S
                given += await some(member, 1)
            assert given[given.index(3) :] == list(range(3, 11))
            assert member.repeats == 0

    with_two_doors(tmp_path, work)


def test_a_node_that_falls_silent_is_taken_from_and_its_member_fenced_when_it_wakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_log, "LEASE_S", 0.5)

    async def work(one: Door, two: Door) -> None:
        async with a_member(one, auto_commit=False) as member:
            await some(member, 4)
            await member.commit()
            await some(member, 1)
            refresh = one.engine.shared_groups.refresh
            one.engine.shared_groups.refresh = lambda: None  # it hears nothing, and says nothing
            one.engine.shared_groups.mine = dict
            async with a_member(two) as other:
                assert await some(other, 2) == [5, 6]
            one.engine.shared_groups.refresh = refresh
            del one.engine.shared_groups.mine
            (figures,) = await list_groups(two.url, "acme", "a-token")
            assert figures.position == 6
            # What it had not committed was given to the other: it is told, and goes on behind that.
            with pytest.raises(Fenced, match="not committed"):
                await member.commit()
            assert (await some(member, 1))[0] == 7

    with_two_doors(tmp_path, work)
