"""What exporters had told before the place where reading begins: given first, and as no records."""

from pathlib import Path

import anyio
import pytest

from sapflow.client import ConsumedBatch, OptionsData, consume, subscribe
from sapflow.entry import LogEntry
from tests.unit.client.doors import STREAM, Door, a_door
from tests.unit.flows.flows_made import messages, seen
from tests.unit.phloem.fake_kafka import FakeKafka

under_each_loop = pytest.mark.parametrize("backend", ["asyncio", "trio"])
OTHER = bytes(reversed(STREAM))


def store(door: Door, seq: int, payload: bytes, *, stream: bytes = STREAM, tells: bool = True) -> None:
    door.engine.append([("acme", LogEntry(stream, seq, "192.0.2.1:9", 0, 2, 1, payload, tells=tells))])


def interface(name: str) -> bytes:
    return messages({"ingressInterface": 7, "interfaceName": name}, scopes=1)


def flow(octets: int) -> bytes:
    return messages({"ingressInterface": 7, "octetDeltaCount": octets})


def a_log(door: Door) -> None:
    store(door, 1, interface("old"))
    store(door, 1, interface("another's"), stream=OTHER)
    store(door, 2, flow(1), tells=False)
    store(door, 3, interface("new"))
    store(door, 4, flow(2), tells=False)


def told(options: list[OptionsData]) -> list[object]:
    return [row["interfaceName"] for one in options for columns in [one.columns()] for row in seen(columns)]


@under_each_loop
@pytest.mark.parametrize("engine", ["embedded", "kafka"])
@pytest.mark.parametrize(
    ("at", "names", "positions"),
    [
        ("earliest", [], [1, 2, 3, 4, 5]),
        (3, ["another's", "old"], [4, 5]),
        (4, ["another's", "new"], [5]),
        ("latest", ["another's", "new"], []),
    ],
)
def test_a_subscriber_is_given_what_was_in_force_where_it_begins(
    backend: str, engine: str, at: str | int, names: list[str], positions: list[int], tmp_path: Path
) -> None:
    async def work() -> tuple[list[OptionsData], list[ConsumedBatch]]:
        with anyio.fail_after(20):
            async with subscribe(door.url, "acme", "a-token", at=at, follow=False) as batches:
                assert batches.options == []
                found = [batch async for batch in batches]
                assert batches.position == 5
                return batches.take_options(), found

    with a_door(tmp_path, kafka=FakeKafka() if engine == "kafka" else None) as door:
        a_log(door)
        options, found = anyio.run(work, backend=backend)
        counts = door._consumers.counts if door._consumers is not None else None
    assert sorted(map(str, told(options))) == sorted(names)
    assert [batch.position for batch in found] == positions
    assert {(one.org, one.exporter, one.records) for one in options} <= {("acme", "192.0.2.1:9", 1)}
    assert counts is not None
    assert (counts.options_out, counts.entries_out, counts.records_out) == (len(names), len(positions), len(positions))


@under_each_loop
def test_a_group_s_member_is_given_it_before_its_first_batch(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        with anyio.fail_after(20):
            async with consume(door.url, "acme", "a-token", group="billing", at=3) as member:
                batch = await anext(member)
                assert (batch.position, sorted(map(str, told(member.take_options())))) == (4, ["another's", "old"])
                assert ((await anext(member)).position, member.take_options()) == (5, [])
            # Whoever reads on for the group needs it as well.
            store(door, 5, flow(3), tells=False)
            async with consume(door.url, "acme", "a-token", group="billing") as member:
                batch = await anext(member)
                assert (batch.position, sorted(map(str, told(member.take_options())))) == (6, ["another's", "new"])

    with a_door(tmp_path) as door:
        a_log(door)
        anyio.run(work, backend=backend)


def test_a_member_that_takes_nothing_of_it_keeps_no_more_with_each_connection(tmp_path: Path) -> None:
    async def work() -> None:
        with anyio.fail_after(20):
            async with consume(door.url, "acme", "a-token", group="billing", at=3) as member:
                await anext(member)
                for seq in (5, 6, 7):
                    before = len(member.options)
                    door.stop()
                    store(door, seq, flow(seq), tells=False)
                    door.start()
                    while (await anext(member)).payload != flow(seq):
                        continue
                    assert len(member.options) == before == 2

    with a_door(tmp_path) as door:
        a_log(door)
        anyio.run(work, backend="trio")


def test_a_slow_reader_is_given_no_more_of_it_than_it_has_credit_for(tmp_path: Path) -> None:
    """4,000 streams' worth is more than fits any buffer: it waits for the reader, and all of it comes."""

    async def work() -> int:
        with anyio.fail_after(30):
            async with subscribe(door.url, "acme", "a-token", at="latest", follow=False) as batches:
                assert [batch async for batch in batches] == []
                return len(batches.options)

    with a_door(tmp_path) as door:
        streams = [number.to_bytes(16, "big") for number in range(4000)]
        entries = [LogEntry(one, 1, "192.0.2.1:9", 0, 2, 1, interface("x" * 200), tells=True) for one in streams]
        door.engine.append([("acme", entry) for entry in entries])
        assert anyio.run(work, backend="trio") == 4000
