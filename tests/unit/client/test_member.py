"""Consumer groups as a program sees them, under asyncio and Trio alike."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from phloem.engine.embedded import EmbeddedLog
from phloem.engine.groups import _packed
from phloem.engine.layout import ORG
from phloem.groups import GroupSettings
from sapflow.client import (
    Ahead,
    Corrupt,
    Extent,
    Gap,
    GroupFigures,
    Member,
    RecordsMissing,
    consume,
    list_groups,
    remove_group,
    reset_group,
)
from sapflow.errors import Fenced, Refused, Unreachable
from tests.unit.client.doors import Door, a_door
from tests.unit.phloem.fake_kafka import FakeKafka

under_each_loop = pytest.mark.parametrize("backend", ["asyncio", "trio"])
on_each_engine = pytest.mark.parametrize("kafka", ["embedded", "kafka"], indirect=True)
WAIT_S = 20


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> FakeKafka | None:
    """What nodes share, if they share a log."""
    return FakeKafka() if request.param == "kafka" else None


def run(backend: str, work: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        with anyio.fail_after(WAIT_S):
            return await work()

    return anyio.run(bounded, backend=backend)


def a_member(door: Door, group: str = "billing", **options: Any) -> AbstractAsyncContextManager[Member]:
    return consume(door.url, "acme", "a-token", group=group, **options)


async def some(member: Member, count: int) -> list[int]:
    """The positions of the next batches."""
    return [(await anext(member)).position for _ in range(count)]


async def the_rest(door: Door, **options: Any) -> list[int]:
    """What a new member is given until the log's end."""
    async with a_member(door, follow=False, **options) as member:
        return [batch.position async for batch in member]


async def the_group(door: Door, group: str = "billing") -> GroupFigures:
    return (await list_groups(door.url, "acme", "a-token", group=group))[0]


@under_each_loop
@on_each_engine
def test_a_group_is_read_on_from_where_it_was_committed(backend: str, kafka: FakeKafka | None, tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door, auto_commit=False) as member:
            assert await some(member, 3) == [1, 2, 3]
            await member.commit()
            assert await some(member, 2) == [4, 5]
        assert await the_rest(door) == [4, 5, 6, 7, 8, 9, 10]
        assert await the_rest(door) == []
        assert await the_rest(door, group="other", at=8) == [9, 10]

    with a_door(tmp_path, batches=10, kafka=kafka) as door:
        run(backend, work)
        door.stop()
        door.start()
        assert run(backend, lambda: the_rest(door)) == []
        door.store(11, 12)
        assert run(backend, lambda: the_rest(door)) == [11, 12]


