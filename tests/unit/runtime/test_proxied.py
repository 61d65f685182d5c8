"""Who is at the other end of what a load balancer brings, and whom that is believed of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from attrs import define, field

from sapflow.runtime.dial import dial
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.proxy_header import FIXED, SIGNATURE, encode
from sapflow.runtime.serve import Handler, address_of, listen, serve

HEADER = encode("192.0.2.7:4711", "198.51.100.1:4740")
LOOPBACK = Networks(["127.0.0.0/8", "::1/128"])
NOBODY = Networks(["192.0.2.0/24"])


@define
class Door:
    """Hears who is there, and all that they say."""

    heard: list[tuple[str, bytes]] = field(factory=list)

    async def serve(self, stream: trio.SocketStream, peer: str) -> None:
        data = b""
        async for piece in stream:
            data += bytes(piece)
        self.heard.append((peer.rpartition(":")[0], data))


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    listener = await listen(f"{host}:0", what="a test")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=10, what="test"), listener, handler)
            yield address_of(listener)
            nursery.cancel_scope.cancel()


async def say(address: str, *pieces: bytes) -> None:
    """And wait until the other end has closed."""
    stream = await dial(address, timeout_s=5)
    assert isinstance(stream, trio.SocketStream)
    async with stream:
        try:
            for piece in pieces:
                await stream.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            await stream.send_eof()
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("pieces", [[HEADER + b"rest"], [bytes([one]) for one in HEADER + b"rest"]])
async def test_a_trusted_header_names_the_other_end_and_no_byte_behind_it_is_taken(
    host: str, pieces: list[bytes]
) -> None:
    for wrap in ("required", "possible"):
        door = Door()
        async with serving(getattr(Proxied(LOOPBACK, 5.0), wrap)(door.serve), host) as address:
            await say(address, *pieces)
        assert door.heard == [("192.0.2.7", b"rest")]


async def test_a_header_from_elsewhere_is_not_believed() -> None:
    required, possible = Door(), Door()
    async with serving(Proxied(NOBODY, 5.0).required(required.serve)) as address:
        await say(address, HEADER + b"rest")
    async with serving(Proxied(NOBODY, 5.0).possible(possible.serve)) as address:
        await say(address, HEADER + b"rest")
    # In front of a door it is what the client said, and no IPFIX or link begins like that.
    assert required.heard == [("127.0.0.1", HEADER + b"rest")]
    assert possible.heard == [("127.0.0.1", b"rest")]


async def test_what_does_not_begin_with_a_header_is_as_it_was_where_one_is_only_possible() -> None:
    door = Door()
    async with serving(Proxied(LOOPBACK, 5.0).possible(door.serve)) as address:
        await say(address, b"SAPL rest")
        await say(address, b"")
    assert door.heard == [("127.0.0.1", b"SAPL rest"), ("127.0.0.1", b"")]


@pytest.mark.parametrize("said", [b"SAPL", b"GET / HTTP/1.1\r\n", HEADER[:20], b"", SIGNATURE + b"\x11\x11\0\0"])
async def test_a_load_balancer_that_sends_none_is_refused(said: bytes) -> None:
    door, proxied = Door(), Proxied(LOOPBACK, 5.0)
    async with serving(proxied.required(door.serve)) as address:
        await say(address, said)
    assert not door.heard
    assert proxied.counts.refused == 1


async def test_a_load_balancer_that_sends_half_of_one_is_not_waited_for() -> None:
    door, proxied = Door(), Proxied(LOOPBACK, 0.2)
    async with serving(proxied.required(door.serve)) as address:
        stream = await dial(address, timeout_s=5)
        await stream.send_all(HEADER[:14])
        assert await stream.receive_some(1) == b""
        await stream.aclose()
    assert not door.heard


async def test_a_load_balancer_that_speaks_for_itself_is_itself() -> None:
    door = Door()
    async with serving(Proxied(LOOPBACK, 5.0).required(door.serve)) as address:
        await say(address, FIXED.pack(SIGNATURE, 0x20, 0, 0) + b"check")
    assert door.heard == [("127.0.0.1", b"check")]


def test_networks_hold_addresses_of_their_own_kind_and_mapped_ones() -> None:
    networks = Networks(["192.0.2.0/24", "2001:db8::/32"])
    held = ["192.0.2.9:1", "[::ffff:192.0.2.9]:1", "[2001:db8::7]:1"]
    assert [peer for peer in [*held, "198.51.100.1:1", "[fe80::1%lo]:1", "?", "unix:77"] if networks.hold(peer)] == held
