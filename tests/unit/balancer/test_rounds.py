"""Load is evened out and sick collectors are left, with real collectors, balancers and meters in virtual time."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from balancer.placement import PlacementSettings
from meter.batching import Draft
from meter.uplink import UplinkStream
from tests.memory_fleet import MESSAGE, RECORDS, MemoryBalancer, MemoryFleet, ratio, sending


async def exporters(fleet: MemoryFleet, balancer: MemoryBalancer, count: int) -> list[UplinkStream]:
    streams = [balancer.uplink.open_stream(f"org{number % 5}", f"192.0.2.{number}:9") for number in range(count)]
    for stream in streams:
        fleet.nursery.start_soon(sending, stream)
    return streams


async def meters(fleet: MemoryFleet, balancer: MemoryBalancer, count: int) -> list[UplinkStream]:
    streams = []
    for number in range(count):
        uplink = fleet.meter(f"m{number}", balancer)
        streams.append(uplink.open_stream("acme", f"m{number}"))
        fleet.nursery.start_soon(sending, streams[-1])
    return streams


Senders = Callable[[MemoryFleet, MemoryBalancer, int], Awaitable[list[UplinkStream]]]


async def a_fleet(nursery: trio.Nursery, collectors: int = 3) -> tuple[MemoryFleet, MemoryBalancer]:
    fleet = MemoryFleet(nursery)
    await fleet.start(*(f"c{number}" for number in range(1, collectors + 1)))
    balancer = await fleet.balancer()
    nursery.start_soon(fleet.telling)
    await trio.sleep(12)
    return fleet, balancer


def sent(streams: list[UplinkStream]) -> int:
    return sum(stream.outbox.last for stream in streams) * RECORDS


async def all_durable(streams: list[UplinkStream]) -> None:
    with trio.fail_after(30):
        for stream in streams:
            await stream.drained()


@pytest.mark.parametrize("senders", [exporters, meters])
async def test_a_collector_that_was_killed_and_comes_back_has_its_part_after_half_a_minute(
    autojump_clock: MockClock, senders: Senders
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        streams = await senders(fleet, balancer, 36)
        await trio.sleep(10)
        fleet.kill("c2")
        await trio.sleep(1)
        await fleet.start("c2")
        await trio.sleep(30)
        assert ratio(await fleet.rates()) <= 1.25
        counts = balancer.rounds.counts
        assert counts.exporters_moved + counts.meters_moved >= 6
        assert (counts.exporters_moved == 0) == (senders is meters)
        assert all(stream.link is not None for stream in streams)
        # It has come to rest.
        moved = counts.exporters_moved + counts.meters_moved
        await trio.sleep(60)
        assert counts.exporters_moved + counts.meters_moved <= moved + 3
        nursery.cancel_scope.cancel()


async def test_moved_streams_lose_and_double_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery, collectors=2)
        streams: list[UplinkStream] = []
        async with trio.open_nursery() as senders:
            outer, fleet.nursery = fleet.nursery, senders
            streams = await exporters(fleet, balancer, 12)
            fleet.nursery = outer
            uplinks = [fleet.meter(f"m{number}", balancer) for number in range(12)]
            for uplink in uplinks:
                streams.append(uplink.open_stream("acme", "x"))
                senders.start_soon(sending, streams[-1], 0.05)
            await trio.sleep(5)
            await fleet.start("c3", "c4")
            await trio.sleep(40)
            senders.cancel_scope.cancel()
        await all_durable(streams)
        assert balancer.rounds.counts.meters_moved >= 3
        assert fleet.records == sent(streams)
        assert {stream.id: stream.outbox.last for stream in streams} == fleet.log
        nursery.cancel_scope.cancel()


async def test_an_exporters_stream_stays_where_it_is_when_the_next_collector_cannot_be_reached(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery, collectors=1)
        streams = await exporters(fleet, balancer, 10)
        await trio.sleep(5)
        await fleet.start("c2")
        fleet.unreachable.add("c2")
        await trio.sleep(20)
        assert balancer.rounds.counts.exporters_moved > 0
        assert {stream.target for stream in streams} == {"c1"}
        assert fleet.records >= sent(streams) - len(streams) * RECORDS
        nursery.cancel_scope.cancel()


async def test_c18_a_collector_that_says_idle_and_stalls_is_left_within_ten_seconds(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        streams = [*await exporters(fleet, balancer, 15), *await meters(fleet, balancer, 15)]
        await trio.sleep(10)
        fleet.collectors["c1"].acknowledging = False
        fleet.collectors["c1"].reporting.says = {"bytes_per_s": 0.0, "held_bytes": 0}
        await trio.sleep(10)
        on = Counter(link.collector for link in balancer.door.links)
        on.update(stream.target for stream in streams if stream.target in fleet.collectors)
        assert on["c1"] == 0
        assert all(len(stream.outbox) <= 1 for stream in streams)
        assert fleet.records >= sent(streams) - len(streams) * RECORDS
        assert "nothing acknowledged for" in balancer.places.policy.unfit(trio.current_time())["c1"]
        assert balancer.rounds.counts.idle_collectors == 1
        nursery.cancel_scope.cancel()


async def test_c18_meters_whose_links_were_handed_off_are_asked_to_leave_a_collector_that_stalls(
    autojump_clock: MockClock,
) -> None:
    """Its links are its own, and cannot be cut; of its work the balancer sees that of its own streams."""
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        balancer.gives = True
        streams = [*await exporters(fleet, balancer, 6), *await meters(fleet, balancer, 15)]
        await trio.sleep(10)
        stalled = fleet.collectors["c1"]
        stalled.acknowledging = False
        stalled.reporting.says = {"bytes_per_s": 0.0, "held_bytes": 0}
        await trio.sleep(5)
        stuck = {stream for stream in streams if len(stream.outbox) > 2}
        assert stuck
        # A meter that moved just before obeys no other move for half a minute, and is asked again now and then.
        with trio.fail_after(180):
            while stuck:
                await trio.sleep(0.5)
                stuck = {stream for stream in stuck if len(stream.outbox) > 2}
        assert not balancer.door.links
        assert balancer.rounds.counts.links_cut == 0
        assert balancer.rounds.counts.meters_moved > 0
        nursery.cancel_scope.cancel()


async def test_while_the_log_takes_nothing_no_collector_is_left_for_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        streams = [*await exporters(fleet, balancer, 15), *await meters(fleet, balancer, 15)]
        await trio.sleep(10)
        for collector in fleet.collectors.values():
            collector.acknowledging = False
        await trio.sleep(60)
        assert balancer.rounds.counts.idle_collectors == 0
        assert balancer.rounds.counts.links_cut == 0
        assert len(streams) == 30
        nursery.cancel_scope.cancel()


async def test_when_the_coordinator_is_gone_all_goes_on_with_what_collectors_tell(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        streams = await exporters(fleet, balancer, 20)
        await trio.sleep(5)
        balancer.told = False
        await trio.sleep(20)
        streams += await exporters(fleet, balancer, 10)
        await trio.sleep(5)
        assert all(stream.link is not None for stream in streams)
        assert ratio(await fleet.rates()) <= 1.5
        nursery.cancel_scope.cancel()


async def test_a_collector_whose_reports_stop_gets_nothing_new_and_keeps_what_works(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        old = await exporters(fleet, balancer, 9)
        await trio.sleep(5)
        before = Counter(stream.target for stream in old)
        fleet.silent.add("c1")
        await trio.sleep(8)
        new = await exporters(fleet, balancer, 9)
        await trio.sleep(5)
        assert all(stream.target != "c1" for stream in new)
        assert Counter(stream.target for stream in old)["c1"] == before["c1"]
        nursery.cancel_scope.cancel()


async def test_balancers_that_disagree_about_how_many_they_are_come_to_rest(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, first = await a_fleet(nursery, collectors=2)
        fleet.alone = True
        second = await fleet.balancer("b2")
        for balancer in (first, second):
            await exporters(fleet, balancer, 12)
            await meters(fleet, balancer, 12)
        await trio.sleep(10)
        await fleet.start("c3")
        await trio.sleep(40)
        assert ratio(await fleet.rates()) <= 1.25
        moved = [sum((b.rounds.counts.exporters_moved, b.rounds.counts.meters_moved)) for b in (first, second)]
        await trio.sleep(60)
        again = [sum((b.rounds.counts.exporters_moved, b.rounds.counts.meters_moved)) for b in (first, second)]
        assert sum(again) <= sum(moved) + 3
        assert sum(again) <= 48
        nursery.cancel_scope.cancel()


async def test_when_all_collectors_die_streams_wait_and_all_flow_again_when_they_are_back(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery)
        streams = [*await exporters(fleet, balancer, 10), *await meters(fleet, balancer, 10)]
        await trio.sleep(5)
        for name in ("c1", "c2", "c3"):
            fleet.kill(name)
        await trio.sleep(20)
        assert all(stream.link is None for stream in streams)
        await fleet.start("c1", "c2", "c3")
        await trio.sleep(25)
        assert all(stream.link is not None for stream in streams)
        assert ratio(await fleet.rates()) <= 1.4
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("backoff", ["jittered", "all the same"])
async def test_c17_a_herd_is_admitted_at_a_rate_and_all_are_served(
    autojump_clock: MockClock, backoff: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backoff == "all the same":
        monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    async with trio.open_nursery() as nursery:
        fleet = MemoryFleet(nursery)
        await fleet.start("c1", "c2", "c3")
        balancer = await fleet.balancer(placing=PlacementSettings(links_per_s=50.0))
        nursery.start_soon(fleet.telling)
        await trio.sleep(12)
        uplinks = [fleet.meter(f"m{number}", balancer) for number in range(600)]
        streams = [uplink.open_stream("acme", "x") for uplink in uplinks]
        for stream in streams:
            await stream.put(Draft(1, RECORDS, MESSAGE))
        await all_durable(streams)
        busiest = max(
            sum(1 for at, name in fleet.arrivals if name == collector and start <= at < start + 1.0)
            for start, collector in fleet.arrivals
        )
        assert busiest <= 50 + 25 + 1
        assert max(at for at, _ in fleet.arrivals) - fleet.arrivals[0][0] <= 12.0
        nursery.cancel_scope.cancel()


async def test_c25_wires_clogged_one_by_one_and_restored_in_any_order(autojump_clock: MockClock) -> None:
    dice = random.Random(25)
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery, collectors=4)
        streams: list[UplinkStream] = []
        async with trio.open_nursery() as senders:
            for number in range(16):
                streams.append(balancer.uplink.open_stream(f"org{number % 5}", f"192.0.2.{number}:9"))
                streams.append(fleet.meter(f"m{number}", balancer).open_stream("acme", "x"))
            for stream in streams:
                senders.start_soon(sending, stream)
            for _ in range(2):
                for name in dice.sample(list(fleet.collectors), 4):
                    fleet.clog(name)
                    await trio.sleep(dice.uniform(0, 8))
                for name in dice.sample(list(fleet.clogged), 4):
                    await trio.sleep(dice.uniform(0, 8))
                    fleet.unclog(name)
                # All may have ended up on the one that was restored first, and the others begin anew.
                await trio.sleep(60)
            assert all(stream.link is not None for stream in streams)
            assert ratio(await fleet.rates()) <= 1.5
            senders.cancel_scope.cancel()
        await all_durable(streams)
        assert fleet.records == sent(streams)
        assert {stream.id: stream.outbox.last for stream in streams} == fleet.log
        nursery.cancel_scope.cancel()


async def test_why_says_where_a_stream_is_and_what_was_decided(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, balancer = await a_fleet(nursery, collectors=2)
        (exporter,) = await exporters(fleet, balancer, 1)
        (meter,) = await meters(fleet, balancer, 1)
        await trio.sleep(10)
        found = balancer.places.why(exporter.id.hex()[:12])["found"]
        assert [subject["names"] for subject in found] == [["192.0.2.0:9"]]
        assert found[0]["history"][0]["what"].startswith(f"placed on {exporter.target}: least load: ")
        assert balancer.places.why("192.0.2.0")["found"] == found
        link, stream = sorted(balancer.places.why("m0")["found"], key=lambda subject: "collector" in subject)
        assert link["key"] == "link acme/m0"
        assert (stream["key"], stream["meter"], stream["bytes_per_s"] > 0) == (meter.id.hex(), "m0", True)
        assert balancer.places.why("nobody")["found"] == []
        nursery.cancel_scope.cancel()
