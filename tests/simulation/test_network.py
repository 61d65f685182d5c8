"""The simulated network does what TCP does: order, backpressure, ends, resets, and hosts that are gone."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from tools.simulate.clock import VirtualClock
from tools.simulate.hosts import Host, enter
from tools.simulate.sockets import KEEP_ALIVE_S, WINDOW_BYTES, Factory
from tools.simulate.wires import Network

from sapflow.errors import Unreachable
from sapflow.runtime.dial import dial
from sapflow.runtime.serve import listen

DOOR = "10.0.0.2:4739"


@define
class Two:
    """A client's host and a server's, with a connection between them."""

    network: Network
    here: Host
    there: Host
    client: trio.SocketStream = field(init=False)
    server: trio.SocketStream = field(init=False)
    listener: trio.SocketListener = field(init=False)


@asynccontextmanager
async def two(seed: int = 1) -> AsyncIterator[Two]:
    network = Network(random.Random(seed), latency_s=0.01)
    trio.socket.set_custom_socket_factory(Factory(network))
    here, there = Host("here", "10.0.0.1", 1), Host("there", "10.0.0.2", 2)
    network.hosts = {host.address: host for host in (here, there)}
    world = Two(network, here, there)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            enter(there)
            world.listener = await listen(DOOR, what="a test", backlog=1)
            enter(here)
            client = await dial(DOOR, timeout_s=1)
            assert isinstance(client, trio.SocketStream)
            world.client = client
            world.server = await world.listener.accept()
            yield world
            nursery.cancel_scope.cancel()


def simulated(test: Callable[..., Any]) -> Callable[..., None]:
    """In virtual time, on a network of its own."""

    async def whole(arguments: dict[str, Any]) -> None:
        async with two() as world:
            await test(world, **arguments)

    def run(**arguments: Any) -> None:
        trio.run(partial(whole, arguments), clock=VirtualClock())

    run.__name__ = test.__name__
    return run


@simulated
async def test_bytes_come_in_order_whatever_happens_to_the_path(world: Two) -> None:
    sent = random.Random(2).randbytes(300_000)
    path = world.network.path(world.here, world.there)

    async def send() -> None:
        for at in range(0, len(sent), 1000):
            await world.client.send_all(sent[at : at + 1000])
            await trio.sleep(0.003)
        await world.client.send_eof()

    async def spoil() -> None:
        path.lost, path.jitter_s, path.latency_s = 0.3, 0.1, 0.2
        for _ in range(5):
            path.blocked = True
            await trio.sleep(0.05)
            world.network.let_go(path)
            await trio.sleep(0.05)
        path.mend()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(spoil)
        received = b""
        while data := await world.server.receive_some(777):
            received += data
    assert received == sent


@simulated
async def test_who_is_not_read_from_stands_still(world: Two) -> None:
    with trio.move_on_after(10) as waiting:
        await world.client.send_all(bytes(WINDOW_BYTES + 1))
    assert waiting.cancelled_caught
    received = 0
    while received < WINDOW_BYTES:
        received += len(await world.server.receive_some())
    with trio.fail_after(1):
        await world.client.send_all(b"more")


@simulated
async def test_a_cancelled_receive_has_taken_nothing(world: Two) -> None:
    await world.client.send_all(bytes(1000))
    await trio.sleep(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.server.receive_some()
    assert scope.cancelled_caught
    assert len(await world.server.receive_some()) == 1000


@simulated
async def test_a_close_is_an_end_and_one_with_bytes_unread_a_reset(world: Two) -> None:
    await world.client.send_all(b"unread")
    await trio.sleep(1)
    await world.server.aclose()
    await trio.sleep(1)
    with pytest.raises(trio.BrokenResourceError):
        await world.client.receive_some()
    again = await dial(DOOR, timeout_s=1)
    await (await world.listener.accept()).aclose()
    assert await again.receive_some() == b""


@simulated
async def test_a_process_that_dies_has_its_sockets_closed_and_its_port_free(world: Two) -> None:
    world.there.close_all()
    await trio.sleep(1)
    assert await world.client.receive_some() == b""
    with pytest.raises(Unreachable, match="refused"):
        await dial(DOOR, timeout_s=1)
    enter(world.there)
    await listen(DOOR, what="its successor")


@simulated
async def test_a_host_without_power_says_nothing_and_resets_once_it_is_back(world: Two) -> None:
    world.there.lose_power()
    await world.client.send_all(b"into nothing")
    with trio.move_on_after(20) as waiting:
        await world.client.receive_some()
    assert waiting.cancelled_caught
    with pytest.raises(Unreachable, match="did not answer"):
        await dial(DOOR, timeout_s=1)
    world.there.powered = True
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await world.client.receive_some()


@simulated
async def test_a_host_that_is_gone_is_found_by_keep_alive(world: Two) -> None:
    world.there.lose_power()
    began = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await world.client.receive_some()
    assert trio.current_time() - began == pytest.approx(KEEP_ALIVE_S, abs=1)


@simulated
async def test_a_full_accept_queue_makes_others_wait(world: Two) -> None:
    await dial(DOOR, timeout_s=1)
    with pytest.raises(Unreachable, match="did not answer"):
        await dial(DOOR, timeout_s=5)
    await world.listener.accept()
    await dial(DOOR, timeout_s=5)


@simulated
async def test_a_stopped_process_is_connected_to_but_does_not_answer(world: Two) -> None:
    world.there.stop()
    await world.client.send_all(b"hello")
    with trio.move_on_after(5) as waiting:
        await world.server.receive_some()
    assert waiting.cancelled_caught
    world.there.go_on()
    assert await world.server.receive_some() == b"hello"
