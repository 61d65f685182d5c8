"""The client library, under asyncio and Trio alike."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sapflow.client import Corrupt, Gap, marks, subscribe
from sapflow.entry import LogEntry
from sapflow.errors import Refused, Unreachable
from sapflow.flows.reference import reference_work
from tests.unit.client.doors import a_door

under_each_loop = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run(backend: str, work: Callable[[], Any]) -> Any:
    return anyio.run(work, backend=backend)


def read(backend: str, url: str, token: str = "a-token", org: str = "acme", **options: Any) -> tuple[list[int], Any]:
    """The positions that are read to the end, and the subscription."""

    async def work() -> tuple[list[int], Any]:
        with anyio.fail_after(20):
            async with subscribe(url, org, token, follow=False, **options) as batches:
                found = [batch.position async for batch in batches]
        return found, batches

    found: tuple[list[int], Any] = run(backend, work)
    return found


@under_each_loop
def test_batches_are_read_from_any_position_with_their_columns(backend: str, tmp_path: Path) -> None:
    async def work() -> int:
        octets = 0
        async with subscribe(door.url, "acme", "a-token", at=4, follow=False) as batches:
            async for batch in batches:
                assert (batch.org, batch.exporter, batch.records, batch.seq) == (
                    "acme",
                    "192.0.2.1:9",
                    24,
                    batch.position,
                )
                octets += sum(int(columns.columns["octetDeltaCount"].sum()) for columns in batch.columns())
        return octets

    with a_door(tmp_path, batches=10) as door:
        assert run(backend, work) > 0
        assert read(backend, door.url, at="earliest")[0] == list(range(1, 11))
        assert read(backend, door.url, at=7)[0] == [8, 9, 10]
        assert read(backend, door.url, at={"time_us": 9000})[0] == [9, 10]
        assert read(backend, door.url, at="latest")[0] == []


@under_each_loop
def test_what_is_stored_later_comes_to_whoever_follows(backend: str, tmp_path: Path) -> None:
    async def work() -> list[int]:
        found: list[int] = []
        with anyio.fail_after(20):
            async with subscribe(door.url, "acme", "a-token", at="latest") as batches:
                async for batch in batches:
                    found.append(batch.position)
                    if len(found) < 3:
                        door.store(batch.seq + 1, batch.seq + 1)
                    else:
                        break
        return found

    with a_door(tmp_path, batches=5) as door:

        async def both() -> list[int]:
            async with anyio.create_task_group() as group:

                async def later() -> None:
                    await anyio.sleep(0.3)
                    door.store(6, 6)

                group.start_soon(later)
                return await work()

        assert run(backend, both) == [6, 7, 8]


@under_each_loop
def test_whoever_stops_in_the_midst_goes_on_with_the_next(backend: str, tmp_path: Path) -> None:
    async def some() -> int:
        async with subscribe(door.url, "acme", "a-token", at="earliest", follow=False) as batches:
            assert batches.position == 0
            async for batch in batches:
                if batch.position == 2:
                    break
        return batches.position

    with a_door(tmp_path, batches=6) as door:
        position = run(backend, some)
        assert read(backend, door.url, at=position)[0] == [3, 4, 5, 6]


@under_each_loop
def test_loops_over_one_subscription_go_on_where_the_last_one_stopped(backend: str, tmp_path: Path) -> None:
    async def work() -> list[int]:
        found: list[int] = []
        async with subscribe(door.url, "acme", "a-token", at="earliest", follow=False) as batches:
            for _ in range(2):
                async for batch in batches:
                    found.append(batch.position)
                    break
            found += [batch.position async for batch in batches]
        return found

    with a_door(tmp_path, batches=8) as door:
        assert run(backend, work) == list(range(1, 9))


@under_each_loop
def test_a_loop_that_is_cancelled_while_it_waits_has_lost_nothing(backend: str, tmp_path: Path) -> None:
    async def work() -> list[int]:
        found: list[int] = []
        async with subscribe(door.url, "acme", "a-token", at="earliest") as batches:
            while len(found) < 7:
                with anyio.move_on_after(0.2):
                    async for batch in batches:
                        found.append(batch.position)
                if len(found) < 7:
                    door.store(len(found) + 1, len(found) + 2)
        return found

    with a_door(tmp_path, batches=3) as door:
        assert run(backend, work) == [1, 2, 3, 4, 5, 6, 7]


@under_each_loop
def test_reading_on_after_breaks_misses_nothing_and_gives_nothing_twice(backend: str, tmp_path: Path) -> None:
    """The loop that the library's documentation shows."""

    async def work() -> list[int]:
        found: list[int] = []
        at: str | int = "earliest"
        with anyio.fail_after(30):
            while len(found) < 9:
                try:
                    async with subscribe(door.url, "acme", "a-token", at=at) as batches:
                        at = batches.position
                        async for batch in batches:
                            found.append(batch.position)
                            at = batches.position
                            if len(found) == 9:
                                break
                            if len(found) in (3, 4):
                                await anyio.to_thread.run_sync(again)
                except Unreachable:
                    await anyio.sleep(0.05)
        return found

    def again() -> None:
        door.stop()
        door.start()

    with a_door(tmp_path, batches=9) as door:
        assert run(backend, work) == list(range(1, 10))


