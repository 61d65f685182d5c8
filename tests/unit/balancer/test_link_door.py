"""The link door, before a link is placed: little work for those that say little, and a bound on how many there are."""

import errno
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
from sapflow.link import Connection, Hold, Side
from sapflow.link.frames import MAGIC, Hint, encode_preamble
from sapflow.runtime.dial import dial
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.proxy_header import encode
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


async def test_a_link_that_no_collector_can_take_is_told_to_come_back_later() -> None:
    door = LinkDoor(place=lambda *_: None, dial=nobody, left=lambda _: None, place_timeout_s=0.2)
    async with serving(door) as (host, port):
        connection = await trio.open_tcp_stream(host, port)
        link = Connection(Side.CLIENT)
        await connection.send_all(link.hello(Hint("acme", "m1"), role="meter", token="t"))
        with trio.fail_after(10):
            (event,) = link.receive(bytes(await connection.receive_some(1000)))
        await connection.aclose()
    assert event == Hold(5.0, "no collector can take it now")


async def test_links_are_placed_in_the_order_that_they_came() -> None:
    placed: list[str] = []
    can_take = trio.Event()

    def place(_link: object, hint: Hint, _tried: set[str]) -> tuple[str, str] | None:
        if not can_take.is_set():
            return None
        placed.append(hint.name)
        return "c1", "127.0.0.1:1"

    async def silent(_: str) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    door = LinkDoor(place=place, dial=silent, left=lambda _: None)
    async with serving(door) as (host, port):
        for number in range(20):
            connection = await trio.open_tcp_stream(host, port)
            await connection.send_all(encode_preamble(Hint("acme", f"m{number}")))
            await until(lambda number=number: door.unplaced == number + 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
        can_take.set()
        await until(lambda: len(placed) == 20)
    assert placed == [f"m{number}" for number in range(20)]


async def test_links_to_a_collector_that_is_left_are_cut_and_others_are_not() -> None:
    async with trio.open_nursery() as nursery:
        listener = await listen("127.0.0.1:0", what="a collector")

        async def silent(stream: trio.SocketStream, _peer: str) -> None:
            async for _ in stream:
                continue

        nursery.start_soon(partial(serve, max_connections=10, what="a collector"), listener, silent)
        names = iter(["c1", "c2"])
        door = LinkDoor(
            place=lambda *_: (next(names), address_of(listener)), dial=partial(dial, timeout_s=5), left=lambda _: None
        )
        async with serving(door) as (host, port):
            connections = []
            for count in (1, 2):
                connections.append(await trio.open_tcp_stream(host, port))
                await connections[-1].send_all(encode_preamble(Hint("acme", "m1")))
                await until(lambda count=count: door.counts.open == count)
            assert door.cut("c1") == 1
            with trio.fail_after(10):
                assert await connections[0].receive_some(1) == b""
            assert [link.collector for link in door.links] == ["c2"]
            assert door.carriage["c1"].bytes_in > 0
            await connections[1].aclose()
        nursery.cancel_scope.cancel()


async def test_c16_a_client_whose_host_is_gone_is_not_waited_for_when_its_collector_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("balancer.carry.HALF_CLOSED_S", 0.2)
    ended = trio.Event()

    async def a_collector(stream: trio.SocketStream, _peer: str) -> None:
        await ended.wait()

    async with trio.open_nursery() as nursery:
        listener = await listen("127.0.0.1:0", what="a collector")
        nursery.start_soon(partial(serve, max_connections=10, what="a collector"), listener, a_collector)
        door = LinkDoor(
            place=lambda *_: ("c1", address_of(listener)), dial=partial(dial, timeout_s=5), left=lambda _: None
        )
        async with serving(door) as (host, port):
            silent = await trio.open_tcp_stream(host, port)
            await silent.send_all(encode_preamble(Hint("acme", "m1")))
            await until(lambda: door.counts.open == 1)
            ended.set()
            await until(lambda: door.counts.open == 0)
            assert not door.links
            await silent.aclose()
        nursery.cancel_scope.cancel()


async def test_a_relayed_links_collector_is_told_who_is_at_its_other_end() -> None:
    peers: list[str] = []

    async def a_collector(stream: trio.SocketStream, peer: str) -> None:
        peers.append(peer)
        assert bytes(await stream.receive_some(4)) == MAGIC[:4]

    trusted = Networks(["127.0.0.0/8", "::1/128"])
    async with trio.open_nursery() as nursery:
        listener = await listen("[::1]:0", what="a collector")
        handler = Proxied(trusted, 5.0).possible(a_collector)
        nursery.start_soon(partial(serve, max_connections=10, what="a collector"), listener, handler)
        door = LinkDoor(
            place=lambda *_: ("c1", address_of(listener)), dial=partial(dial, timeout_s=5), left=lambda _: None
        )
        doors = await listen("127.0.0.1:0", what="links")
        behind = Proxied(trusted, 5.0).required(door.serve)
        nursery.start_soon(partial(serve, max_connections=10, what="link"), doors, behind)
        sources = ("192.0.2.7:4711", "198.51.100.1:4740"), ("[2001:db8::7]:4711", "[::1]:4740")
        for count, (source, destination) in enumerate(sources):
            connection = await dial(address_of(doors), timeout_s=5)
            await connection.send_all(encode(source, destination) + encode_preamble(Hint("acme", "m1")))
            await until(lambda count=count: len(peers) > count)
            await connection.aclose()
        nursery.cancel_scope.cancel()
    assert peers == ["192.0.2.7:4711", "[2001:db8::7]:4711"]


async def test_a_link_is_relayed_though_its_user_may_have_no_larger_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("balancer.carry.fcntl.fcntl", refused)
    heard = bytearray()

    async def a_collector(stream: trio.SocketStream, _peer: str) -> None:
        async for data in stream:
            heard.extend(data)

    async with trio.open_nursery() as nursery:
        listener = await listen("127.0.0.1:0", what="a collector")
        handler = Proxied(Networks(["127.0.0.0/8"]), 5.0).possible(a_collector)
        nursery.start_soon(partial(serve, max_connections=10, what="a collector"), listener, handler)
        door = LinkDoor(
            place=lambda *_: ("c1", address_of(listener)), dial=partial(dial, timeout_s=5), left=lambda _: None
        )
        async with serving(door) as (host, port):
            connection = await trio.open_tcp_stream(host, port)
            said = encode_preamble(Hint("acme", "m1")) + bytes(1 << 20)
            await connection.send_all(said)
            await until(lambda: len(heard) == len(said))
            await connection.aclose()
        nursery.cancel_scope.cancel()
    assert heard == said
