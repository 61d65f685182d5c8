"""What a round notes of meters, and whom of a collector that was left it asks to leave it too; no link, no clock."""

from typing import Any

import pytest
from attrs import define, field
from trio.testing import MockClock

from balancer.carried_link import Carriage, CarriedLink
from balancer.doors import LinkDoor
from balancer.idle import IdleCollectors
from balancer.places import Places
from balancer.rebalancing import Rebalancing, RebalancingSettings
from balancer.rounds import Rounds
from balancer.steering import Told, ToldStream
from meter.rendezvous import ranked
from meter.uplink import Uplink, UplinkSettings
from sapflow.cluster.view import Member, View
from sapflow.link.frames import Hint

STREAMS = [bytes([number]) * 16 for number in range(20)]


@define
class Asked:
    """Control links that note what is asked of whom."""

    linked: set[str] = field(factory=lambda: {"c1", "c2", "c3"})
    asked: list[tuple[str, bytes, str, str, bool]] = field(factory=list)

    def ask(self, collector: str, stream: bytes, to: str, address: str, *, leaves: bool = False) -> bool:
        self.asked.append((collector, stream, to, address, leaves))
        return collector in self.linked

    def ask_for_signs(self, _now: float) -> None: ...


async def nobody(_where: Any) -> Any:
    raise AssertionError


def a_member(name: str, role: str) -> Member:
    return Member(name, role, "1", 1, {"link": f"{name}:1"})


def rounds(*balancers: str, moves_direct: bool = False) -> tuple[Rounds, Asked]:
    places, steering = Places("b1"), Asked()
    members = [a_member(name, "collector") for name in ("c1", "c2", "c3")]
    places.on_change(View((*members, *(a_member(name, "balancer") for name in balancers)), {}))
    for name in ("c1", "c2", "c3"):
        tell(places, name)
    return (
        Rounds(
            places,
            Uplink(places, nobody, UplinkSettings(hello={})),
            LinkDoor(place=places.place_link, dial=nobody, left=places.link_left),
            steering,  # type: ignore[arg-type]
            Rebalancing(RebalancingSettings(), lambda: 0.5),
            IdleCollectors(),
            moves_direct=moves_direct,
        ),
        steering,
    )


def tell(places: Places, collector: str, *streams: ToldStream) -> None:
    places.on_told(collector, Told(0.0, 0.0, 0, 100, 60.0, streams, frozenset()))


def a_stream(id_: bytes, rate: float = 10.0, meter: str = "m1") -> ToldStream:
    return ToldStream(id_, "acme", rate, True, "192.0.2.1:9", meter)


async def test_all_streams_of_the_collector_that_was_left_are_asked_for_and_no_others(
    autojump_clock: MockClock,
) -> None:
    it, steering = rounds("b1")
    tell(it.places, "c1", *map(a_stream, STREAMS[:10]))
    tell(it.places, "c2", *map(a_stream, STREAMS[10:]))
    assert it._ask_all("c1", 0.0) == 10
    assert {(collector, stream) for collector, stream, *_ in steering.asked} == {("c1", one) for one in STREAMS[:10]}
    # They are spread over the others; each comes back to the door, and goes however lately it came.
    assert {to for _, _, to, _, _ in steering.asked} == {"c2", "c3"}
    assert {(address, leaves) for *_, address, leaves in steering.asked} == {("", True)}
    assert it.counts.meters_moved == 10
    # What was promised for them fades by itself: nothing more is heard here of who obeys.
    assert sum(("asked", one) in it.places.policy.reserved for one in STREAMS) == 10
    it.places.policy.loads(31.0)
    assert sum(("asked", one) in it.places.policy.reserved for one in STREAMS) == 0


async def test_of_two_balancers_each_asks_for_its_part(autojump_clock: MockClock) -> None:
    it, steering = rounds("b1", "b2")
    tell(it.places, "c1", *map(a_stream, STREAMS))
    mine = {one for one in STREAMS if next(ranked(one, ["b1", "b2"])) == "b1"}
    assert it._ask_all("c1", 0.0) == len(mine)
    assert {stream for _, stream, *_ in steering.asked} == mine
    assert 0 < len(mine) < len(STREAMS)


async def test_meters_that_reach_collectors_are_told_the_address_and_without_a_link_nobody_was_asked(
    autojump_clock: MockClock,
) -> None:
    it, steering = rounds("b1", moves_direct=True)
    tell(it.places, "c1", a_stream(STREAMS[0]))
    steering.linked.discard("c1")
    assert it._ask_all("c1", 0.0) == 0
    ((_, _, to, address, _),) = steering.asked
    assert address == f"{to}:1"
    assert it.counts.meters_moved == 0


@pytest.mark.parametrize("told", [True, False])
async def test_a_meters_rate_is_what_its_collector_tells_and_else_what_its_links_here_carry_together(
    autojump_clock: MockClock, told: bool
) -> None:
    it, _ = rounds("b1")
    links = [CarriedLink("c1", Hint("acme", "m1"), Carriage()) for _ in range(2)]
    for link in links:
        it.door.links[link] = None
    if told:
        tell(it.places, "c1", a_stream(STREAMS[0], 700.0), a_stream(STREAMS[1], 300.0))
    it._measure(0.0)
    for link in links:
        link.carriage.bytes_in = 80
    it._measure(1.0)
    assert it.places.policy.rates.predict(("acme", "m1"), "acme") == (1000.0 if told else 2 * 80.0)