@under_each_loop
def test_as_many_streams_come_as_may_and_few_are_remembered(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MAX_STREAMS", 4)
    with a_door(tmp_path) as door:
        work = reference_work(1)
        for number in range(40):
            door.engine.append([("acme", LogEntry(number.to_bytes(16), 1, "192.0.2.1:9", 1, 2, 24, work))])
        found, batches = read(backend, door.url, at="earliest")
    assert found == list(range(1, 41))
    assert len(batches._marks) == 4


def test_what_was_given_before_is_counted_and_not_given_again(tmp_path: Path) -> None:
    """As a log gives it whose engine may store a batch twice."""
    with a_door(tmp_path, batches=3) as door:
        read_twice = door.engine.read("acme", 0, max_bytes=1 << 20, max_entries=3)

        def read_more(org: str, after: int, **_: int) -> list[tuple[int, bytes]]:
            return [(after + 1, read_twice[after % 3][1])] if after < 6 else []

        door.engine.read = read_more  # type: ignore[method-assign,assignment]
        found, batches = read("asyncio", door.url, at="earliest")
    assert (found, batches.repeats, batches.position) == ([1, 2, 3], 3, 6)


@under_each_loop
def test_a_gap_is_told_with_its_size_and_reading_goes_on(backend: str, tmp_path: Path) -> None:
    with a_door(tmp_path, batches=10) as door:
        door.engine.remove_oldest("acme", before_us=6000, keep_bytes=1 << 30)
        found, batches = read(backend, door.url, at=2)
    assert found == [6, 7, 8, 9, 10]
    assert batches.gaps == [Gap(2, 6)]
    assert batches.gaps[0].entries == 3


@under_each_loop
def test_c06_a_damaged_entry_costs_itself_and_is_told_with_its_position(backend: str, tmp_path: Path) -> None:
    with a_door(tmp_path, batches=8) as door:
        with door.engine.environment.writing() as txn:
            entries = door.engine.environment.tables.entries
            cursor = txn.cursor(entries)
            keys = list(cursor.iternext(values=False))
            for key, change in ((keys[3], lambda value: value[:-1] + b"\xff"), (keys[6], lambda value: value[:5])):
                txn.put(key, change(txn.get(key, db=entries)), db=entries)
        found, batches = read(backend, door.url, at="earliest")
    assert found == [1, 2, 3, 5, 6, 8]
    assert [(item.position, type(item)) for item in batches.corrupt] == [(4, Corrupt), (7, Corrupt)]


@under_each_loop
@pytest.mark.parametrize("at", [11, 1 << 62, (1 << 64) - 1, 10**30])
def test_c24_a_position_ahead_of_the_log_is_told_and_reading_begins_at_its_end(
    backend: str, at: int, tmp_path: Path
) -> None:
    with a_door(tmp_path, batches=10) as door:
        found, batches = read(backend, door.url, at=at)
    assert found == []
    assert (batches.position, batches.ahead) == (10, at - 10)


@under_each_loop
def test_what_is_not_accepted_is_refused_with_the_reason(backend: str, tmp_path: Path) -> None:
    with a_door(tmp_path, batches=1) as door:
        with pytest.raises(Refused, match="credential not accepted"):
            read(backend, door.url, token="wrong")
        with pytest.raises(Refused, match="does not name that org"):
            read(backend, door.url, token="g-token")
        with pytest.raises(Refused, match="no org 'nobody'"):
            read(backend, door.url, token="f-token", org="nobody")
        with pytest.raises(Refused, match="no position"):
            read(backend, door.url, at={"time_us": 1 << 70})


@under_each_loop
def test_a_port_that_says_nothing_is_unreachable_and_so_is_one_where_nobody_is(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"link://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unreachable, match=r"did not greet within 0.3 s"):
            read(backend, url, connect_timeout_s=0.3)
    with pytest.raises(Unreachable, match="cannot be reached"):
        read(backend, url)


@under_each_loop
@pytest.mark.parametrize("scheme", ["link", "links"])
def test_a_port_that_cuts_connections_is_unreachable(backend: str, scheme: str) -> None:
    def cut() -> None:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        cutting = threading.Thread(target=cut)
        cutting.start()
        with pytest.raises(Unreachable):
            read(backend, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
        cutting.join(10)


@under_each_loop
def test_a_door_that_goes_away_says_from_where_to_read_on(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with subscribe(door.url, "acme", "a-token", at="latest") as batches:
            await anyio.to_thread.run_sync(door.stop)
            async for _ in batches:
                raise AssertionError

    with a_door(tmp_path, batches=4) as door, pytest.raises(Unreachable, match="after position 4"):
        run(backend, work)
