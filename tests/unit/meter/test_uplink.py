"""Streams through links that die, in virtual time over memory: nothing lost, nothing out of order."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings
from sapflow.errors import Unreachable
from sapflow.link import BatchReceived, Close, Connection, CreditWanted, HelloReceived, Opened, Side


class FarEnd:
    """A collector and an engine in one: acknowledges what it stored; can be killed."""

    def __init__(self) -> None:
        self.log: dict[bytes, list[bytes]] = {}
        self.links = 0
        self.reachable = True
        self.refuse = False
        self.acknowledging = True
        self.deaf: set[str] = set()
        """Orgs of which it stores nothing."""
        self.nursery: trio.Nursery | None = None
        self.scopes: list[trio.CancelScope] = []

    async def dial(self, _target: Target) -> trio.abc.Stream:
        if not self.reachable:
            raise Unreachable("nobody is there")
        ours, theirs = memory_stream_pair()
        assert self.nursery is not None
        self.nursery.start_soon(self.serve, ours)
        return theirs

    def kill(self) -> None:
        for scope in self.scopes:
            scope.cancel()

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.links += 1
        connection = Connection(Side.SERVER)
        streams: dict[int, bytes] = {}
        deaf: set[int] = set()
        async with stream:
            with trio.CancelScope() as scope:
                self.scopes.append(scope)
                async for data in stream:
                    for event in connection.receive(bytes(data)):
                        reply = b""
                        match event:
                            case HelloReceived():
                                reply = (
                                    connection.close(Close.UNAUTHORIZED, "credential not accepted")
                                    if self.refuse
                                    else connection.welcome()
                                )
                            case Opened(handle, stream_id, org):
                                streams[handle] = stream_id
                                deaf |= {handle} if org in self.deaf else set()
                            case CreditWanted(handle, limit):
                                reply = connection.grant(handle, limit)
                            case BatchReceived(handle, batch) if handle not in deaf:
                                log = self.log.setdefault(streams[handle], [])
                                if batch.seq == len(log) + 1:
                                    log.append(batch.payload)
                                if self.acknowledging:
                                    reply = connection.acknowledge(handle, len(log))
                        if reply:
                            await stream.send_all(reply)


def an_uplink(far: FarEnd) -> Uplink:
    return Uplink(FixedTarget(Target("c", "c:1")), far.dial, UplinkSettings(hello={}, max_unacknowledged_bytes=1000))


def a_draft(number: int, size: int = 100) -> Draft:
    return Draft(1, 1, bytes([number]) * size)


async def test_batches_arrive_once_in_order_though_the_link_dies_again_and_again(autojump_clock: MockClock) -> None:
    far = FarEnd()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery
            uplink = an_uplink(far)
            await nursery.start(uplink.run)
            stream = uplink.open_stream("acme", "x")
            for number in range(60):
                await stream.put(a_draft(number))
                if number % 7 == 0:
                    await trio.testing.wait_all_tasks_blocked()
                    far.kill()
            await stream.drained()
            assert far.log == {stream.id: [bytes([number]) * 100 for number in range(60)]}
            assert far.links > 5
            nursery.cancel_scope.cancel()


async def test_w13_acknowledgements_that_are_lost_cost_a_repeat_and_no_double(autojump_clock: MockClock) -> None:
    far = FarEnd()
    far.acknowledging = False
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery
            uplink = an_uplink(far)
            await nursery.start(uplink.run)
            stream = uplink.open_stream("acme", "x")
            for number in range(5):
                await stream.put(a_draft(number))
            await trio.sleep(1)
            assert len(far.log[stream.id]) == 5
            assert stream.batches_acknowledged == 0
            far.acknowledging = True
            far.kill()
            await stream.drained()
            assert len(far.log[stream.id]) == 5
            assert stream.batches_acknowledged == 5
            nursery.cancel_scope.cancel()


async def test_putting_waits_while_too_much_is_not_durable(autojump_clock: MockClock) -> None:
    far = FarEnd()
    far.reachable = False
    async with trio.open_nursery() as nursery:
        far.nursery = nursery
        uplink = an_uplink(far)
        await nursery.start(uplink.run)
        stream = uplink.open_stream("acme", "x")
        with trio.move_on_after(60):
            for number in range(100):
                await stream.put(a_draft(number))
        assert stream.outbox.held_bytes == 1000
        far.reachable = True
        with trio.fail_after(60):
            await stream.drained()
        nursery.cancel_scope.cancel()


async def test_an_ended_stream_is_delivered_and_then_forgotten(autojump_clock: MockClock) -> None:
    far = FarEnd()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery
            uplink = an_uplink(far)
            await nursery.start(uplink.run)
            stream = uplink.open_stream("acme", "x")
            await stream.put(a_draft(1))
            stream.end()
            await stream.drained()
            await trio.testing.wait_all_tasks_blocked()
            assert not uplink.streams
            nursery.cancel_scope.cancel()


async def test_a_refusal_is_told(autojump_clock: MockClock) -> None:
    far = FarEnd()
    far.refuse = True
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery
            uplink = an_uplink(far)
            await nursery.start(uplink.run)
            uplink.open_stream("acme", "x")
            await uplink.was_refused.wait()
            assert "credential not accepted" in str(uplink.refused)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("meters", [200])
async def test_a_herd_that_lost_its_collector_comes_back_spread_in_time(autojump_clock: MockClock, meters: int) -> None:
    far = FarEnd()
    arrivals: list[float] = []
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            far.nursery = nursery

            async def dial(target: Target) -> trio.abc.Stream:
                arrivals.append(trio.current_time())
                return await far.dial(target)

            far.reachable = False
            for _ in range(meters):
                uplink = Uplink(FixedTarget(Target("c", "c:1")), dial, UplinkSettings(hello={}))
                nursery.start_soon(partial(uplink.run))
                uplink.open_stream("acme", "x")
            await trio.sleep(60)
            far.reachable = True
            arrivals.clear()
            await trio.sleep(10)
            assert len(arrivals) == meters
            assert max(sum(1 for at in arrivals if start <= at < start + 0.5) for start in arrivals) < meters / 3
            nursery.cancel_scope.cancel()
