"""The one place that connects."""

import socket

import pytest
import trio

from sapflow.errors import Unreachable
from sapflow.runtime.dial import dial


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_port_where_nobody_listens_is_said_to_refuse() -> None:
    port = a_free_port()
    with pytest.raises(Unreachable, match=rf"^127.0.0.1:{port} cannot be reached: Connection refused$"):
        await dial(f"127.0.0.1:{port}", timeout_s=5)


async def test_a_socket_that_connected_to_itself_is_nobody_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect_to_itself(host: str, port: int) -> trio.SocketStream:
        itself = trio.socket.socket()
        await itself.bind((host, port))
        await itself.connect((host, port))
        return trio.SocketStream(itself)

    monkeypatch.setattr(trio, "open_tcp_stream", connect_to_itself)
    with pytest.raises(Unreachable, match="Connection refused"):
        await dial(f"127.0.0.1:{a_free_port()}", timeout_s=5)


async def test_a_server_that_never_answers_is_given_up_at_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            # The accept queue is full once these are in it.
            for _ in range(3):
                nursery.start_soon(fill, address)
            await trio.sleep(0.2)
            with pytest.raises(Unreachable, match=r"did not answer within 0.3 s"):
                await dial(address, timeout_s=0.3)
            nursery.cancel_scope.cancel()


async def fill(address: str) -> None:
    host, port = address.split(":")
    async with await trio.open_tcp_stream(host, int(port)):
        await trio.sleep_forever()
