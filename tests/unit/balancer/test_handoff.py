"""Links through the link door to a real collector, which takes their sockets or is relayed to; nothing is lost."""

import gc
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, field

from balancer.doors import LinkDoor
from balancer.placement import Placement
from balancer.places import Places
from balancer.reservations import FADE_S
from meter.batching import Draft
from meter.uplink import Uplink
from sapflow.flows.reference import reference_work
from sapflow.link import Close, Closed, Connection, GoAway, Side, Welcomed
from sapflow.link.frames import Hint
from sapflow.runtime.addresses import split_address
from sapflow.runtime.dial import dial
from sapflow.runtime.fresh import serve_fresh
from sapflow.runtime.giving import Giving
from sapflow.runtime.handoff import announced
from sapflow.runtime.serve import address_of, listen
from sapflow.runtime.taking import Taking, listen_handoff
from tests.small_fleet import TRANSPORTS, SmallFleet, small_fleet

MESSAGE = reference_work(1)
RECORDS = 24


@define
class Front:
    """A small fleet behind a link door."""

    fleet: SmallFleet
    door: LinkDoor
    places: Places
    giving: Giving
    taking: Taking
    tasks: list[str] = field(factory=list)
    """Links that could not be placed as they were accepted."""

    def carry_on(self) -> tuple[int, int]:
        """How many links were handed off, and are carried."""
        return self.door.counts.handed, self.door.counts.open


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


@asynccontextmanager
async def a_front(
    directory: Path, *, slots: int = 100, proxy_from: Sequence[str] = ("127.0.0.0/8",)
) -> AsyncIterator[Front]:
    async with small_fleet(directory, proxy_from=proxy_from) as fleet, trio.open_nursery() as nursery:
        places = Places("b1")
        places.policy.members(["c1"], now=trio.current_time())
        places.addresses = {"c1": fleet.address}
        giving = Giving(1.0)
        door = LinkDoor(
            place=places.place_link,
            dial=partial(dial, timeout_s=5),
            left=places.link_left,
            give=giving.give,
            offer=giving.offer,
            handed_off=places.link_handed_off,
            name="b1",
        )
        taking = Taking({"link": fleet.collector.serve_link}, trio.CapacityLimiter(slots))
        listener, path = listen_handoff(directory / "handoff", "c1")
        nursery.start_soon(taking.run, listener, path)
        giving.takers({"c1": announced(path)})
        nursery.start_soon(giving.run)
        await until(lambda: taking.counts.givers == 1)
        links = await listen("127.0.0.1:0", what="links")
        fleet.address = address_of(links)
        front = Front(fleet, door, places, giving, taking)

        async def serve(stream: trio.SocketStream, peer: str) -> None:
            front.tasks.append(peer)
            await door.serve(stream, peer)

        nursery.start_soon(partial(serve_fresh, max_connections=400, what="link"), links, serve, door.at_once)
        yield front
        nursery.cancel_scope.cancel()


async def send_three(fleet: SmallFleet, transport: str, token: str = "a-token") -> None:
    uplink: Uplink = fleet.uplink(transport, token)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uplink.run)
        stream = uplink.open_stream("acme", "192.0.2.1:9")
        for _ in range(3):
            await stream.put(Draft(1, RECORDS, MESSAGE))
        await stream.drained()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_link_over_any_transport_is_handed_off_and_the_balancer_has_nothing_of_it(
    tmp_path: Path, transport: str
) -> None:
    async with a_front(tmp_path) as front:
        await send_three(front.fleet, transport)
        assert sum(entry.records for entry in front.fleet.stored()) == 3 * RECORDS
        assert front.carry_on() == (1, 0)
        assert front.door.counts.bytes_in == 0
        assert not front.door.links
        assert front.taking.counts.taken == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_link_that_its_collector_does_not_take_is_relayed(tmp_path: Path, transport: str) -> None:
    async with a_front(tmp_path, slots=1) as front:
        front.taking.slots.acquire_on_behalf_of_nowait("somebody")
        await send_three(front.fleet, transport)
        assert sum(entry.records for entry in front.fleet.stored()) == 3 * RECORDS
        assert front.door.counts.handed == 0
        assert front.door.counts.bytes_in > 3 * len(MESSAGE)
        assert front.giving.counts.refused == 1


