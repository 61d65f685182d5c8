"""What the fleet tells a meter's links: hold, move, go away. Make before break, nothing lost, in virtual time."""

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.errors import Unreachable
from sapflow.link import (
    BatchReceived,
    Close,
    Connection,
    CreditWanted,
    HelloReceived,
    Opened,
    Side,
    StreamEnded,
)


class Collector:
    """One link's far end: batches go to the engine that all share; acknowledged when that has them."""

    def __init__(self, engine: dict[bytes, list[int]], stream: trio.abc.Stream, address: str) -> None:
        self.engine = engine
        self.address = address
        self.want = ""
        self.handles: dict[int, bytes] = {}
        self.first_seq: dict[bytes, int] = {}
        self.acknowledging = True
        self.connection = Connection(Side.SERVER)
        self._stream = stream

    async def say(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def serve(self) -> None:
        connection = self.connection
        async with self._stream:
            async for data in self._stream:
                for event in connection.receive(bytes(data)):
                    reply = b""
                    match event:
                        case HelloReceived(hint):
                            self.want = hint.want
                            reply = connection.welcome()
                        case Opened(handle, stream):
                            self.handles[handle] = stream
                        case StreamEnded(handle):
                            del self.handles[handle]
                        case CreditWanted(handle, limit):
                            reply = connection.grant(handle, limit)
                        case BatchReceived(handle, batch):
                            stream = self.handles[handle]
                            self.first_seq.setdefault(stream, batch.seq)
                            log = self.engine.setdefault(stream, [])
                            if batch.seq == len(log) + 1:
                                log.append(batch.records)
                            if self.acknowledging:
                                reply = connection.acknowledge(handle, len(log))
                    if reply:
                        await self.say(reply)
                for reply in connection.take_replies():
                    await self.say(reply)


class SteeringFleet:
    """Collectors reached by any address; every link is in `links`, in the order they were made."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.engine: dict[bytes, list[int]] = {}
        self.links: list[Collector] = []
        self.dialled_at: list[float] = []
        self.unreachable: set[str] = set()
        self._nursery = nursery

    async def dial(self, target: Target) -> trio.abc.Stream:
        self.dialled_at.append(trio.current_time())
        if target.address in self.unreachable:
            raise Unreachable(f"{target.address} is not there")
        ours, theirs = memory_stream_pair()
        link = Collector(self.engine, ours, target.address)
        self.links.append(link)
        self._nursery.start_soon(link.serve)
        return theirs


async def a_meter(nursery: trio.Nursery) -> tuple[SteeringFleet, Uplink, UplinkStream]:
    fleet = SteeringFleet(nursery)
    uplink = Uplink(FixedTarget(Target("the door", "door:1")), fleet.dial, UplinkSettings(hello={}))
    await nursery.start(uplink.run)
    stream = uplink.open_stream("acme", "x")
    await put(stream, 3)
    await wait_all_tasks_blocked()
    return fleet, uplink, stream


async def put(stream: UplinkStream, count: int) -> None:
    for _ in range(count):
        await stream.put(Draft(1, stream.outbox.last + 1, b"x" * 100))


async def test_a_moved_stream_goes_to_the_new_collector_from_its_lowest_unacknowledged(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, _, stream = await a_meter(nursery)
        old = fleet.links[0]
        old.acknowledging = False
        await put(stream, 2)
        await wait_all_tasks_blocked()
        (handle,) = old.handles
        await old.say(old.connection.move(handle, "c2", "10.0.0.2:47"))
        await trio.sleep(1)
        new = fleet.links[1]
        assert (new.address, new.want) == ("10.0.0.2:47", "")
        assert new.first_seq == {stream.id: 4}
        assert not old.handles
        await put(stream, 2)
        await stream.drained()
        assert fleet.engine == {stream.id: [1, 2, 3, 4, 5, 6, 7]}
        nursery.cancel_scope.cancel()


async def test_a_move_without_an_address_comes_back_through_the_door_with_the_collector_in_its_hint(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, uplink, stream = await a_meter(nursery)
        (handle,) = fleet.links[0].handles
        await fleet.links[0].say(fleet.links[0].connection.move(handle, "c2", ""))
        await trio.sleep(1)
        assert (fleet.links[1].address, fleet.links[1].want) == ("door:1", "c2")
        assert list(fleet.links[1].handles.values()) == [stream.id]
        assert uplink.up == ["c2"]
        nursery.cancel_scope.cancel()


async def test_a_stream_stays_where_it_is_when_the_new_collector_cannot_be_reached(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, _, stream = await a_meter(nursery)
        fleet.unreachable.add("10.0.0.2:47")
        old = fleet.links[0]
        (handle,) = old.handles
        await old.say(old.connection.move(handle, "c2", "10.0.0.2:47"))
        await trio.sleep(5)
        await put(stream, 2)
        await stream.drained()
        assert old.handles == {handle: stream.id}
        assert fleet.engine == {stream.id: [1, 2, 3, 4, 5]}
        nursery.cancel_scope.cancel()


async def test_go_away_is_make_before_break(autojump_clock: MockClock) -> None:
    """The old link carries until the new one is up, then ends; the stream is on one of the two at any time."""
    async with trio.open_nursery() as nursery:
        fleet, uplink, stream = await a_meter(nursery)
        old = fleet.links[0]
        await old.say(old.connection.go_away(10.0, "drained"))
        await wait_all_tasks_blocked()
        assert list(old.handles.values()) == [stream.id]
        for _ in range(100):
            await put(stream, 1)
            await trio.sleep(0.1)
        await stream.drained()
        assert list(fleet.links[1].handles.values()) == [stream.id]
        assert len(fleet.links) == 2
        assert fleet.engine[stream.id] == list(range(1, 104))
        assert uplink.up == ["the door"]
        assert not uplink.last_error
        nursery.cancel_scope.cancel()


async def test_at_the_deadline_of_go_away_the_old_link_ends_though_no_other_came_up(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, _, stream = await a_meter(nursery)
        fleet.unreachable.add("door:1")
        await fleet.links[0].say(fleet.links[0].connection.go_away(10.0, "drained"))
        await put(stream, 1)
        await trio.sleep(11)
        assert stream.link is None
        await put(stream, 1)
        fleet.unreachable.clear()
        await stream.drained()
        assert fleet.engine[stream.id] == [1, 2, 3, 4, 5]
        nursery.cancel_scope.cancel()


async def test_a_loop_of_moves_is_obeyed_once_in_a_while_and_loses_nothing(autojump_clock: MockClock) -> None:
    """Every collector sends the stream on to the next at once."""
    async with trio.open_nursery() as nursery:
        fleet, uplink, stream = await a_meter(nursery)

        async def send_on() -> None:
            while True:
                for number, link in enumerate(fleet.links):
                    for handle in list(link.handles):
                        await link.say(link.connection.move(handle, f"c{number + 2}", f"10.0.0.{number + 2}:47"))
                await trio.sleep(0.2)

        nursery.start_soon(send_on)
        for _ in range(120):
            await put(stream, 1)
            await trio.sleep(1)
        await stream.drained()
        assert 4 <= len(fleet.links) <= 6
        assert len(uplink.up) == 1
        assert fleet.engine[stream.id] == list(range(1, 124))
        nursery.cancel_scope.cancel()


async def test_a_link_whose_last_stream_was_moved_ends_and_a_new_stream_makes_another(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        fleet, uplink, stream = await a_meter(nursery)
        old = fleet.links[0]
        (handle,) = old.handles
        await old.say(old.connection.move(handle, "c2", ""))
        await trio.sleep(1)
        assert uplink.up == ["c2"]
        other = uplink.open_stream("acme", "y")
        await put(other, 2)
        await other.drained()
        assert sorted(uplink.up) == ["c2", "the door"]
        assert not uplink.last_error
        assert stream.target == "c2"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("meters", [50])
async def test_hold_is_obeyed_and_no_herd_comes_back(autojump_clock: MockClock, meters: int) -> None:
    async with trio.open_nursery() as nursery:
        fleets = [(await a_meter(nursery))[0] for _ in range(meters)]
        began = trio.current_time()
        for fleet in fleets:
            await fleet.links[0].say(fleet.links[0].connection.hold(20.0, "full"))
        await trio.sleep(60)
        waited = [fleet.dialled_at[1] - began for fleet in fleets]
        assert all(len(fleet.dialled_at) == 2 for fleet in fleets)
        assert 20 <= min(waited) <= max(waited) <= 40.1
        assert max(sum(1 for at in waited if start <= at < start + 1) for start in waited) < meters / 4
        nursery.cancel_scope.cancel()


async def test_a_collector_that_welcomes_and_then_refuses_is_dialled_with_back_off(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, uplink, _ = await a_meter(nursery)

        async def refuse() -> None:
            for number in range(1000):
                while len(fleet.links) <= number or not fleet.links[number].handles:
                    await trio.sleep(0.001)
                await fleet.links[number].say(fleet.links[number].connection.close(Close.CONFLICT, "other content"))

        nursery.start_soon(refuse)
        await trio.sleep(60)
        assert 10 < len(fleet.dialled_at) < 60
        assert "other content" in uplink.last_error
        nursery.cancel_scope.cancel()


async def test_a_collector_that_is_full_is_not_dialled_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet, _, stream = await a_meter(nursery)
        began = trio.current_time()
        await fleet.links[0].say(fleet.links[0].connection.close(Close.OVERLOADED, "full"))
        await trio.sleep(5)
        assert 1 <= fleet.dialled_at[1] - began <= 2.1
        assert list(fleet.links[1].handles.values()) == [stream.id]
        nursery.cancel_scope.cancel()
