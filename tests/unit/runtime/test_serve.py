"""Connections as a server accepts them and as we make them."""

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs

from sapflow.runtime.dial import KEEP_ALIVE, dial
from sapflow.runtime.fresh import Fresh, _Accepting, serve_fresh
from sapflow.runtime.serve import Handler, address_of, listen, serve
from sapflow.runtime.sockets import SOCKETS_VARIABLE


async def test_a_host_that_is_gone_is_found_within_a_minute_on_either_side() -> None:
    accepted: list[trio.SocketStream] = []
    seen = trio.Event()

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        accepted.append(stream)
        seen.set()
        await trio.sleep_forever()

    listener = await listen("127.0.0.1:0", what="a test")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=1, what="test"), listener, handler)
            dialled = await dial(address_of(listener), timeout_s=5)
            await seen.wait()
            for stream in (*accepted, dialled):
                assert isinstance(stream, trio.SocketStream)
                assert stream.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE)
                options = {option: stream.getsockopt(trio.socket.IPPROTO_TCP, option) for option in KEEP_ALIVE}
                assert options == KEEP_ALIVE
            nursery.cancel_scope.cancel()
    idle, interval, count = KEEP_ALIVE.values()
    assert idle + interval * count <= 60


async def nothing_at_once(_fresh: Fresh) -> bool:
    return False


async def all_by_tasks(listener: trio.SocketListener, handler: Handler, **how: Any) -> None:
    await serve_fresh(listener, handler, nothing_at_once, **how)


WAYS = pytest.mark.parametrize("way", [serve, all_by_tasks])


@asynccontextmanager
async def server(
    handler: Handler, *, way: Callable[..., Awaitable[None]] = serve, max_connections: int = 10
) -> AsyncIterator[str]:
    listener = await listen("127.0.0.1:0", what="a test")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(way, max_connections=max_connections, what="test"), listener, handler)
            yield address_of(listener)
            nursery.cancel_scope.cancel()
    await listener.aclose()


@WAYS
async def test_a_handlers_exception_ends_its_connection_only_and_is_logged_once(
    way: Callable[..., Awaitable[None]],
) -> None:
    async def handler(stream: trio.SocketStream, peer: str) -> None:
        data = await stream.receive_some(1)
        if data == b"!":
            raise RuntimeError("a bug")
        await stream.send_all(data)

    with capture_logs() as logs:
        async with server(handler, way=way) as address:
            bad, good = await dial(address, timeout_s=5), await dial(address, timeout_s=5)
            await bad.send_all(b"!")
            assert not await bad.receive_some(1)
            await good.send_all(b"x")
            assert await good.receive_some(1) == b"x"
            async with await dial(address, timeout_s=5) as later:
                await later.send_all(b"y")
                assert await later.receive_some(1) == b"y"
    failed = [line for line in logs if line["event"] == "connection failed"]
    assert len(failed) == 1
    assert failed[0]["listener"] == "test"
    assert failed[0]["peer"].startswith("127.0.0.1:")


async def test_a_group_of_exceptions_from_a_handlers_nursery_is_no_end_of_the_server_either() -> None:
    async def handler(stream: trio.SocketStream, peer: str) -> None:
        if await stream.receive_some(1) == b"!":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_raise, trio.BrokenResourceError("reset"))
                nursery.start_soon(_raise, ValueError("a bug"))
        await stream.send_all(b"ok")

    with capture_logs() as logs:
        async with server(handler) as address:
            for first, answer in ((b"!", b""), (b"x", b"o")):
                async with await dial(address, timeout_s=5) as stream:
                    await stream.send_all(first)
                    assert await stream.receive_some(1) == answer
    # Which of the two comes first is Trio's choice; the other is there when both are.
    assert {line["event"] for line in logs} <= {"connection lost", "connection failed"}
    assert logs


async def _raise(error: Exception) -> None:
    raise error


@WAYS
async def test_beyond_the_bound_connections_wait_until_one_ends(
    way: Callable[..., Awaitable[None]],
) -> None:
    open_now: list[trio.SocketStream] = []
    most = 0

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        nonlocal most
        open_now.append(stream)
        most = max(most, len(open_now))
        await stream.send_all(b"in")
        await stream.receive_some(1)
        open_now.remove(stream)

    async with server(handler, way=way, max_connections=2) as address:
        first, second, third = [await dial(address, timeout_s=5) for _ in range(3)]
        assert [await stream.receive_some(2) for stream in (first, second)] == [b"in", b"in"]
        with trio.move_on_after(0.2) as waited:
            await third.receive_some(2)
        assert waited.cancelled_caught
        await first.aclose()
        assert await third.receive_some(2) == b"in"
    assert most == 2


async def test_without_free_file_descriptors_the_server_pauses_and_goes_on() -> None:
    class Exhausted:
        """A listener whose accept fails twice, as it does when no descriptor is free."""

        def __init__(self, inner: trio.SocketListener) -> None:
            self.inner = inner
            self.failures = 2

        async def accept(self) -> trio.SocketStream:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return await self.inner.accept()

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        await stream.send_all(b"in")

    inner = await listen("127.0.0.1:0", what="a test")
    listener = cast(trio.SocketListener, Exhausted(inner))
    with capture_logs() as logs, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            # One slot: a failure that kept it would stop everything.
            nursery.start_soon(partial(serve, max_connections=1, what="test"), listener, handler)
            async with await dial(address_of(inner), timeout_s=5) as stream:
                assert await stream.receive_some(2) == b"in"
            nursery.cancel_scope.cancel()
    assert [line["event"] for line in logs].count("accept paused") == 2


