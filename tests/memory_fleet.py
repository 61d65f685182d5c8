"""Real collectors, balancers and meters in one process, over memory streams and in virtual time.

The log behind the collectors is a dict that keeps the four rules; a collector can be killed, come back, stall, and lie.
Meters come through a door that places them as the real one does, and carries their bytes without sockets.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field
from trio.testing import memory_stream_pair

from balancer.carried_link import Carriage, CarriedLink
from balancer.doors import LinkDoor
from balancer.idle import IdleCollectors
from balancer.placement import Placement, PlacementSettings
from balancer.places import Places
from balancer.rebalancing import Rebalancing, RebalancingSettings
from balancer.rounds import Rounds
from balancer.steering import Steering
from collector.draining import drain_collector
from collector.reporting import Reporting
from collector.sessions import Collector, CollectorSettings
from meter.batching import Draft
from meter.uplink import FixedTarget, Target, Uplink, UplinkSettings, UplinkStream
from sapflow.cluster.view import Member, View
from sapflow.errors import Unreachable
from sapflow.flows.reference import reference_work
from sapflow.link import BatchReceived, Connection, CreditWanted, Opened, Side, Welcomed
from sapflow.link.frames import Hint
from sapflow.monitor.process import ProcessFigures
from sapflow.runtime.drain import Drain

MESSAGE = reference_work(1)
RECORDS = 24


class MayLie(Reporting):
    """What it says of its load can be made other than the truth."""

    def __init__(self, collector: Collector) -> None:
        super().__init__(collector, ProcessFigures(), 1.0)
        self.says: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        return super().load() | self.says


class Wire(trio.abc.Stream):
    """A stream on which nothing moves while `fleet` has the collector's wires clogged."""

    def __init__(self, stream: trio.abc.Stream, fleet: "MemoryFleet", name: str) -> None:
        self._stream = stream
        self._fleet = fleet
        self._name = name

    async def _open(self) -> None:
        while (clogged := self._fleet.clogged.get(self._name)) is not None:
            await clogged.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        await self._open()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._open()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._open()

    async def aclose(self) -> None:
        await self._stream.aclose()


@define(eq=False)
class MemoryCollector:
    """A real collector with a log behind it."""

    name: str
    fleet: "MemoryFleet"
    collector: Collector
    reporting: MayLie
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    acknowledging: bool = True
    nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                nursery.start_soon(self.reporting.run)
                ours, theirs = memory_stream_pair()
                nursery.start_soon(self.collector.serve_link, ours, "phloem")
                nursery.start_soon(self._store, theirs)
                task_status.started()
                await trio.sleep_forever()

    async def _store(self, stream: trio.abc.Stream) -> None:
        connection = Connection(Side.CLIENT)
        streams: dict[int, bytes] = {}
        log = self.fleet.log
        await stream.send_all(connection.hello(Hint(), role="phloem", name="p1", token="f-token"))
        async for data in stream:
            replies: list[bytes] = []
            for event in connection.receive(bytes(data)):
                match event:
                    case Welcomed():
                        replies.append(connection.subscribe(orgs=["*"]))
                    case Opened(handle, stream_id):
                        streams[handle] = stream_id
                    case CreditWanted(handle, limit):
                        replies.append(connection.grant(handle, limit))
                    case BatchReceived(handle, batch) if self.acknowledging:
                        mark = log[streams[handle]]
                        if batch.seq == mark + 1 or not mark:
                            log[streams[handle]] = mark = batch.seq
                            self.fleet.stored[self.name] += batch.size
                            self.fleet.records += batch.records
                        elif batch.seq > mark:
                            replies.append(connection.rewind(handle, mark))
                        replies.append(connection.acknowledge(handle, mark))
            replies += connection.take_replies()
            if replies:
                await stream.send_all(b"".join(replies))


@define(eq=False)
class MemoryBalancer:
    """A balancer's real parts."""

    places: Places
    uplink: Uplink
    door: LinkDoor
    steering: Steering
    rounds: Rounds
    told: bool = True
    """Whether it is still told of the fleet by the coordinator."""
    gives: bool = False
    """Whether links are given to their collectors, socket and all, and not carried."""