@under_each_loop
@on_each_engine
def test_a_batch_is_committed_when_the_next_is_asked_for_and_not_when_it_failed(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            await failing()
        rest = await the_rest(door)
        assert rest == list(range(rest[0], 11))
        assert rest[0] <= 4

    async def failing() -> None:
        async with a_member(door) as member:
            async for batch in member:
                # The commit of the one before has been asked for by now; its answer may be on its way.
                if batch.position == 4:
                    raise ZeroDivisionError

    with a_door(tmp_path, batches=10, kafka=kafka) as door:
        run(backend, work)


@under_each_loop
@on_each_engine
def test_what_waits_for_more_is_committed_meanwhile(backend: str, kafka: FakeKafka | None, tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door) as member, anyio.create_task_group() as tasks:

            async def read() -> None:
                async for _ in member:
                    pass

            tasks.start_soon(read)
            while (await the_group(door)).position < 7:
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    with a_door(tmp_path, batches=7, kafka=kafka) as door:
        run(backend, work)


@under_each_loop
@on_each_engine
def test_one_member_reads_and_the_next_takes_over_when_it_is_gone(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def takeover() -> None:
        given: list[int] = []
        async with anyio.create_task_group() as tasks:
            async with a_member(door, auto_commit=False) as first:
                await some(first, 4)
                await first.commit()
                async with a_member(door, auto_commit=False) as second:

                    async def wait() -> None:
                        given.extend(await some(second, 2))

                    async with anyio.create_task_group() as inner:
                        inner.start_soon(wait)
                        while (await the_group(door)).members < 2:
                            await anyio.sleep(0.01)
                        with anyio.move_on_after(0.2):
                            await some(first, 1)
                        assert given == []
                        began = anyio.current_time()
                        await first.close()
                    assert anyio.current_time() - began < 1
            tasks.cancel_scope.cancel()
        assert given == [5, 6]

    with a_door(tmp_path, batches=10, kafka=kafka) as door:
        run(backend, takeover)


@under_each_loop
@on_each_engine
def test_reading_goes_on_over_a_restart_of_the_door_and_nothing_is_given_twice(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def work() -> None:
        given = []
        async with a_member(door, auto_commit=False) as member:
            given += await some(member, 2)
            await member.commit()
            given += await some(member, 2)
            await anyio.to_thread.run_sync(again)
            given += await some(member, 3)
            await anyio.to_thread.run_sync(again)
            # What was done before the restart is committed under the next generation: nobody came in between.
            await member.commit()
            given += await some(member, 2)
        assert given == list(range(1, 10))
        assert member.repeats >= 2
        assert (await the_group(door)).position == 7

    def again() -> None:
        door.stop()
        door.start()

    with a_door(tmp_path, batches=9, kafka=kafka) as door:
        run(backend, work)


@under_each_loop
@on_each_engine
def test_a_program_keeps_its_own_state_with_its_position(backend: str, kafka: FakeKafka | None, tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door, auto_commit=False) as member:
            await some(member, 3)
            await member.commit(b"three")
            await some(member, 1)
            await member.commit()
            with pytest.raises(ValueError, match="a group keeps at most"):
                await member.commit(bytes(1000))
        async with a_member(door) as member:
            await member.turn()
            assert (member.position, member.state) == (4, b"three")

    with a_door(tmp_path, batches=10, groups=GroupSettings(state_bytes=500), kafka=kafka) as door:
        run(backend, work)


@under_each_loop
def test_what_the_log_holds_twice_is_dropped_also_after_a_restart_of_the_program(backend: str, tmp_path: Path) -> None:
    """As a log gives it whose engine may store a batch twice."""

    async def work() -> None:
        async with a_member(door, auto_commit=False, follow=False) as member:
            assert await some(member, 3) == [1, 2, 3]
            await member.commit()
        door.engine.read = twice  # type: ignore[method-assign,assignment]
        async with a_member(door, auto_commit=False, follow=False) as member:
            assert [batch.seq async for batch in member] == [4]
        assert member._link is None
        assert member.repeats == 2

    def twice(org: str, after: int, **_: int) -> list[tuple[int, bytes]]:
        return [(after + 1, entries[(2, 3, 4)[after - 3] - 1][1])] if 3 <= after < 6 else []

    with a_door(tmp_path, batches=6) as door:
        entries = door.engine.read("acme", 0, max_bytes=1 << 20, max_entries=9)
        run(backend, work)


@under_each_loop
@on_each_engine
def test_a_reset_sends_the_member_back_and_what_it_had_not_committed_is_void(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def work() -> None:
        async with a_member(door, auto_commit=False) as member:
            await some(member, 6)
            await member.commit(b"six")
            await some(member, 1)
            found, ahead = await reset_group(door.url, "acme", "a-token", "billing", 2)
            assert (found.position, found.lag.positions, ahead) == (2, 8, 0)
            with pytest.raises(Fenced, match="not committed"):
                await some(member, 10)
            assert member.state == b""
            assert await some(member, 3) == [3, 4, 5]
            await member.commit()
        assert (await the_group(door)).position == 5

    async def by_itself() -> None:
        async with a_member(door, group="auto") as member:
            await some(member, 6)
            await reset_group(door.url, "acme", "a-token", "auto", "earliest")
            given = []
            while not given or given[-1] != 10:
                given += await some(member, 1)
            assert given[given.index(1) :] == list(range(1, 11))

    with a_door(tmp_path, batches=10, kafka=kafka) as door:
        run(backend, work)
        run(backend, by_itself)


@under_each_loop
@on_each_engine
def test_what_was_not_committed_when_another_took_over_is_given_again(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def work() -> None:
        async with a_member(door, auto_commit=False) as first:
            await some(first, 3)
            await first.commit()
            assert await some(first, 5) == [4, 5, 6, 7, 8]
            await first.close()  # as when its connection is lost
            async with a_member(door, auto_commit=False) as second:
                assert await some(second, 3) == [4, 5, 6]
                await second.commit()
            with pytest.raises(Fenced):
                await first.commit()
            assert await some(first, 4) == [7, 8, 9, 10]
            await first.commit()
        assert (await the_group(door)).position == 10

    async def by_itself() -> None:
        """A program that deals with each batch at once has nothing to drop."""
        async with a_member(door, "auto") as first:
            await some(first, 8)
            await first.close()
            async with a_member(door, "auto", auto_commit=False) as second:
                # It begins where the first one's commits had come to.
                while (last := (await some(second, 1))[0]) < 5:
                    pass
                await second.commit()
            rest = list(range(max(8, last) + 1, 11))
            assert await some(first, len(rest)) == rest

    with a_door(tmp_path, batches=10, kafka=kafka) as door:
        run(backend, work)
        run(backend, by_itself)


@under_each_loop
def test_c22_a_gap_is_never_passed_over_in_silence(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door) as member:
            await some(member, 1)
        door.engine.remove_oldest("acme", before_us=6000, keep_bytes=1 << 30)
        found = await the_group(door)
        assert (found.position, found.last, found.lag.entries) == (1, 10, 5)
        assert found.gap == Extent(4, 4, 4 * size, 4 * 24)
        for _ in range(2):  # until somebody says that it is so
            with pytest.raises(RecordsMissing, match=r"4 stored batches after position 1 \(96 records, .*reset acme"):
                await the_rest(door)
        told: list[Any] = []
        assert await the_rest(door, on_missing=told.append) == [6, 7, 8, 9, 10]
        assert told == [Gap(1, 6, 4 * size, 96)]
        assert (await the_group(door)).gap is None

    async def going_on() -> None:
        """The same member, after it was told."""
        await reset_group(door.url, "acme", "a-token", "billing", "earliest")
        async with a_member(door, auto_commit=False) as member:
            await some(member, 5)
            with door.engine.environment._gate:  # so that the door sees neither without the other
                door.store(11, 19, wake=False)
                door.engine.remove_oldest("acme", before_us=15_000, keep_bytes=1 << 30)
            door.store(20, 20)
            with pytest.raises(RecordsMissing) as raised:
                await some(member, 1)
            assert raised.value.what == Gap(10, 15, 4 * size, 96)
            assert await some(member, 6) == [15, 16, 17, 18, 19, 20]

    with a_door(tmp_path, batches=10) as door:
        size = len(door.engine.read("acme", 0, max_bytes=1, max_entries=1)[0][1])
        run(backend, work)
        run(backend, going_on)


@under_each_loop
def test_c24_a_group_ahead_of_the_log_is_told_and_given_what_it_was_not(backend: str, tmp_path: Path) -> None:
    """The log is one of before, as from a backup; what its senders send again the group has had."""

    async def before() -> None:
        async with a_member(door, auto_commit=False) as member:
            await some(member, 10)
            await member.commit()

    async def after() -> None:
        told: list[Any] = []
        async with a_member(door, on_missing=told.append) as member:
            await member.turn()
            door.store(7, 12)
            given = [await anext(member), await anext(member)]
            assert [(batch.position, batch.seq) for batch in given] == [(11, 11), (12, 12)]
            assert told == [Ahead(4, 0)]
        assert (await the_group(door)).position == 12

    with a_door(tmp_path, batches=6) as door:
        for name in ("data.mdb", "synced-length"):
            (tmp_path / f"{name}.of-before").write_bytes((tmp_path / "log" / name).read_bytes())
        door.store(7, 10)
        run(backend, before)
        groups = door.engine.groups("acme")
        door.stop()
        door.engine.close()
        for name in ("data.mdb", "synced-length"):
            (tmp_path / "log" / name).write_bytes((tmp_path / f"{name}.of-before").read_bytes())
        door.engine = EmbeddedLog.open(tmp_path / "log", map_bytes=1 << 28)
        # A backup of the log has the groups of then; here they are those of now, as where they are kept apart.
        with door.engine.environment.writing() as txn:
            for name, group in groups.items():
                txn.put(ORG.pack(1) + name.encode(), _packed(group), db=door.engine.environment.tables.groups)
        door.start()
        run(backend, after)


@under_each_loop
def test_a_group_that_is_stuck_holds_up_nobody_and_is_sent_no_more_than_it_takes(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door, "stuck") as stuck:
            await some(stuck, 1)
            assert door._consumers is not None
            assert await the_rest(door, group="quick") == list(range(1, 201))
            assert door._consumers.counts.entries_out <= 200 + 2 * 3  # a feed that it has, and one on its way

    with a_door(tmp_path, batches=200) as door:
        run(backend, work)


@under_each_loop
def test_c23_a_damaged_entry_is_told_counted_and_the_others_are_given(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        told: list[Any] = []
        async with a_member(door, follow=False, on_missing=told.append) as member:
            async for batch in member:
                if batch.position == 6:
                    member.quarantine(batch, "not what it says")
        assert [(type(one), one.position) for one in told] == [(Corrupt, 4), (Corrupt, 6)]
        assert "checksum" in told[0].reason
        found = await the_group(door)
        assert (found.position, found.quarantined) == (8, 2)

    with a_door(tmp_path, batches=8) as door:
        with door.engine.environment.writing() as txn:
            entries = door.engine.environment.tables.entries
            key = list(txn.cursor(entries).iternext(values=False))[3]
            txn.put(key, bytes(txn.get(key, db=entries))[:-1] + b"\xff", db=entries)
        run(backend, work)
        assert door._consumers is not None
        assert door._consumers.counts.quarantined == 1


@under_each_loop
@on_each_engine
def test_a_following_member_drops_nothing_when_it_is_cancelled_while_it_waits(
    backend: str, kafka: FakeKafka | None, tmp_path: Path
) -> None:
    async def work() -> list[int]:
        found: list[int] = []
        async with a_member(door) as member:
            while len(found) < 7:
                with anyio.move_on_after(0.2):
                    async for batch in member:
                        found.append(batch.position)
                if len(found) < 7:
                    door.store(len(found) + 1, len(found) + 2)
        return found

    with a_door(tmp_path, batches=3, kafka=kafka) as door:
        assert run(backend, work) == [1, 2, 3, 4, 5, 6, 7]


def test_bounds_and_what_is_wrong_are_told(tmp_path: Path) -> None:
    async def work() -> None:
        async with a_member(door), a_member(door, "two"):
            with pytest.raises(Refused, match="has 2 groups, as many as it may"):
                async with a_member(door, "three") as member:
                    await member.turn()
            async with a_member(door):
                with pytest.raises(Refused, match="has 2 members, as many as it may"):
                    async with a_member(door) as member:
                        await member.turn()
            with pytest.raises(Refused, match="has 1 members; stop them first"):
                await remove_group(door.url, "acme", "a-token", "billing")
        with pytest.raises(Refused, match="is no group's name"):
            await the_rest(door, group="No!")
        with pytest.raises(Refused, match="no position"):
            await the_rest(door, group="one", at={"time_us": -1})
        with pytest.raises(Refused, match="does not name that org"):
            await list_groups(door.url, "globex", "a-token")
        with pytest.raises(Refused, match="has no group 'none'"):
            await the_group(door, "none")
        with pytest.raises(Refused, match="has no group 'none'"):
            await reset_group(door.url, "acme", "a-token", "none", "latest")
        while (await the_group(door)).members:
            await anyio.sleep(0.01)
        await remove_group(door.url, "acme", "a-token", "billing")
        assert [one.group for one in await list_groups(door.url, "acme", "a-token")] == ["two"]

    with a_door(tmp_path, batches=1, groups=GroupSettings(max_groups_per_org=2, max_members=2)) as door:
        run("trio", work)
    with pytest.raises(Unreachable):
        run("trio", lambda: the_rest(door))
