"""HAProxy in front of a door: its PROXY protocol v2 is read, and ours is read by it."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from tools.bench.rivals import await_port, free_port
from tools.peers import find

from sapflow.runtime.dial import dial
from sapflow.runtime.proxied import Networks, Proxied
from sapflow.runtime.proxy_header import encode
from sapflow.runtime.serve import address_of, listen, serve
from tests.peers import needs


@contextmanager
def haproxy(directory: Path, bind: str, server: str) -> Iterator[int]:
    port = free_port(socket.SOCK_STREAM)
    config = directory / "haproxy.cfg"
    config.write_text(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n"
        f"listen l\n  bind 127.0.0.1:{port} {bind}\n  server s {server}\n"
    )
    process = subprocess.Popen([str(find("haproxy")), "-db", "-f", str(config)])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


@needs("haproxy")
@pytest.mark.parametrize("options", ["send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_what_haproxy_says_of_a_client_is_read_with_its_checksum(tmp_path: Path, options: str) -> None:
    heard: list[tuple[str, bytes]] = []

    async def door(stream: trio.SocketStream, peer: str) -> None:
        heard.append((peer, bytes(await stream.receive_some(100))))
        await stream.send_all(b"answer")

    listener = await listen("127.0.0.1:0", what="a door")
    handler = Proxied(Networks(["127.0.0.0/8"]), 5.0).required(door)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=10, what="door"), listener, handler)
            with haproxy(tmp_path, "", f"{address_of(listener)} {options}") as port:
                await trio.to_thread.run_sync(await_port, port)
                client = await dial(f"127.0.0.1:{port}", timeout_s=5)
                await client.send_all(b"first bytes")
                assert await client.receive_some(100) == b"answer"
                assert isinstance(client, trio.SocketStream)
                own = "{}:{}".format(*client.socket.getsockname())
                await client.aclose()
            nursery.cancel_scope.cancel()
    assert (own, b"first bytes") in heard


@needs("haproxy")
async def test_haproxy_reads_our_header(tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []

    async def behind(stream: trio.SocketStream, peer: str) -> None:
        heard.append((peer, bytes(await stream.receive_some(100))))

    listener = await listen("127.0.0.1:0", what="what is behind")
    handler = Proxied(Networks(["127.0.0.0/8"]), 5.0).required(behind)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, max_connections=10, what="behind"), listener, handler)
            with haproxy(tmp_path, "accept-proxy", f"{address_of(listener)} send-proxy-v2") as port:
                await trio.to_thread.run_sync(await_port, port)
                client = await dial(f"127.0.0.1:{port}", timeout_s=5)
                await client.send_all(encode("192.0.2.7:4711", "198.51.100.1:4740") + b"first bytes")
                with trio.move_on_after(10):
                    await client.receive_some(100)
                await client.aclose()
            nursery.cancel_scope.cancel()
    assert heard == [("192.0.2.7:4711", b"first bytes")]
