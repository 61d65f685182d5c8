"""A collector that is drained hands on what it has while all goes on, in virtual time."""

from functools import partial

import trio
from trio.testing import MockClock, memory_stream_pair

from collector.sessions import Collector
from meter.uplink import UplinkStream
from sapflow.link import Connection, Event, GoAway, Side, Welcomed
from sapflow.link.frames import Hint
from tests.memory_fleet import MESSAGE, MemoryFleet, sending

COLLECTORS = ("c1", "c2", "c3", "c4")
BYTES_PER_S = 2 * len(MESSAGE)
"""Of one sender."""


class Loaded:
    """Four collectors behind a balancer; exporters on its intake and meters through its door, all of them sending."""

    def __init__(self, nursery: trio.Nursery, exporters: int = 40, meters: int = 40) -> None:
        self.fleet = MemoryFleet(nursery)
        self.senders = trio.CancelScope()
        self.streams: list[UplinkStream] = []
        self._nursery = nursery
        self._exporters, self._meters = exporters, meters

    async def start(self) -> None:
        fleet = self.fleet
        await fleet.start(*COLLECTORS)
        self._nursery.start_soon(fleet.telling)
        balancer = await fleet.balancer()
        orgs = ("acme", "globex", "initech", "umbrella")
        self.streams += [balancer.uplink.open_stream(orgs[i % 4], f"e{i}") for i in range(self._exporters)]
        meters = [fleet.meter(f"m{i}", balancer) for i in range(self._meters)]
        self.streams += [meter.open_stream("acme", "exporter") for meter in meters]
        self._nursery.start_soon(self._send)
        await trio.sleep(60)

    async def _send(self) -> None:
        with self.senders:
            async with trio.open_nursery() as nursery:
                for stream in self.streams:
                    nursery.start_soon(partial(sending, stream))

    async def worst(self, seconds: int) -> float:
        """The most that any collector took in a second, of what each has when all have the same."""
        most = 0.0
        for _ in range(seconds):
            before = dict(self.fleet.stored)
            await trio.sleep(1.0)
            taken = max(self.fleet.stored[name] - before.get(name, 0) for name in self.fleet.collectors)
            most = max(most, taken)
        return most / (BYTES_PER_S * len(self.streams) / (len(COLLECTORS) - 1))

    async def account(self) -> tuple[int, int]:
        """Records put and records in the log, when all is durable."""
        self.senders.cancel()
        with trio.fail_after(60):
            for stream in self.streams:
                await stream.drained()
        return sum(stream.records_acknowledged for stream in self.streams), self.fleet.records


async def test_a_drained_collector_loses_and_doubles_nothing_and_overloads_nobody(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        loaded = Loaded(nursery)
        await loaded.start()
        assert {stream.target for stream in loaded.streams[:40]} == set(COLLECTORS)
        sent_again = loaded.fleet.balancers[0].uplink.given.bytes - loaded.fleet.balancers[0].uplink.taken.bytes
        most = 0.0

        async def watch() -> None:
            nonlocal most
            most = await loaded.worst(60)

        async with trio.open_nursery() as both:
            both.start_soon(watch)
            began = trio.current_time()
            assert await loaded.fleet.drain("c2", 30.0)
            assert trio.current_time() - began < 20
        assert most <= 1.25
        assert {stream.target for stream in loaded.streams[:40]} == {"c1", "c3", "c4"}
        uplink = loaded.fleet.balancers[0].uplink
        assert uplink.given.bytes - uplink.taken.bytes - sent_again <= 0.05 * uplink.taken.bytes
        put, stored = await loaded.account()
        assert put == stored > 0
        nursery.cancel_scope.cancel()


async def test_a_collector_without_streams_ends_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet = MemoryFleet(nursery)
        await fleet.start("c1", "c2")
        await fleet.balancer()
        began = trio.current_time()
        assert await fleet.drain("c1", 30.0)
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()


async def test_a_drained_collector_with_nobody_to_take_over_ends_at_its_deadline_and_loses_nothing(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        loaded = Loaded(nursery, exporters=4, meters=4)
        await loaded.start()
        for name in COLLECTORS[1:]:
            loaded.fleet.kill(name)
        await trio.sleep(20)
        began = trio.current_time()
        assert not await loaded.fleet.drain("c1", 10.0)
        assert 9.9 < trio.current_time() - began < 10.5
        await loaded.fleet.start("c1")
        await trio.sleep(30)
        put, stored = await loaded.account()
        assert put == stored > 0
        nursery.cancel_scope.cancel()


async def test_a_link_that_comes_while_it_is_drained_is_sent_away_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet = MemoryFleet(nursery)
        await fleet.start("c1")
        balancer = await fleet.balancer()
        nursery.start_soon(sending, balancer.uplink.open_stream("acme", "exporter"))
        await trio.sleep(5)
        nursery.start_soon(fleet.drain, "c1", 30.0)
        await trio.sleep(10)
        connection, stream = Connection(Side.CLIENT), await fleet.dial("c1")
        await stream.send_all(connection.hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token"))
        told: list[Event] = []
        with trio.fail_after(1):
            while len(told) < 2:
                told += connection.receive(bytes(await stream.receive_some()))
        welcomed, away = told
        assert isinstance(welcomed, Welcomed)
        assert isinstance(away, GoAway)
        assert 19 < away.deadline_s <= 20
        nursery.cancel_scope.cancel()


async def test_links_that_a_balancer_carries_are_sent_away_when_it_asks_and_no_others(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet = MemoryFleet(nursery)
        await fleet.start("c1")
        collector = fleet.collectors["c1"].collector
        meters = [await a_link(nursery, collector, f"192.0.2.7:{port}", "meter", "a-token") for port in (1, 2)]
        balancer = await a_link(nursery, collector, "192.0.2.8:1", "balancer", "f-token")
        asked = {"kind": "away", "deadline_s": 7.0, "peers": ["192.0.2.7:2"]}
        liar, mine = meters[0]
        await liar.send_all(mine.notice(**asked))
        await trio.sleep(1)
        assert not [event for event in await told(*meters[1]) if isinstance(event, GoAway)], "a meter may not ask"
        stream, connection = balancer
        await stream.send_all(connection.notice(**asked))
        await trio.sleep(1)
        assert GoAway(7.0, "its balancer is being drained") in await told(*meters[1])
        assert not [event for event in await told(*meters[0]) if isinstance(event, GoAway)]
        nursery.cancel_scope.cancel()


async def a_link(
    nursery: trio.Nursery, collector: Collector, peer: str, role: str, token: str
) -> tuple[trio.abc.Stream, Connection]:
    ours, theirs = memory_stream_pair()
    nursery.start_soon(collector.serve_link, theirs, peer)
    connection = Connection(Side.CLIENT)
    await ours.send_all(connection.hello(Hint("acme", peer), role=role, name=peer, token=token))
    await trio.sleep(1)
    return ours, connection


async def told(stream: trio.abc.Stream, connection: Connection) -> list[Event]:
    """What has come."""
    found: list[Event] = []
    with trio.move_on_after(0.5):
        while True:
            found += connection.receive(bytes(await stream.receive_some()))
    return found
