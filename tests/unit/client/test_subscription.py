"""The client library, under asyncio and Trio alike."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sapflow.client import Corrupt, Gap, subscribe
from sapflow.errors import Refused, Unreachable
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
        with door.engine._env.begin(write=True) as txn:
            cursor = txn.cursor(door.engine._tables.entries)
            keys = list(cursor.iternext(values=False))
            for key, change in ((keys[3], lambda value: value[:-1] + b"\xff"), (keys[6], lambda value: value[:5])):
                txn.put(key, change(txn.get(key, db=door.engine._tables.entries)), db=door.engine._tables.entries)
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
def test_a_door_that_goes_away_says_from_where_to_read_on(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with subscribe(door.url, "acme", "a-token", at="latest") as batches:
            await anyio.to_thread.run_sync(door.stop)
            async for _ in batches:
                raise AssertionError

    with a_door(tmp_path, batches=4) as door, pytest.raises(Unreachable, match="after position 4"):
        run(backend, work)