class MemoryFleet:
    """Collectors by name, balancers, and the log that all write to."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.collectors: dict[str, MemoryCollector] = {}
        self.balancers: list[MemoryBalancer] = []
        self.log: defaultdict[bytes, int] = defaultdict(int)
        """The mark of each stream."""
        self.stored: defaultdict[str, int] = defaultdict(int)
        """Bytes by the collector that they came through."""
        self.records = 0
        self.unreachable: set[str] = set()
        self.silent: set[str] = set()
        """Collectors that tell nothing of themselves to anybody."""
        self.clogged: dict[str, trio.Event] = {}
        self.arrivals: list[tuple[float, str]] = []
        """When each meter's link was placed, and where."""
        self.alone = False
        """Whether each balancer believes to be the only one."""

    async def start(self, *names: str) -> None:
        for name in names:
            settings = CollectorSettings(name, "f-token", budget_bytes=8 << 20)
            collector = Collector(settings, {"a-token": "acme", "g-token": "globex"}.get)
            one = self.collectors[name] = MemoryCollector(name, self, collector, MayLie(collector))
            await self.nursery.start(one.run)
        self.tell()

    def kill(self, name: str) -> None:
        self.collectors.pop(name).scope.cancel()
        self.tell()

    async def drain(self, name: str, within_s: float) -> bool:
        """End it gently; whether all of it was handed on in time."""
        one, drain = self.collectors[name], Drain()
        drain.ask(within_s)
        clean = await drain_collector(one.collector, one.reporting, drain)
        self.kill(name)
        return clean

    def clog(self, name: str) -> None:
        """Stop all that moves to and from a collector, its log apart; nothing is closed."""
        self.clogged[name] = trio.Event()

    def unclog(self, name: str) -> None:
        self.clogged.pop(name).set()

    def tell(self) -> None:
        """What the coordinator tells: who is there, and their loads."""
        members = [Member(name, "collector", "g", 1, {"link": name}) for name in self.collectors]
        loads = {name: one.reporting.load() for name, one in self.collectors.items() if name not in self.silent}
        for name in self.silent & self.collectors.keys():
            self.collectors[name].collector.watchers.clear()
        names = [balancer.places.name for balancer in self.balancers]
        for balancer in self.balancers:
            if balancer.told:
                seen = [balancer.places.name] if self.alone else names
                view = View((*members, *(Member(name, "balancer", "g", 1) for name in seen)), loads)
                balancer.places.on_change(view)
                balancer.steering.collectors(balancer.places.addresses)

    async def telling(self) -> None:
        while True:
            await trio.sleep(1.0)
            self.tell()

    async def dial(self, address: str) -> trio.abc.Stream:
        collector = self.collectors.get(address)
        if collector is None or address in self.unreachable:
            raise Unreachable(f"{address} is not there")
        ours, theirs = memory_stream_pair()
        assert collector.nursery is not None
        collector.nursery.start_soon(collector.collector.serve_link, Wire(ours, self, address), "peer")
        return theirs

    async def balancer(
        self, name: str = "b1", placing: PlacementSettings | None = None, **settings: Any
    ) -> MemoryBalancer:
        places = Places(name, Placement(placing or PlacementSettings()))
        uplink = Uplink(
            places,
            lambda target: self.dial(target.address),
            UplinkSettings(hello={"role": "intake", "token": "f-token", "name": name}),
        )
        door = LinkDoor(place=places.place_link, dial=self.dial, left=places.link_left)
        steering = Steering(name, "f-token", self.dial, places.on_told)
        rebalancing = Rebalancing(RebalancingSettings(**{"least_bytes_per_s": 100.0, **settings}), random.random)
        rounds = Rounds(places, uplink, door, steering, rebalancing, IdleCollectors())
        balancer = MemoryBalancer(places, uplink, door, steering, rounds)
        self.balancers.append(balancer)
        self.tell()
        for run in (uplink.run, steering.run, rounds.run):
            self.nursery.start_soon(run)
        return balancer

    def meter(self, name: str, door: MemoryBalancer, token: str = "a-token", org: str = "acme") -> Uplink:
        async def dial(target: Target) -> trio.abc.Stream:
            return await self._through(door, Hint(org, name, target.want))

        hint = Hint(org, name)
        uplink = Uplink(
            FixedTarget(Target("the door", "door")),
            dial,
            UplinkSettings(hello={"role": "meter", "token": token, "name": name}, hint=hint),
        )
        self.nursery.start_soon(uplink.run)
        return uplink

    async def _through(self, balancer: MemoryBalancer, hint: Hint) -> trio.abc.Stream:
        link = object()
        with trio.move_on_after(balancer.door.place_timeout_s) as scope:
            placed = await balancer.door._place_in_turn(link, hint, set())
        if scope.cancelled_caught:
            raise Unreachable("no collector can take it now")
        self.arrivals.append((trio.current_time(), placed[0]))
        try:
            upstream = await self.dial(placed[1])
        except Unreachable:
            balancer.places.link_left(link)
            raise
        if balancer.gives:
            balancer.places.link_handed_off(link)
            return upstream
        ours, theirs = memory_stream_pair()
        carried = CarriedLink(placed[0], hint)
        self.nursery.start_soon(self._carry, balancer, link, carried, ours, upstream)
        return theirs

    async def _carry(
        self,
        balancer: MemoryBalancer,
        link: object,
        carried: CarriedLink,
        client: trio.abc.Stream,
        upstream: trio.abc.Stream,
    ) -> None:
        door = balancer.door
        door.links[carried] = None
        counts = (carried.carriage, door.carriage.setdefault(carried.collector, Carriage()))

        def into(size: int) -> None:
            for one in counts:
                one.bytes_in += size

        def back(size: int) -> None:
            for one in counts:
                one.bytes_back += size

        try:
            with trio.CancelScope() as carried.scope:
                async with client, upstream, trio.open_nursery() as nursery:
                    for source, to, count in ((client, upstream, into), (upstream, client, back)):
                        nursery.start_soon(_pump, source, to, count, nursery.cancel_scope)
        finally:
            door.links.pop(carried, None)
            balancer.places.link_left(link)

    async def rates(self, seconds: float = 5.0) -> dict[str, float]:
        """bytes/s into the log through each collector that is there, from now on."""
        before = dict(self.stored)
        await trio.sleep(seconds)
        return {name: (self.stored[name] - before.get(name, 0)) / seconds for name in self.collectors}


def ratio(rates: dict[str, float]) -> float:
    return max(rates.values()) * len(rates) / sum(rates.values())


async def sending(stream: UplinkStream, interval_s: float = 0.5, messages: int = 1) -> None:
    """A batch each interval, until cancelled."""
    while True:
        await stream.put(Draft(messages, RECORDS * messages, MESSAGE * messages))
        await trio.sleep(interval_s)


async def _pump(
    source: trio.abc.Stream, to: trio.abc.Stream, count: Callable[[int], None], both: trio.CancelScope
) -> None:
    try:
        async for data in source:
            count(len(data))
            await to.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    both.cancel()
