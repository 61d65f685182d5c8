"""The link door, before a link is placed: little work for those that say little, and a bound on how many there are."""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.lowlevel

from balancer.doors import OVER_FULL, LinkDoor
from balancer.places import Places
from sapflow.errors import Unreachable
from sapflow.link.frames import Hint, encode_preamble
from sapflow.runtime.serve import address_of, listen, serve


async def nobody(_: str) -> trio.abc.Stream:
    raise Unreachable("nobody is there")


@asynccontextmanager
async def serving(door: LinkDoor) -> AsyncIterator[tuple[str, int]]:
    listener = await listen("127.0.0.1:0", what="links")
    host, port = address_of(listener).split(":")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, max_connections=5000, what="link"), listener, door.serve)
        yield host, int(port)
        nursery.cancel_scope.cancel()


async def until(holds: object) -> None:
    assert callable(holds)
    with trio.fail_after(20):
        while not holds():
            await trio.sleep(0.01)


async def test_links_that_say_three_bytes_cost_no_time_while_they_wait() -> None:
    door = LinkDoor(place=lambda *_: None, dial=nobody, left=lambda _: None, preamble_timeout_s=60)
    with ExitStack() as stack:
        async with serving(door) as address:
            for _ in range(150):
                connection = stack.enter_context(socket.create_connection(address))
                connection.sendall(b"SAP")
            await until(lambda: door.unplaced == 150)
            used = time.process_time()
            await trio.sleep(1.0)
            assert time.process_time() - used < 0.4


async def test_a_preamble_in_single_bytes_is_read_and_placed_and_left() -> None:
    found: list[Hint] = []
    left: list[object] = []

    def place(link: object, hint: Hint, tried: set[str]) -> tuple[str, str] | None:
        found.append(hint)
        return ("c1", "127.0.0.1:1") if not tried else None

    door = LinkDoor(place=place, dial=nobody, left=left.append, preamble_timeout_s=20, place_timeout_s=0.3)
    async with serving(door) as (host, port):
        connection = await trio.open_tcp_stream(host, port)
        for byte in encode_preamble(Hint("acme", "m1")):
            await connection.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        await until(lambda: door.counts.refused == 1)
        await connection.aclose()
    assert found[0] == Hint("acme", "m1")
    assert len(set(left)) == 1


async def test_one_that_closes_in_the_midst_of_its_preamble_is_let_go_at_once() -> None:
    door = LinkDoor(place=lambda *_: None, dial=nobody, left=lambda _: None, preamble_timeout_s=60)
    async with serving(door) as (host, port):
        connection = await trio.open_tcp_stream(host, port)
        await connection.send_all(b"SAPL\x02")
        await until(lambda: door.unplaced == 1)
        await connection.aclose()
        await until(lambda: door.counts.refused == 1)
    assert door.unplaced == 0


async def test_more_links_than_may_wait_are_closed_at_once_and_told_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    door = LinkDoor(place=lambda *_: None, dial=nobody, left=lambda _: None, preamble_timeout_s=60, max_unplaced=5)
    with ExitStack() as stack:
        async with serving(door) as address:
            connections = [stack.enter_context(socket.create_connection(address)) for _ in range(25)]
            for connection in connections:
                connection.sendall(b"SAP")
            await until(lambda: door.counts.refused == 20)
            assert door.unplaced == 5
    assert capsys.readouterr().out.count(OVER_FULL) == 5


def test_two_links_of_one_name_have_reservations_of_their_own() -> None:
    places = Places("b1")
    places.policy.members(["c1"], now=0.0)
    places.addresses = {"c1": "127.0.0.1:1"}
    first, second = object(), object()

    async def place_both() -> None:
        for link in (first, second):
            assert places.place_link(link, Hint("acme", "send"), set()) == ("c1", "127.0.0.1:1")

    trio.run(place_both)
    places.link_left(first)
    assert first not in places.policy.reserved
    assert second in places.policy.reserved


async def test_a_link_whose_collector_does_not_answer_in_time_gives_its_reservation_back() -> None:
    async def silent(_: str) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    places = Places("b1")
    places.policy.members(["c1"], now=trio.current_time())
    places.addresses = {"c1": "127.0.0.1:1"}
    door = LinkDoor(place=places.place_link, dial=silent, left=places.link_left, place_timeout_s=0.2)
    async with serving(door) as (host, port):
        connection = await trio.open_tcp_stream(host, port)
        await connection.send_all(encode_preamble(Hint("acme", "m1")))
        await until(lambda: door.counts.refused == 1)
        await connection.aclose()
    assert len(places.policy.reserved) == 0
