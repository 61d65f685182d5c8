"""Connections as a server accepts them and as we make them."""

from functools import partial

import trio

from sapflow.runtime.dial import KEEP_ALIVE, dial
from sapflow.runtime.serve import address_of, listen, serve


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