async def test_without_free_file_descriptors_a_listener_of_herds_pauses_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = 2
    accept = _Accepting.accept

    async def exhausted(accepting: _Accepting, listener: socket.socket) -> Fresh:
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(accepting, listener)

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        await stream.send_all(b"in")

    monkeypatch.setattr(_Accepting, "accept", exhausted)
    with capture_logs() as logs:
        async with (
            server(handler, way=all_by_tasks, max_connections=1) as address,
            await dial(address, timeout_s=5) as stream,
        ):
            assert await stream.receive_some(2) == b"in"
    assert [line["event"] for line in logs].count("accept paused") == 2


async def test_those_that_wait_for_what_becomes_of_them_have_slots_and_a_listener_that_ends_waits_for_them() -> None:
    listener = await listen("127.0.0.1:0", what="tests")
    address, shut, ended = address_of(listener), trio.Event(), trio.Event()
    waiting: list[Fresh] = []

    async def keep(fresh: Fresh) -> bool:
        waiting.append(fresh)
        return True

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        await stream.send_all(b"in")

    async def serving() -> None:
        await serve_fresh(listener, handler, keep, max_connections=2, what="tests", until=shut)
        ended.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serving)
            first, second, third = [await dial(address, timeout_s=5) for _ in range(3)]
            await trio.testing.wait_all_tasks_blocked()
            assert len(waiting) == 2
            waiting[0].close()
            assert await first.receive_some(1) == b""
            await trio.testing.wait_all_tasks_blocked()
            assert len(waiting) == 3
            shut.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            waiting[1].serve(handler)
            waiting[1].close()  # it is the task's now
            assert await second.receive_some(2) == b"in"
            waiting[2].serve(handler)
            assert await third.receive_some(2) == b"in"
            await ended.wait()
        for stream in (first, second, third):
            await stream.aclose()


async def test_a_listener_that_is_cancelled_closes_those_that_nobody_has_and_hears_no_more_of_them() -> None:
    listener = await listen("127.0.0.1:0", what="tests")
    address = address_of(listener)
    waiting: list[Fresh] = []

    async def keep(fresh: Fresh) -> bool:
        waiting.append(fresh)
        return True

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        raise AssertionError("its listener is gone")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve_fresh, max_connections=2, what="tests"), listener, handler, keep)
            client = await dial(address, timeout_s=5)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await client.receive_some(1) == b""
        waiting[0].serve(handler)
        waiting[0].close()
        await client.aclose()
    await listener.aclose()


async def test_one_that_is_accepted_as_its_listener_ends_is_served() -> None:
    listener = await listen("127.0.0.1:0", what="tests")
    address, shut = address_of(listener), trio.Event()

    async def wait(_fresh: Fresh) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    async def handler(stream: trio.SocketStream, peer: str) -> None:
        await stream.send_all(b"in")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            of_two = partial(serve_fresh, max_connections=2, what="tests", until=shut)
            nursery.start_soon(of_two, listener, handler, wait)
            async with await dial(address, timeout_s=5) as client:
                await trio.testing.wait_all_tasks_blocked()
                shut.set()
                assert await client.receive_some(2) == b"in"


async def test_of_a_name_with_several_addresses_nothing_is_left_listening_but_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(3)]

    async def of_a_name(*_: object, **__: object) -> list[trio.SocketListener]:
        return made

    monkeypatch.setattr(trio, "open_tcp_listeners", of_a_name)
    assert await listen("name.example:4739", what="a test") is made[0]
    assert [listener.socket.fileno() >= 0 for listener in made] == [True, False, False]
    await made[0].aclose()


@WAYS
async def test_a_listener_that_is_shut_accepts_nothing_more_and_ends_with_its_last_connection(
    way: Callable[..., Awaitable[None]],
) -> None:
    listener = await listen("127.0.0.1:0", what="tests")
    host, port = listener.socket.getsockname()
    shared = listener.socket.dup()
    shut, served = trio.Event(), 0

    async def echo(stream: trio.SocketStream, peer: str) -> None:
        nonlocal served
        served += 1
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:

        async def serving() -> None:
            await way(listener, echo, max_connections=10, what="tests", until=shut)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serving)
        with trio.fail_after(20):
            first = await trio.open_tcp_stream(host, port)
            await first.send_all(b"a")
            assert await first.receive_some(1) == b"a"
            shut.set()
            await trio.testing.wait_all_tasks_blocked()
            # It is connected, in the accept queue: for whoever shares the socket.
            async with await trio.open_tcp_stream(host, port) as second:
                await second.send_all(b"b")
                await first.send_all(b"c")
                assert await first.receive_some(1) == b"c"
                assert served == 1
                shared.close()
                with pytest.raises(OSError, match="failed"):
                    await trio.open_tcp_stream(host, port)
                await first.aclose()
                await trio.sleep_forever()
    assert nursery.cancel_scope.cancel_called


async def test_a_socket_that_was_given_is_listened_on_and_what_came_before_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        monkeypatch.setenv(SOCKETS_VARIABLE, f"other=99999,door={os.dup(given.fileno())}")
        with socket.create_connection(given.getsockname()):
            listener = await listen("127.0.0.1:1", what="tests", given="door")
            with trio.fail_after(20):
                stream = await listener.accept()
            assert listener.socket.getsockname() == given.getsockname()
            await stream.aclose()
            await listener.aclose()
