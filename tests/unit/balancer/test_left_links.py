"""Links that are carried go on between the same two sockets in the next process, to the byte."""

import os
import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from balancer.carried_link import CarriedLink
from balancer.doors import LinkDoor
from balancer.left_link import LeftLink
from sapflow.errors import LinkError
from sapflow.link.frames import Hint

HINT = Hint("acme", "m1")


async def a_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        return ours, await listener.accept()


async def nowhere(_address: str) -> trio.abc.Stream:
    raise AssertionError


def a_door() -> LinkDoor:
    return LinkDoor(place=lambda *_: None, dial=nowhere, left=lambda _: None)


def again(stream: trio.SocketStream) -> trio.SocketStream:
    """The same socket, as another process has it."""
    return trio.SocketStream(trio.socket.fromfd(stream.socket.fileno(), stream.socket.family, stream.socket.type))


@pytest.mark.parametrize("clogged", [False, True], ids=["flowing", "with a collector that does not read for a while"])
async def test_bytes_both_ways_are_the_same_over_ten_processes(clogged: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    dice = random.Random(7)
    up, down = dice.randbytes(6 << 20), dice.randbytes(3 << 20)
    meter, ours = await a_pair()
    onward, collector = await a_pair()
    came: dict[str, bytearray] = {"up": bytearray(), "down": bytearray()}
    reads = trio.Event()

    async def send(stream: trio.SocketStream, data: bytes) -> None:
        for at in range(0, len(data), 50_000):
            await stream.send_all(data[at : at + 50_000])
            await trio.sleep(0.001)
        await stream.send_eof()

    async def receive(stream: trio.SocketStream, name: str) -> None:
        if clogged and name == "up":
            await reads.wait()
        async for data in stream:
            came[name] += data

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, meter, up)
            nursery.start_soon(send, collector, down)
            nursery.start_soon(receive, collector, "up")
            nursery.start_soon(receive, meter, "down")
            rest, left = (b"", b""), 0
            for _ in range(10):
                door, carried = a_door(), CarriedLink("c1", HINT, into=rest[0], back=rest[1])
                done = trio.Event()

                async def run(
                    door: LinkDoor = door,
                    carried: CarriedLink = carried,
                    streams: tuple[trio.SocketStream, trio.SocketStream] = (ours, onward),
                    done: trio.Event = done,
                ) -> None:
                    await door.resume(object(), carried, *streams)
                    await trio.aclose_forcefully(streams[0])
                    done.set()

                async def leave(carried: CarriedLink, stream: trio.SocketStream, upstream: trio.SocketStream) -> bool:
                    nonlocal rest, ours, onward, left
                    encoded = LeftLink("c1", carried.hint, "m", (), carried.into, carried.back).encode()
                    read = LeftLink.decode(encoded)
                    rest, ours, onward = (read.into, read.back), again(stream), again(upstream)
                    left += 1
                    return True

                nursery.start_soon(run)
                await trio.sleep(0.05)
                if not door.links:
                    break
                await door.leave(leave)
                await done.wait()
                assert door.counts.left == 1
            reads.set()
            if left:
                await a_door().resume(object(), CarriedLink("c1", HINT, into=rest[0], back=rest[1]), ours, onward)
        assert left >= 2
        assert (bytes(came["up"]), bytes(came["down"])) == (up, down)
    for stream in (meter, ours, onward, collector):
        await trio.aclose_forcefully(stream)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_link_that_nobody_takes_is_carried_on() -> None:
    meter, ours = await a_pair()
    onward, collector = await a_pair()
    door = a_door()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.resume, object(), CarriedLink("c1", HINT), ours, onward)
            await trio.sleep(0.05)

            async def refuse(*_: object) -> bool:
                await trio.lowlevel.checkpoint()
                return False

            await door.leave(refuse)
            assert (door.counts.left, door.counts.open) == (0, 1)
            await meter.send_all(b"still carried")
            assert await collector.receive_some(100) == b"still carried"
            nursery.cancel_scope.cancel()
    for stream in (meter, ours, onward, collector):
        await trio.aclose_forcefully(stream)


texts = st.text(max_size=20)


@given(texts, st.tuples(texts, texts, texts), texts, st.lists(texts, max_size=3), st.binary(), st.binary())
def test_what_is_said_of_a_link_is_read_as_it_was_written(
    collector: str, hint: tuple[str, str, str], peer: str, seen: list[str], into: bytes, back: bytes
) -> None:
    left = LeftLink(collector, Hint(*hint), peer, tuple(seen), into, back)
    assert LeftLink.decode(left.encode()) == left


@given(st.binary(max_size=200), st.integers(0, 200))
def test_what_is_none_is_refused(noise: bytes, at: int) -> None:
    whole = LeftLink("c1", HINT, "m", (), b"into", b"back").encode()
    for data in (noise, whole[: at % len(whole)]):
        with pytest.raises(LinkError, match="cannot be read"):
            LeftLink.decode(data)
