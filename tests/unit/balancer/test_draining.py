"""A balancer that is drained says that all was handed on when it was, in virtual time."""

import trio
from trio.testing import MockClock

from balancer.draining import BalancerDrain
from meter.batching import Draft
from meter.intake import Intake, IntakeSettings
from sapflow.runtime.drain import Drain
from tests.memory_fleet import MESSAGE, RECORDS, MemoryFleet


async def test_what_the_udp_door_hands_on_at_its_end_is_waited_for(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fleet = MemoryFleet(nursery)
        await fleet.start("c1", "c2")
        balancer = await fleet.balancer()
        stream = balancer.uplink.open_stream("acme", "192.0.2.1")
        ending = BalancerDrain(
            Intake(balancer.uplink, IntakeSettings()), balancer.door, balancer.steering, balancer.uplink, lambda: False
        )

        async def datagrams() -> None:
            try:
                with ending.first:
                    await trio.sleep_forever()
            finally:
                stream.put_now(Draft(1, RECORDS, MESSAGE))
                ending.datagrams_ended.set()

        nursery.start_soon(datagrams)
        await trio.sleep(5)
        drain = Drain()
        drain.ask(30.0)
        assert await ending.run("b1", drain)
        assert stream.records_acknowledged == fleet.records == RECORDS
        nursery.cancel_scope.cancel()