@pytest.mark.parametrize("proxy_from", [("127.0.0.0/8",), ("192.0.2.0/24",)])
async def test_a_balancer_that_drains_has_relayed_links_sent_away_whomever_their_collector_believes(
    tmp_path: Path, proxy_from: Sequence[str]
) -> None:
    async with a_front(tmp_path, slots=1, proxy_from=proxy_from) as front:
        front.taking.slots.acquire_on_behalf_of_nowait("somebody")
        peer = await front.fleet.dial("link")
        link = Connection(Side.CLIENT)
        await peer.send_all(link.hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token"))
        (welcome,) = link.receive(bytes(await peer.receive_some(1000)))
        assert isinstance(welcome, Welcomed)
        (carried,) = front.door.links
        front.fleet.collector.send_away_from({"peers": list(carried.seen_as), "deadline_s": 3.0})
        with trio.fail_after(5):
            (away,) = link.receive(bytes(await peer.receive_some(1000)))
        assert isinstance(away, GoAway)
        await peer.aclose()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_link_is_handed_off_whether_its_hint_is_there_when_it_is_accepted_or_later(
    tmp_path: Path, at_once: bool
) -> None:
    async with a_front(tmp_path) as front:
        hello = Connection(Side.CLIENT).hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token")
        with socket.create_connection(split_address(front.fleet.address)) as meter:
            if at_once:
                # Nobody has run since it connected.
                meter.sendall(hello)
            else:
                meter.sendall(hello[:7])
                await until(lambda: front.door.unplaced == 1)
                meter.sendall(hello[7:])
            await until(lambda: front.door.counts.handed == 1)
            assert front.door.counts.accepted == 1
            assert front.door.unplaced == 0
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(meter.recv, 1000)
        assert front.places.policy.reserved.of_org("acme")


async def test_a_link_that_is_refused_when_it_was_placed_at_once_is_placed_once(tmp_path: Path) -> None:
    placed: list[str] = []
    async with a_front(tmp_path, slots=1) as front:
        place = front.door.place

        def noted(link: object, hint: Hint, tried: set[str]) -> tuple[str, str] | None:
            placed.append(hint.name)
            return place(link, hint, tried)

        front.door.place = noted
        front.taking.slots.acquire_on_behalf_of_nowait("somebody")
        with socket.create_connection(split_address(front.fleet.address)) as meter:
            meter.sendall(Connection(Side.CLIENT).hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token"))
            await until(lambda: front.door.counts.open == 1)
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(meter.recv, 1000)
        await until(lambda: not front.door.links)
        await until(lambda: not front.places.policy.reserved)
    assert placed == ["m1"]


async def test_a_herd_is_handed_off_by_no_task_of_its_own(tmp_path: Path) -> None:
    async with a_front(tmp_path, slots=400) as front:
        hello = Connection(Side.CLIENT).hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token")
        with ExitStack() as stack:
            herd = [
                stack.enter_context(socket.create_connection(split_address(front.fleet.address))) for _ in range(300)
            ]
            for meter in herd:
                meter.sendall(hello)
            # None has been accepted: nothing has run since they came.
            await until(lambda: front.door.counts.handed == 300)
            assert not front.tasks
            await until(lambda: front.fleet.collector.counts.links == 301)


async def test_a_hint_that_is_no_link_is_refused_and_told(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        with socket.create_connection(split_address(front.fleet.address)) as stranger:
            stranger.sendall(b"EHLO there\r\n")
            await until(lambda: front.door.counts.refused == 1)
        assert front.door.counts.accepted == 0


async def test_a_handed_link_goes_on_when_its_balancer_is_gone(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        peer = await front.fleet.dial("link")
        link = Connection(Side.CLIENT)
        await peer.send_all(link.hello(Hint("acme", "m1"), role="meter", name="m1", token="a-token"))
        (welcome,) = link.receive(bytes(await peer.receive_some(1000)))
        assert isinstance(welcome, Welcomed)
        front.giving.takers({})
        await until(lambda: front.taking.counts.givers == 0)
        await peer.send_all(link.ping(1))
        with trio.fail_after(5):
            assert await peer.receive_some(1000)
        await peer.aclose()
        await until(lambda: front.taking.slots.borrowed_tokens == 0)


async def test_a_hint_that_lies_is_placed_by_it_and_harmless(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        peer = await front.fleet.dial("link")
        link = Connection(Side.CLIENT)
        await peer.send_all(link.hello(Hint("acme", "m1", "c1"), role="meter", name="m1", token="no such token"))
        with trio.fail_after(5):
            (event,) = link.receive(bytes(await peer.receive_some(1000)))
        assert isinstance(event, Closed)
        assert event.code == Close.UNAUTHORIZED
        await peer.aclose()
        assert front.door.counts.handed == 1
        assert front.fleet.collector.counts.unauthorized == 1
        await until(lambda: front.fleet.collector.counts.links == 1)  # Phloem's


async def test_two_hundred_handed_links_leave_no_descriptor_and_no_slot(tmp_path: Path) -> None:
    async with a_front(tmp_path) as front:
        await send_three(front.fleet, "link")
        await until(lambda: front.taking.slots.borrowed_tokens == 0)
        gc.collect()  # what other tests left open is none of this one's
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(send_three, front.fleet, "link")
        await until(lambda: front.taking.slots.borrowed_tokens == 0)
        assert front.carry_on() == (201, 0)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_handed_links_reservation_fades_and_ends_by_itself() -> None:
    placement = Placement()
    placement.members(["c1"], now=0.0)
    placement.place("link", "acme", 0.0, is_link=True)
    placement.handed_off("link")
    assert placement.loads(1.0)["c1"] > 0
    assert "link" in placement.reserved
    assert placement.loads(FADE_S + 1.0) == {"c1": 0.0}
    assert "link" not in placement.reserved
    assert placement.reserved.of_org("acme") == {}
