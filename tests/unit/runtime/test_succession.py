"""Connections left in a queue of the kernel's are taken over by the next, once, with their state; none leaks."""

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from sapflow.runtime.succession import MOST_AT_ONCE, MOST_BYTES_AT_ONCE, LeftConnection, Succession, succession_sockets


@contextmanager
def a_queue() -> Iterator[tuple[Succession, Succession]]:
    """The ends that the one who leaves has, and those of its successor."""
    into, out_of = succession_sockets()
    with into, out_of, into.dup() as their_into, out_of.dup() as their_out_of:
        yield Succession(into, out_of), Succession(their_into, their_out_of)


async def a_connection() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of one."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        return ours, await listener.accept()


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def soon() -> float:
    return trio.current_time() + 5.0


async def take(succession: Succession, count: int) -> list[LeftConnection]:
    found: list[LeftConnection] = []
    with trio.fail_after(10):
        while len(found) < count:
            found += await succession.take()
    return found


async def test_a_connection_goes_on_with_who_takes_it_and_its_other_end_sees_nothing() -> None:
    before = open_descriptors()
    with a_queue() as (old, new):
        ours, theirs = await a_connection()
        await ours.send_all(b"before")
        assert await theirs.receive_some(100) == b"before"
        assert await old.leave([theirs.socket], b"what is known", soon())
        await theirs.aclose()
        await ours.send_all(b"in between")
        (left,) = await take(new, 1)
        assert left.state == b"what is known"
        async with trio.SocketStream(trio.socket.from_stdlib_socket(left.socks[0])) as stream:
            assert await stream.receive_some(100) == b"in between"
            await stream.send_all(b"answer")
            assert await ours.receive_some(100) == b"answer"
        await ours.aclose()
    assert open_descriptors() == before


async def test_what_is_left_waits_for_a_successor_that_is_not_there_yet_however_much_it_is() -> None:
    """Many at once go in few messages; one with a large state goes alone."""
    before = open_descriptors()
    with a_queue() as (old, new):
        pairs = [await a_connection() for _ in range(2 * MOST_AT_ONCE + 3)]
        states = [b"%d" % number * 1000 for number in range(len(pairs))]
        states[7] = bytes(MOST_BYTES_AT_ONCE + 1)
        done: list[bool] = []

        async def leave(stream: trio.SocketStream, state: bytes) -> None:
            done.append(await old.leave([stream.socket], state, soon()))
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for (_, theirs), state in zip(pairs, states, strict=True):
                nursery.start_soon(leave, theirs, state)
        assert done == [True] * len(pairs)
        found = await take(new, len(pairs))
        assert sorted(one.state for one in found) == sorted(states)
        for one in found:
            one.close()
        for ours, _ in pairs:
            assert await ours.receive_some(1) == b""
            await ours.aclose()
    assert open_descriptors() == before


async def test_of_two_that_take_each_connection_is_ones() -> None:
    with a_queue() as (old, new):
        pairs = [await a_connection() for _ in range(20)]
        for number, (_, theirs) in enumerate(pairs):
            assert await old.leave([theirs.socket], b"%d" % number, soon())
            await theirs.aclose()
        found: list[bytes] = []
        with trio.move_on_after(2.0):
            async with trio.open_nursery() as nursery:

                async def taking(one_of_two: Succession) -> None:
                    while len(found) < 20:
                        for one in await one_of_two.take():
                            found.append(one.state)
                            one.close()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(taking, old)
                nursery.start_soon(taking, new)
        assert sorted(found) == sorted(b"%d" % number for number in range(20))
        for ours, _ in pairs:
            await ours.aclose()


async def test_a_queue_that_is_full_is_waited_for_until_the_deadline_and_then_the_connection_is_still_the_callers() -> (
    None
):
    before = open_descriptors()
    with a_queue() as (old, new):
        ours, theirs = await a_connection()
        filled = 0
        while await old.leave([theirs.socket], b"again", trio.current_time() + 0.2):
            filled += 1
            assert filled < 10_000
        assert filled > 100
        await ours.send_all(b"still here")
        assert await theirs.receive_some(100) == b"still here"
        # With room it goes on.
        found = await take(new, filled)
        assert await old.leave([theirs.socket], b"last", soon())
        found += await take(new, 1)
        assert [one.state for one in found] == [b"again"] * filled + [b"last"]
        for one in found:
            one.close()
        await theirs.aclose()
        await ours.aclose()
    assert open_descriptors() == before


async def test_connections_that_nobody_took_are_closed_with_the_queue() -> None:
    with a_queue() as (old, _new):
        ours, theirs = await a_connection()
        assert await old.leave([theirs.socket], b"", soon())
        await theirs.aclose()
        with trio.move_on_after(0.1) as scope:
            await ours.receive_some(1)
        assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await ours.receive_some(1) == b""
    await ours.aclose()


@pytest.mark.parametrize("message", [b"what?!", b"sfl2\0\1", b"sfl1\0\2", b""])
async def test_a_message_that_is_none_costs_its_descriptors_and_no_more(message: bytes) -> None:
    before = open_descriptors()
    with a_queue() as (old, new):
        first, second = socket.socketpair()
        file = os.memfd_create("x")
        os.write(file, bytes(10))
        socket.send_fds(old.into, [message], [file, first.fileno()])
        os.close(file)
        first.close()
        ours, theirs = await a_connection()
        assert await old.leave([theirs.socket], b"whole", soon())
        await theirs.aclose()
        found = await take(new, 1)
        assert [one.state for one in found] == [b"whole"]
        assert new.unread == 1
        second.setblocking(False)
        assert second.recv(1) == b""
        for one in found:
            one.close()
        second.close()
        await ours.aclose()
    assert open_descriptors() == before


async def test_two_that_belong_together_are_left_and_taken_together() -> None:
    before = open_descriptors()
    with a_queue() as (old, new):
        (first, its), (second, other) = await a_connection(), await a_connection()
        alone, single = await a_connection()
        assert await old.leave([its.socket, other.socket], b"both", soon())
        assert await old.leave([single.socket], b"one", soon())
        for stream in (its, other, single):
            await stream.aclose()
        both, one = await take(new, 2)
        assert [(len(left.socks), left.state) for left in (both, one)] == [(2, b"both"), (1, b"one")]
        for sock, far in zip(both.socks + one.socks, (first, second, alone), strict=True):
            assert sock.getpeername() == far.socket.getsockname()
            await far.aclose()
        both.close()
        one.close()
    assert open_descriptors() == before
