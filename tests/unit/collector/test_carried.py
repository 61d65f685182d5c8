"""Meters' streams on a collector: their rates are told to balancers, and who of them is asked to move."""

from typing import Any

import trio
from trio.testing import MockClock

from collector.carried import CarriedSettings
from collector.reporting import MOST_STREAMS, Reporting
from collector.sessions import Collector
from sapflow.link import CreditGranted, Event, Moved, Noticed, StreamId
from sapflow.link.frames import Hint, LinkLimits
from sapflow.monitor.process import ProcessFigures
from tests.unit.collector.test_collector import STREAM, Peer, a_batch, a_collector, links


async def say_hello(peer: Peer, hint: Hint | None = None, **fields: Any) -> Event:
    await peer.say(peer.connection.hello(hint or Hint(), **fields))
    return await peer.hear()


async def heard(peer: Peer, kind: type[Event]) -> Any:
    with trio.fail_after(30):
        while not isinstance(event := await peer.hear(), kind):
            continue
    return event


async def move(balancer: Peer, stream: StreamId = STREAM, to: str = "c2") -> None:
    await balancer.say(balancer.connection.notice(kind="move", stream=stream.hex(), to=to, address=""))
    await trio.testing.wait_all_tasks_blocked()


async def a_meter_and_a_balancer(meter: Peer, balancer: Peer, hint: Hint | None = None) -> int:
    await say_hello(meter, hint, role="meter", token="a-token", name="m1")
    await say_hello(balancer, role="balancer", token="f-token", name="b1")
    handle = await meter.open()
    await trio.testing.wait_all_tasks_blocked()
    return handle


async def reporting_of(collector: Collector, nursery: trio.Nursery) -> Reporting:
    reporting = Reporting(collector, ProcessFigures(), 1.0)
    nursery.start_soon(reporting.run)
    return reporting


async def test_a_balancer_is_told_each_second_what_meters_bring(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, balancer), trio.open_nursery() as nursery:
        await reporting_of(collector, nursery)
        handle = await a_meter_and_a_balancer(meter, balancer)
        batch = a_batch(records=20)
        for seq in range(1, 11):
            await meter.send(handle, a_batch(seq, records=20))
            await trio.sleep(1.0)
        notices = [await heard(balancer, Noticed) for _ in range(9)]
        told = notices[-1].fields
        ((stream, org, rate, movable, exporter, name),) = told["streams"]
        assert (stream, org, movable, exporter, name) == (STREAM.hex(), "acme", 1, "192.0.2.1:9", "m1")
        assert abs(rate - batch.size) < 0.1 * batch.size
        assert told["orgs"] == ["acme"]
        assert told["bytes_per_s"] > 0
        nursery.cancel_scope.cancel()


async def test_a_balancer_has_a_stream_moved_and_nobody_else_has(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 4) as (meter, balancer, intake, other):
        handle = await a_meter_and_a_balancer(meter, balancer)
        await say_hello(intake, role="intake", token="f-token")
        await say_hello(other, role="meter", token="g-token")
        for peer in (intake, other):
            await move(peer)
        assert collector.carried.moves_asked == 0
        await move(balancer)
        assert await heard(meter, Moved) == Moved(handle, "c2", "")


async def test_without_the_fleets_credential_nobody_is_a_balancer(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 1) as (peer,):
        await say_hello(peer, role="balancer", token="a-token")
        await trio.testing.wait_all_tasks_blocked()
        assert not collector.watchers
        assert collector.counts.unauthorized == 1


async def test_a_stream_that_was_asked_or_came_by_a_move_is_not_asked_again_soon(autojump_clock: MockClock) -> None:
    collector = a_collector(carried=CarriedSettings(cooldown_s=20.0))
    async with links(collector, 3) as (meter, balancer, second):
        await a_meter_and_a_balancer(meter, balancer)
        for to in ("c2", "c3", "c2"):
            await move(balancer, to=to)
        assert collector.carried.moves_asked == 1
        await say_hello(second, Hint("acme", "m2", "c1"), role="meter", token="a-token", name="m2")
        arrived = StreamId(b"came by a move!!")
        await second.open(stream=arrived)
        await move(balancer, arrived)
        await move(balancer, StreamId(b"is not here at a"))
        assert collector.carried.moves_asked == 1
        await trio.sleep(21)
        await move(balancer, arrived)
        assert collector.carried.moves_asked == 2


async def test_a_meter_that_ignores_moves_is_left_alone_and_keeps_its_link(autojump_clock: MockClock) -> None:
    collector = a_collector(carried=CarriedSettings(timeout_s=2.0, most_ignored=3, left_alone_s=3600.0))
    async with links(collector, 2) as (meter, balancer), trio.open_nursery() as nursery:
        await reporting_of(collector, nursery)
        handle = await a_meter_and_a_balancer(meter, balancer)
        for seq in range(1, 13):
            await move(balancer)
            await trio.sleep(4)
            await meter.say(meter.connection.ping(seq))
            await balancer.say(balancer.connection.ping(seq))
        assert (collector.carried.moves_asked, collector.carried.moves_ignored) == (3, 3)
        assert collector.counts.links == 2
        await meter.say(meter.connection.want(handle, a_batch().size))
        await heard(meter, CreditGranted)
        nursery.cancel_scope.cancel()


async def test_more_streams_than_a_notice_holds_are_told_by_size(autojump_clock: MockClock) -> None:
    collector = a_collector()
    async with links(collector, 2) as (meter, balancer), trio.open_nursery() as nursery:
        await reporting_of(collector, nursery)
        await say_hello(meter, role="meter", token="a-token", name="é" * 100)
        await say_hello(balancer, role="balancer", token="f-token")
        for number in range(MOST_STREAMS + 100):
            await meter.open(stream=StreamId(number.to_bytes(16, "big")))
        await trio.testing.wait_all_tasks_blocked()
        for state in collector.endpoints["acme"].streams.values():
            state.taken_bytes += 1000 * (1 + int.from_bytes(state.id, "big"))
        told = [await heard(balancer, Noticed) for _ in range(2)][-1].fields["streams"]
        assert 50 <= len(told) <= MOST_STREAMS
        assert told[0][0] == (MOST_STREAMS + 99).to_bytes(16, "big").hex()
        nursery.cancel_scope.cancel()
    assert LinkLimits().max_control_bytes == 64 << 10
